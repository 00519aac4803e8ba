"""The figures of benchmarks/overhead: as JSON values, as tables, and against the bars."""

from __future__ import annotations

import os
import statistics
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from figures import Estimate, estimate
from traffic import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from overhead import Samples
    from traffic import Reading

OFF = "off"
BY_BYTES = {kind.name for kind in KINDS if kind.by_bytes}
RATIOS: Mapping[str, tuple[str, Callable[[Reading, Reading], float | None]]] = {
    # figure: title, and the percentage of one look at a tool and the one without
    "slower_percent": (
        "slower %: packets, connections or bytes a second",
        lambda tool, off: 100 * (1 - tool.speed / off.speed),
    ),
    "p99_percent": (
        "p99 of a round trip, more %",
        lambda tool, off: 100 * (tool.p99_ns / off.p99_ns - 1) if off.p99_ns else None,
    ),
    "node_cpu_percent": (
        "CPU of the node for a packet, connection or byte, more %",
        lambda tool, off: 100 * (tool.node_cpu_ns / off.node_cpu_ns - 1),
    ),
}
ONE = (
    "tool",
    "programs ns a packet",
    "of udp %",
    "runs a packet",
    "CPU %",
    "idle CPU %",
    "RSS MB",
)

BARS = (
    # tool, figure, kind of traffic, the most it may be
    ("drops", "slower_percent", "udp", 1.0),
    ("flows", "slower_percent", "udp", 5.0),
    ("flows", "slower_percent", "udp-two", 3.0),
    ("flows", "slower_percent", "iperf-udp", 3.0),
    ("flows", "slower_percent", "iperf-1", 1.0),
    ("flows", "slower_percent", "iperf-8", 1.0),
    ("flows", "slower_percent", "iperf-64", 1.0),
    ("trace", "slower_percent", "udp", 3.0),
    ("trace-standby", "slower_percent", "udp", 3.0),
    ("trace-sampled", "slower_percent", "udp-long", 5.0),
    ("drops", "percent_of_baseline", "udp", 1.0),
    ("flows", "percent_of_baseline", "udp", 5.0),
    ("flows", "ns_per_run", "udp", 90.0),
    ("drops", "rss_mb", None, 120.0),
    ("flows", "rss_mb", None, 120.0),
    ("drops", "idle_cpu_percent", None, 0.5),
    ("flows", "idle_cpu_percent", None, 0.5),
)


def ratios(figure: str, kind: str, tool: Samples, off: Samples) -> Estimate | None:
    """How much more, or slower, round by round; None for what this traffic does not tell."""
    percent = RATIOS[figure][1]
    pairs = zip(tool.readings[kind], off.readings[kind], strict=True)
    values = [value for one, without in pairs if (value := percent(one, without)) is not None]
    return estimate(values) if values else None


def baseline(off: Samples) -> dict[str, Any]:
    """What the traffic did without a tool, by kind."""
    made = {}
    for kind, readings in off.readings.items():
        speed = statistics.median(one.speed for one in readings)
        made[kind] = {
            "speed": speed,
            "ns_per_unit": 1e9 / speed,
            "p99_ns": statistics.median(one.p99_ns for one in readings),
            "node_cpu_ns_per_unit": statistics.median(one.node_cpu_ns for one in readings),
        }
    return made


def report(samples: Mapping[str, Samples], empty_ns: float | None) -> dict[str, Any]:
    """The figures as JSON values; `empty_ns` None: the programs' own time was not measured."""
    off = samples[OFF]
    base = baseline(off)
    result: dict[str, Any] = {
        "kernel": os.uname().release,
        "cpus": os.cpu_count(),
        "rounds": max(map(len, off.readings.values())),
        "empty_program_ns": empty_ns,
        "baseline": base,
        "tools": {},
    }
    for name, tool in samples.items():
        if name == OFF:
            continue
        found: dict[str, Any] = {
            "direct": _direct(tool, base),
            "cpu_percent": statistics.median(tool.cpu_percent),
            "idle_cpu_percent": tool.idle_cpu_percent,
            "rss_mb": tool.rss_bytes / 1e6,
        }
        for figure in RATIOS:
            by_kind = ((kind, ratios(figure, kind, tool, off)) for kind in off.readings)
            found[figure] = {kind: asdict(value) for kind, value in by_kind if value}
        result["tools"][name] = found
    return result


