"""scripts/test --kernels all | 5.10,6.1,…: tests/kernels in each kernel, one guest at a time.

exit codes: 0 all passed in all; 1 something failed; 2 a kernel could not be had; 3 nothing failed,
but the time was too short for all
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import document
import results
from vm import catalog, cli, machine
from ways import CORE

from tracer.errors import ExitCode, TracerError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "build/kernels"
"""What the guests report, each over its former report."""
DOCUMENT = ROOT / "docs/compatibility.md"
RUN_S = 2700
"""An emulated run of everything takes seven minutes on one processor, on a busy machine thirty."""
MARGIN_S = 45
"""For boot and the test that runs when time is up."""
UNFINISHED = 3


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/test --kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kernels", help=f"all, or some of {','.join(catalog.SUITES)}")
    parser.add_argument("--document", action="store_true", help=f"write {DOCUMENT.name} as well")
    parser.add_argument("--core", action="store_true", help="only what matters most")
    parser.add_argument("--within", type=float, metavar="S", help="for all kernels together")
    return parser.parse_args()


def _run(kernel: str, *, core: bool, within_s: float | None) -> int:
    """Run the tests in one kernel, begin none after `within_s`; the exit code."""
    report = results.report_path(RESULTS, kernel)
    report.unlink(missing_ok=True)
    print(f"--- {kernel}", flush=True)
    options = ["-q", "-rs", "-p", "no:cacheprovider", "--tb=short"]
    # Only the former layout keeps what a test tells as properties.
    options += ["-o", "junit_family=xunit1", f"--junitxml={report}"]
    options += ["-k", CORE] if core else []
    options += [f"--within={within_s - MARGIN_S:.0f}"] if within_s else []
    command = (sys.executable, "-m", "pytest", "tests/kernels", *options)
    run_s = within_s + MARGIN_S if within_s else RUN_S
    ending = cli.boot(kernel, machine.Job(command, ROOT, share=RESULTS, run_s=run_s))
    results.save_figures(RESULTS, kernel, catalog.SUITES[kernel], ending)
    print(f"--- {kernel}: boot {ending.boot_s:.1f} s, tests {ending.run_s:.0f} s", flush=True)
    if ending.code == machine.TIMED_OUT and within_s:
        return UNFINISHED
    run = results.load(RESULTS, kernel)
    unfinished = within_s and run and any(test.outcome == "skipped" for test in run.tests)
    return int(ending.code != 0) or (UNFINISHED if unfinished else 0)


def _survived(kernel: str, *, core: bool, within_s: float | None) -> int:
    """`_run`, once more should the guest die: an emulated processor stumbles at times."""
    try:
        return _run(kernel, core=core, within_s=within_s)
    except machine.GuestDiedError as error:
        print(f"{kernel}: {error.message}, once more: {error.hint}", file=sys.stderr)
    try:
        return _run(kernel, core=core, within_s=within_s)
    except machine.GuestDiedError as error:
        print(f"error: {kernel}: {error.message} again\nhint: {error.hint}", file=sys.stderr)
        return 1


def _run_all(names: list[str], *, core: bool, within_s: float | None) -> set[int]:
    """All kernels, with an equal share of the time for each that is still to come; exit codes."""
    codes: set[int] = set()
    end = time.monotonic() + within_s if within_s else None
    for left, name in zip(range(len(names), 0, -1), names, strict=True):
        share_s = (end - time.monotonic()) / left if end else None
        try:
            if share_s is not None and share_s < 2 * MARGIN_S:
                print(f"--- {name}: skipped, no time is left")
                codes.add(UNFINISHED)
            else:
                codes.add(_survived(name, core=core, within_s=share_s))
        except TracerError as error:
            print(f"error: {name}: {error.message}\nhint: {error.hint}", file=sys.stderr)
            codes.add(ExitCode.UNUSABLE)
    return codes


def main() -> int:
    """The exit code."""
    cli.end_in_order()
    arguments = _arguments()
    names = list(catalog.SUITES) if arguments.kernels == "all" else arguments.kernels.split(",")
    RESULTS.mkdir(parents=True, exist_ok=True)
    codes = _run_all(names, core=arguments.core, within_s=arguments.within)
    runs = [run for name in catalog.SUITES if (run := results.load(RESULTS, name))]
    print(document.tests_table([run for run in runs if run.kernel in names]))
    if arguments.document:
        DOCUMENT.write_text(document.document(runs))
    return next((code for code in (1, ExitCode.UNUSABLE, UNFINISHED) if code in codes), 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
