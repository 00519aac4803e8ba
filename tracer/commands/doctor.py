"""What this node can do for tracer, and what is missing.

exit code: 0 everything tracer can do works here; 1 degraded, the lines say what is lost;
2 cannot run. Without root it tells what it can.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import orjson

from tracer.errors import ExitCode
from tracer.inventory import probe as inventory_probe
from tracer.inventory.facts import Paths
from tracer.kernel import hook_probe, probe
from tracer.model import Finding, State

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

    from tracer.kernel.hook_probe import HookProbe

EXIT_CODES = {
    State.OK: ExitCode.DONE,
    State.DEGRADED: ExitCode.PARTIAL,
    State.MISSING: ExitCode.UNUSABLE,
}
VERDICTS = {State.OK: "ready", State.DEGRADED: "degraded", State.MISSING: "cannot run"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """-o."""
    parser.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="json: one object a line"
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Look, print, judge."""
    findings = [
        *probe.findings(probe.Places()),
        *hook_findings(hook_probe.probe_hooks()),
        *inventory_probe.findings(Paths()),
    ]
    print_findings = _print_json if args.output == "json" else _print_text
    print_findings(findings)
    return EXIT_CODES[worst(findings)]


def hook_findings(probes: Iterable[HookProbe]) -> list[Finding]:
    """One finding a hook. A hook without a way is fatal only if no command can do without it."""
    probes = list(probes)
    commands = {command for probe in probes for command in probe.hook.commands}
    needed = [probe.hook for probe in probes if not probe.way and not probe.hook.optional]
    lost = {command for hook in needed for command in hook.commands}
    state = State.MISSING if lost == commands else State.DEGRADED
    return [_hook_finding(probe, state) for probe in probes]


def _hook_finding(probe: HookProbe, state_without: State) -> Finding:
    name = f"hook {probe.hook.name}"
    refused = "; ".join(probe.refused)
    if not probe.way:
        users = ", ".join(probe.hook.commands)
        if probe.hook.spare:
            return Finding(name, State.OK, f"{refused}: {users} does without")
        if probe.hook.optional:
            return Finding(name, State.DEGRADED, f"{refused}: {users} tells less", "tracer hooks")
        return Finding(name, state_without, f"{refused}: no {users}", "tracer hooks")
    detail = f"{probe.way.kind} {probe.way.target}"
    if not probe.tried:
        return Finding(name, State.OK, f"{detail}, not tried: needs root")
    if probe.refused:
        lost = f"{detail}: {probe.way.costs} ({refused})"
        state = State.OK if probe.way.full else State.DEGRADED
        return Finding(name, state, lost, "" if probe.way.full else "tracer hooks")
    return Finding(name, State.OK, detail)


def worst(findings: Sequence[Finding]) -> State:
    """Return the state of the whole node."""
    order = list(State)
    return max((finding.state for finding in findings), key=order.index, default=State.OK)


def _print_json(findings: Sequence[Finding]) -> None:
    for finding in findings:
        record = {"check": finding.check, "state": finding.state.value, "detail": finding.detail}
        if finding.hint:
            record["hint"] = finding.hint
        sys.stdout.write(orjson.dumps(record).decode() + "\n")


def _print_text(findings: Sequence[Finding]) -> None:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        state = "" if finding.state is State.OK else f"{finding.state.value}: "
        sys.stdout.write(f"{finding.check:<{width}}  {state}{finding.detail}\n")
        if finding.hint:
            sys.stdout.write(f"{'':<{width}}  hint: {finding.hint}\n")
    verdict = worst(findings)
    causes = [finding.check for finding in findings if finding.state is verdict is not State.OK]
    sys.stdout.write(VERDICTS[verdict] + (f": {', '.join(causes)}" if causes else "") + "\n")
