"""Every hook: what it tells, how it attaches on this kernel, and what that loses.

exit code: 0 every hook attaches in its best way or a full substitute; 1 some lose something or
cannot attach; 2 none can attach. Without root, the ways are those that the kernel's BTF
promises, untried.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import orjson

from tracer.errors import ExitCode
from tracer.kernel.hook_probe import HookProbe, probe_hooks

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """-o."""
    parser.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="json: one object a line"
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Try every hook, print, judge."""
    probes = probe_hooks()
    lines = map(_json if args.output == "json" else _text, probes)
    sys.stdout.writelines(line + "\n" for line in lines)
    return exit_code(probes)


def exit_code(probes: Sequence[HookProbe]) -> ExitCode:
    """0 all preferred, 1 something lost, 2 nothing left."""
    if not any(probe.way for probe in probes):
        return ExitCode.UNUSABLE
    complete = all(
        probe.way.full or not probe.refused if probe.way else probe.hook.spare for probe in probes
    )
    return ExitCode.DONE if complete else ExitCode.PARTIAL


def record(probe: HookProbe) -> dict[str, Any]:
    """One hook as JSON values; `way` and `target` are absent when it cannot attach."""
    fields: dict[str, Any] = {"hook": probe.hook.name, "tells": probe.hook.tells}
    if probe.way:
        fields |= {"way": probe.way.kind, "target": probe.way.target}
        if probe.way.costs:
            fields["costs"] = probe.way.costs
    fields |= {"tried": probe.tried, "commands": list(probe.hook.commands)}
    if probe.refused:
        fields["refused"] = list(probe.refused)
    return fields


def _json(probe: HookProbe) -> str:
    return orjson.dumps(record(probe)).decode()


def _text(probe: HookProbe) -> str:
    lines = [f"{probe.hook.name}: {probe.hook.tells} (for {', '.join(probe.hook.commands)})"]
    if probe.way:
        untried = "" if probe.tried else " (not tried: needs root)"
        lines.append(f"  attaches by {probe.way.kind} {probe.way.target}{untried}")
        lines += [f"  loses: {probe.way.costs}"] if probe.way.costs else []
    else:
        lines.append("  cannot attach")
    lines += [f"  refused: {reason}" for reason in probe.refused]
    return "\n".join(lines)
