"""scripts/test --bcc RELEASE: the core of tests/kernels with another bcc, on this very kernel.

exit codes: 0 all passed; 1 something failed; 2 that bcc could not be had; 3 not done in
time
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from vm import bcc
from ways import CORE

from tracer.errors import ExitCode, TracerError

ROOT = Path(__file__).parents[2]
WITHIN_S = 300
UNFINISHED = 3


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/test --bcc",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("release", help=f"one of {', '.join(bcc.RELEASES)}")
    arguments = parser.parse_args()
    try:
        python = bcc.fetch(arguments.release)
    except TracerError as error:
        print(f"error: bcc {arguments.release}: {error.message}\nhint: {error.hint}",
              file=sys.stderr)  # fmt: skip
        return ExitCode.UNUSABLE
    words = [python, "-m", "pytest", "tests/kernels", "-q", "-k", CORE, "--tb=short"]
    try:
        done = subprocess.run(words, cwd=ROOT, timeout=WITHIN_S, check=False)
    except subprocess.TimeoutExpired:
        print(f"error: bcc {arguments.release}: not done in {WITHIN_S} s", file=sys.stderr)
        return UNFINISHED
    return int(done.returncode != 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
