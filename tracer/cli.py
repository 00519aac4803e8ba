"""The command line: picks a command, prints errors, exits. Nothing else calls `sys.exit`."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from typing import TYPE_CHECKING, Protocol, cast

from tracer import __version__
from tracer.config import with_config
from tracer.errors import ExitCode, TracerError

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "drops": "which pods lose packets, why and where",
    "trace": "which way packets went, hop by hop, and where the time went",
    "flows": "count every pod's flows and log them",
    "conntrack": "connection tracking: entries, events, failures, who fills it",
    "report": "answers from the files: who talks, what dies and why",
    "show": "render a recording again, anywhere",
    "pods": "which pod does this netns, device or address belong to",
    "doctor": "what this node can do, and what is missing",
    "hooks": "every hook, how it attaches here, and what is lost",
}

EPILOG = """\
commands:
{commands}

examples:
  tracer doctor                          can this node run tracer?
  tracer drops                           every dropped packet, live
  tracer drops --namespace shop -o json  the drops of one namespace, for jq
  tracer trace --pod shop/cart-0         which way its packets go
  tracer flows --write flows.jsonl       a log of every pod's flows
  tracer report flows.jsonl              what that log says
  tracer conntrack --top                 who fills the conntrack table

`tracer COMMAND --help` tells the rest.
"""


class Command(Protocol):
    """What every module in `tracer.commands` offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's own options."""

    def run(self, args: argparse.Namespace) -> ExitCode:
        """Run it; raises `TracerError` for what the user can mend."""


class _Parser(argparse.ArgumentParser):
    """argparse, with our two-line errors instead of the usage text."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise TracerError(message, f"{self.prog} --help")

    def _get_value(self, action: argparse.Action, arg_string: str) -> object:
        try:
            return super()._get_value(action, arg_string)
        except TracerError as error:
            names = [name for name in action.option_strings if name.startswith("--")]
            if not names or any(name in error.message for name in names):
                raise
            raise TracerError(f"{names[0]}: {error.message}", error.hint) from None


def _main_parser() -> _Parser:
    commands = "\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items())
    parser = _Parser(
        prog="tracer",
        usage="tracer COMMAND [OPTION ...]",
        description="eBPF node packet tracer for Kubernetes: where did my packet die, and why?",
        epilog=EPILOG.format(commands=commands),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tracer {__version__}")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    return parser


def _known(name: str) -> str:
    if name in COMMANDS:
        return name
    alike = difflib.get_close_matches(name, COMMANDS, n=1)
    guess = f"; did you mean {alike[0]}?" if alike else ""
    raise TracerError(f"{name}: no such command{guess}", "tracer --help")


def _run(argv: Sequence[str]) -> ExitCode:
    name = _known(_main_parser().parse_args(argv[:1] or ["--help"]).command)
    # Only the chosen command is imported: start-up time is a feature.
    command = cast("Command", importlib.import_module(f"tracer.commands.{name}"))
    parser = _Parser(
        prog=f"tracer {name}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    # Intermixed: `FILE --dropped FILTER` as well as `FILE FILTER --dropped`.
    arguments = with_config(parser, name, argv[1:], os.environ)
    return command.run(parser.parse_intermixed_args(arguments))


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `tracer` script; always raises SystemExit with an `ExitCode`."""
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
    except TracerError as error:
        lines = [f"error: {error.message}"] + ([f"hint: {error.hint}"] if error.hint else [])
        print("\n".join(lines), file=sys.stderr)  # noqa: T201 - the one place that reports errors
        code = ExitCode.UNUSABLE
    except BrokenPipeError:
        # The reader of our stdout went away (`tracer … | head`): that is its right.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = ExitCode.DONE
    except KeyboardInterrupt:
        code = ExitCode.DONE
    sys.exit(code)
