"""scripts/test --kernels all | 5.10,6.1,…: tests/kernels in each kernel, one guest at a time.

exit codes: 0 all passed in all; 1 something failed; 2 a kernel could not be had
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import document
import results
from vm import catalog, cli, machine

from tracer.errors import ExitCode, TracerError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "build/kernels"
"""What the guests report, each over its former report."""
DOCUMENT = ROOT / "docs/compatibility.md"
RUN_S = 1200
"""An emulated run of everything takes six minutes on one processor, on a busy machine ten."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/test --kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kernels", help=f"all, or some of {','.join(catalog.SUITES)}")
    parser.add_argument("--document", action="store_true", help=f"write {DOCUMENT.name} as well")
    return parser.parse_args()


def _run(kernel: str) -> bool:
    """Run the tests in one kernel; whether all passed."""
    report = results.report_path(RESULTS, kernel)
    report.unlink(missing_ok=True)
    print(f"--- {kernel}", flush=True)
    options = ("-q", "-p", "no:cacheprovider", "--tb=short")
    # Only the former layout keeps what a test tells as properties.
    options += ("-o", "junit_family=xunit1", f"--junitxml={report}")
    command = (sys.executable, "-m", "pytest", "tests/kernels", *options)
    ending = cli.boot(kernel, machine.Job(command, ROOT, share=RESULTS, run_s=RUN_S))
    results.save_figures(RESULTS, kernel, catalog.SUITES[kernel], ending)
    print(f"--- {kernel}: boot {ending.boot_s:.1f} s, tests {ending.run_s:.0f} s", flush=True)
    return ending.code == 0


def main() -> int:
    """The exit code."""
    cli.end_in_order()
    arguments = _arguments()
    names = list(catalog.SUITES) if arguments.kernels == "all" else arguments.kernels.split(",")
    RESULTS.mkdir(parents=True, exist_ok=True)
    code = 0
    for name in names:
        try:
            passed = _run(name)
        except TracerError as error:
            print(f"error: {name}: {error.message}\nhint: {error.hint}", file=sys.stderr)
            code = ExitCode.UNUSABLE
        else:
            code = code or int(not passed)
    runs = [run for name in catalog.SUITES if (run := results.load(RESULTS, name))]
    print(document.tests_table([run for run in runs if run.kernel in names]))
    if arguments.document:
        DOCUMENT.write_text(document.document(runs))
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
