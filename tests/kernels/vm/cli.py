"""scripts/kernels NAME [OPTION ...] -- COMMAND [ARGUMENT ...]

Boot a Debian kernel under QEMU with this machine's root as its userland and run COMMAND in it as
root, in the same directory. What it writes outside of --share vanishes with the guest.

exit codes: COMMAND's own; 124 when it took too long; 2 when there is no guest to run it in
"""

from __future__ import annotations

import argparse
import platform
import signal
import sys
from pathlib import Path

from tracer.errors import ExitCode, TracerError
from vm import catalog, machine

BOOTS = 2
"""An emulated processor stumbles at times: a boot is tried again, a command never."""


def boot(name: str, job: machine.Job) -> machine.Ending:
    """Run `job` in kernel `name`, with our stdout and stderr; TracerError without a guest."""
    if platform.machine() != "x86_64":
        raise TracerError(
            f"this machine is {platform.machine()}", "the guests are x86_64 with its root"
        )
    kernel = catalog.fetch(name)
    for left in reversed(range(BOOTS)):
        try:
            return machine.run(kernel, job, sys.stdout.buffer, sys.stderr.buffer)
        except machine.BootError as error:
            if not left:
                raise
            print(f"{kernel.release}: {error.message}, once more", file=sys.stderr)
    raise AssertionError


def _arguments() -> tuple[argparse.Namespace, tuple[str, ...]]:
    """Our options, and the command: what follows the first `--`."""
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        prog="scripts/kernels", description=__doc__, formatter_class=argparse.RawTextHelpFormatter,
        usage=argparse.SUPPRESS,
    )  # fmt: skip
    parser.add_argument("name", nargs="?", help=f"one of {', '.join(catalog.SUITES)}")
    parser.add_argument("--fetch", action="store_true", help="fetch the newest package of it")
    parser.add_argument("--share", type=Path, metavar="DIR", help="the guest may write here")
    parser.add_argument("--timeout", type=float, default=900, metavar="S", help="for COMMAND")
    parser.add_argument("--memory", default="2G", help="default: %(default)s")
    parser.add_argument("--instructions", action="store_true",
                        help="a nanosecond of the guest is one instruction (slow)")  # fmt: skip
    parser.add_argument("--time", action="store_true", help="tell how long boot and command took")
    return parser.parse_args(words[:end]), tuple(words[end + 1 :])


def end_in_order() -> None:
    """Let SIGTERM and SIGHUP end this process as Ctrl-C does: the guest and its files go along."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))


def main() -> int:
    """The exit code."""
    end_in_order()
    arguments, command = _arguments()
    try:
        if not arguments.name:
            print("\n".join(catalog.SUITES))
            return 0
        if arguments.fetch:
            print(catalog.fetch(arguments.name, again=True).release)
        if not command:
            return 0
        job = machine.Job(
            command=command,
            directory=Path.cwd(),
            share=arguments.share and arguments.share.resolve(),
            run_s=arguments.timeout,
            memory=arguments.memory,
            count_instructions=arguments.instructions,
        )
        ending = boot(arguments.name, job)
    except TracerError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return ExitCode.UNUSABLE
    except KeyboardInterrupt:
        return 130
    if arguments.time:
        print(f"boot {ending.boot_s:.1f} s, command {ending.run_s:.1f} s", file=sys.stderr)
    return ending.code
