"""Runs → docs/compatibility.md. Pure: text from data."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from results import Run, Test

HEAD = """# Kernels that tracer was run on

Written by `scripts/test --kernels all --document` from what it saw: Debian's kernels, booted one
after the other in an emulated x86_64 machine, each running `tests/kernels` with real packets.
Which distribution has which kernel: [distributions.md](distributions.md).
"""
HOOKS = """## Hooks

The ways in which each hook attaches, the preferred first. A way that a kernel lacks is named
with its answer.
"""
DROPS = """## Drops

What the record calls the reason, for each cause that was provoked. Where the kernel has no reason
of its own, the function is shown: the explanation then comes from it and from the stack. After a
comma, which mechanism of netfilter: `hook` is any but nf_tables, or one not told apart. Every way
of attaching told the same, unless it says so.
"""
LOST = """## What is lost

Beside the newest kernel of the table. Counts, places and netfilter hooks are exact everywhere;
without a reason the explanation names every cause that its function has.
"""
DOCTOR = """## What `tracer doctor` says

Checks that were not `ok`. The guests have no container runtime.
"""
NOT_TOLD = "NOT_SPECIFIED"


def document(runs: Sequence[Run]) -> str:
    """The whole file, of the runs in the order of their columns."""
    parts = [
        HEAD,
        _kernels(runs),
        HOOKS,
        _hooks(runs),
        "## What a way costs\n",
        _costs(runs),
        DROPS,
        _drops(runs),
        LOST,
        _lost(runs),
        DOCTOR,
        _degraded(runs),
        "## Tests\n",
        _tests(runs),
    ]
    return "\n".join(parts)


def tests_table(runs: Sequence[Run]) -> str:
    """Test and way × kernel: passed of all."""
    return _tests(runs)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head)]
    lines += [["---"] * len(lines[0]), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _grid(runs: Sequence[Run], what: str, names: Sequence[str], cell: Callable) -> str:
    """A table with a row a name and a column a kernel."""
    rows = [[name, *(cell(run, name) for run in runs)] for name in names]
    return _table([what, *(run.kernel for run in runs)], rows)


def _in_order(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _kernels(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        passed = sum(test.outcome == "passed" for test in run.tests)
        figures = f"{run.boot_s:.0f} s", f"{run.run_s:.0f} s", f"{passed} of {len(run.tests)}"
        rows.append([run.kernel, run.release, f"Debian {run.suite}", *figures])
    return _table(["kernel", "release", "from", "boot", "tests", "passed"], rows)


def _ways(run: Run, hook: str) -> list[Test]:
    return [test for test in run.of("test_way") if test.told["hook"] == hook]


def _hooks(runs: Sequence[Run]) -> str:
    def cell(run: Run, hook: str) -> str:
        ways = _ways(run, hook)
        open_ways = [test.told["way"] for test in ways if not test.told["refused"]]
        refused = [f"{t.told['way']}: {t.told['refused']}" for t in ways if t.told["refused"]]
        return "; ".join([", ".join(open_ways) or "none", *refused])

    names = _in_order(test.told["hook"] for run in runs for test in run.of("test_way"))
    return _grid(runs, "hook", names, cell)


def _costs(runs: Sequence[Run]) -> str:
    told = [test.told for run in runs for test in run.of("test_way")]
    costs = {each["way"]: each["costs"] for each in told}
    rows = ([way, text or "nothing: the preferred way"] for way, text in costs.items())
    return _table(["way", "costs"], rows)


def _drops(runs: Sequence[Run]) -> str:
    def cell(run: Run, case: str) -> str:
        tests = [test for test in run.of("test_drop") if test.told.get("case") == case]
        told = _in_order(_reason(test) for test in tests)
        failed = [test.told["way"] for test in tests if test.outcome != "passed"]
        return " / ".join(told or ["no record"]) + (
            f" ({', '.join(failed)} failed)" if failed else ""
        )

    names = _in_order(
        test.told["case"] for run in runs for test in run.of("test_drop") if "case" in test.told
    )
    return _grid(runs, "cause", names, cell)


def _reason(test: Test) -> str:
    reason, mechanism = test.told["drop.reason"], test.told["netfilter.mechanism"]
    if reason == NOT_TOLD:
        reason = f"`{test.told['drop.location'].partition('+')[0]}`"
    return f"{reason}, {mechanism}" if mechanism else reason


def _lost(runs: Sequence[Run]) -> str:
    """What the last run could tell and another could not."""
    newest = runs[-1]
    return _table(
        ["kernel", "reasons", "nf_tables told from xtables", "hooks"],
        (
            [
                run.kernel,
                f"{_reasons(run)} of {_reasons(newest)}",
                "yes" if any(t.told.get("netfilter.mechanism") == "nf_tables" for t in run.tests)
                else "no",
                ", ".join(_closed(run)) or "all attach",
            ]
            for run in runs
        ),
    )  # fmt: skip


def _reasons(run: Run) -> int:
    """Causes for which the kernel has a reason."""
    told = {
        test.told["case"]
        for test in run.of("test_drop")
        if test.told.get("drop.reason", NOT_TOLD) != NOT_TOLD
    }
    return len(told)


def _closed(run: Run) -> list[str]:
    """Hooks that attach in no way."""
    hooks = _in_order(test.told["hook"] for test in run.of("test_way"))
    shut = [hook for hook in hooks if all(way.told["refused"] for way in _ways(run, hook))]
    return [f"no {hook}" for hook in shut]


def _degraded(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        for test in run.of("test_doctor"):
            for check, value in test.told.items():
                state, detail = json.loads(value)
                if state != "ok":
                    rows.append([run.kernel, check, state, detail])
    return _table(["kernel", "check", "state", "detail"], rows)


def _tests(runs: Sequence[Run]) -> str:
    """Passed of all, by function and way."""

    def row_of(test: Test) -> str:
        way = test.told.get("way", "")
        return test.function.removeprefix("test_").replace("_", " ") + (f", {way}" if way else "")

    def cell(run: Run, name: str) -> str:
        outcomes = [test.outcome for test in run.tests if row_of(test) == name]
        passed = outcomes.count("passed")
        if not outcomes:
            return "–"
        return f"{passed} of {len(outcomes)}" if passed < len(outcomes) else str(passed)

    names = _in_order(row_of(test) for run in runs for test in run.tests)
    return _grid(runs, "test", names, cell)