def _direct(tool: Samples, base: Mapping[str, Any]) -> dict[str, Any]:
    made = {}
    for mode, direct in tool.direct.items():
        made[mode] = {**asdict(direct)}
        if direct.runs_per_packet:
            made[mode]["ns_per_run"] = direct.ns_per_packet / direct.runs_per_packet
        if mode in base:
            made[mode]["percent_of_baseline"] = (
                100 * direct.ns_per_packet / base[mode]["ns_per_unit"]
            )
    return made


def judge(result: Mapping[str, Any]) -> list[str]:
    """The bars that are missed, one line each; what was not measured has none."""
    missed = []
    for name, figure, kind, most in BARS:
        value = _value(result["tools"].get(name, {}), figure, kind)
        if value is not None and value > most:
            of = f" of {kind}" if kind else ""
            missed.append(f"{name}: {figure}{of} {value:.2f} is over {most:g}")
    return missed


def _value(tool: Mapping[str, Any], figure: str, kind: str | None) -> float | None:
    if not tool or kind is None:
        return tool.get(figure)
    if figure in RATIOS:
        found = tool[figure].get(kind)
        return found["median"] if found else None
    return tool["direct"].get(kind, {}).get(figure)


def tables(result: Mapping[str, Any]) -> str:
    """The figures as tables in Markdown."""
    empty_ns = result["empty_program_ns"]
    where = f"kernel {result['kernel']}, {result['cpus']} CPUs, {result['rounds']} rounds"
    parts = [
        where + (f"; an empty program shows {empty_ns:.0f} ns" if empty_ns else ""),
        _without(result["baseline"]),
    ]
    parts += [f"{RATIOS[figure][0]}:\n\n{_grid(result, figure)}" for figure in RATIOS]
    parts.append(_rows(ONE, [(name, *_one(tool)) for name, tool in result["tools"].items()]))
    return "\n\n".join(parts)


def _without(base: Mapping[str, Any]) -> str:
    """What each kind of traffic is without a tool."""
    rows = []
    for kind, one in base.items():
        speed = f"{one['speed'] / 1e9:.2f} GB/s" if kind in BY_BYTES else f"{one['speed']:.0f} /s"
        each = "–" if kind in BY_BYTES else f"{one['ns_per_unit']:.0f}"
        rows.append((kind, speed, each, f"{one['p99_ns'] / 1000:.1f}" if one["p99_ns"] else "–"))
    return _rows(("without a tool", "speed", "ns each", "p99 µs"), rows)


def _grid(result: Mapping[str, Any], figure: str) -> str:
    """One figure: a row a tool, a column a kind of traffic."""
    kinds = [k for k in result["baseline"] if any(k in t[figure] for t in result["tools"].values())]
    text = "{median:.1f} [{low:.1f}, {high:.1f}]"
    rows = [
        (name, *(text.format(**tool[figure][kind]) for kind in kinds))
        for name, tool in result["tools"].items()
    ]
    return _rows(("tool", *kinds), rows) if kinds else "not timed"


def _one(tool: Mapping[str, Any]) -> tuple[str, ...]:
    direct = tool["direct"].get("udp", {})

    def number(value: float | None, digits: int) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    return (
        number(direct.get("ns_per_packet"), 0),
        number(direct.get("percent_of_baseline"), 2),
        number(direct.get("runs_per_packet"), 2),
        number(tool["cpu_percent"], 1),
        number(tool["idle_cpu_percent"], 2),
        number(tool["rss_mb"], 0),
    )


def _rows(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(line)} |" for line in (head, *rows)]
    return "\n".join([lines[0], "|" + "-|" * len(head), *lines[1:]])
