"""Packets for a person: a tree each, hop by hop, and tables of where the time went."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from tracer.sinks.terminal import (
    BOLD,
    CYAN,
    DIM,
    GREEN,
    RED,
    YELLOW,
    Lines,
    Terminal,
    clock,
    cut,
    print_table,
    span,
    terminal_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tracer.model import Record
    from tracer.sinks.output import Output

_COLOURS = {"dropped": RED, "delivered": GREEN, "forwarded": GREEN, "unknown": YELLOW}
_BARS = " ▁▂▃▄▅▆▇█"
_COPIES = ("clone", "segment")
"""How branches begin; said where they leave the others."""
_FLOWS, _STEPS = 20, 20
"""Rows of the tables at the end; -o json has all."""
_WIDTHS = (10, 23, 8)
"""Columns of a hop: time since the hop before, hook, device."""


class Tree(Lines):
    """One tree a packet; a run of latency records becomes tables."""

    def _lines(self, records: Sequence[Record]) -> list[str]:
        lines: list[str] = []
        for record in records:
            if record["type"] == "packet":
                lines += self._packet(record)
        return lines + summary(records, self._terminal)

    def _packet(self, record: Record) -> list[str]:
        wrap, paint = self._terminal.wrap, self._terminal.paint
        verdict, packet = record["verdict"], record.get("packet", "")
        head = f"{clock(record['time'])} {packet} {record['bytes']} B: "
        told = f"{verdict} after {span(record['duration_ns'])}"
        if len(head) + len(told) <= self._terminal.columns:
            colour = _COLOURS.get(verdict, "")
            lines = [paint(head, BOLD) + paint(told, colour)]
        else:
            lines = [paint(line, BOLD) for line in wrap(head + told, "", "  ")]
        lines += [paint(line, DIM) for text in notes(record) for line in wrap(text, "  ")]
        lines += self._branch(_branches(record["hops"]), 0, " ")
        if "explanation" in record:
            why = f"{record.get('drop.reason', '')}: {record['explanation']}"
            lines += [paint(line, RED) for line in wrap(why, "  ")]
        return [*lines, *self._hint(record.get("hint", ""), "  "), ""]

    def _branch(self, branches: _Branches, number: int, bars: str) -> list[str]:
        """Hops of one branch under the places where they were, its own branches among them."""
        lines: list[str] = []
        place = ""
        for at, hop in branches.hops[number]:
            here = where(hop)
            if here != place:
                lines.append(f"{bars}{self._terminal.paint(here, CYAN)}")
                place = here
            lines += self._hop(hop, f"{bars}│")
            for child in branches.forks.get(at, ()):
                lines.append(f"{bars}├─ {_made(branches.hops[child][0][1])}")
                lines += self._branch(branches, child, f"{bars}│  ")
        return lines

    def _hop(self, hop: Record, bars: str) -> list[str]:
        delta, hook, device = _WIDTHS
        since = f"+{span(hop['delta_ns'])}" if "delta_ns" in hop else ""
        name = hop.get("interface.name") or str(hop.get("interface.index", ""))
        head = f"{bars}{since:>{delta}}  {hop['hook']:<{hook}} {name:<{device}} "
        text = ", ".join(hop_notes(hop))
        lines = self._terminal.wrap(text, head, bars + " " * (len(head) - len(bars)))
        lines = lines or [head.rstrip()]
        rules = rule_words(hop)
        if rules:
            lines.append(cut(f"{bars}{' ' * (delta + 2)}{rules}", self._terminal.columns))
        dead = hop["hook"] == "kfree_skb" or hop.get("verdict") == "drop"
        return [self._terminal.paint(line, RED if dead else "") for line in lines]


MIN_ENDS = 12
"""Columns below which a brief line rather leaves pods or NAT out."""


class Brief(Tree):
    """One line a packet."""

    def _packet(self, record: Record) -> list[str]:
        verdict = f"{record['verdict']:<9}"
        time, took = clock(record["time"]), f"{span(record['duration_ns']):>8}"
        packet, fate = record.get("packet", ""), _fate(record)
        full = self._terminal.columns - len(f"{time} {verdict} {took} ")
        # The packet and its fate count for more than NAT, and that for more than the pods' names.
        room = full - len(f"{packet} {fate}")
        nat = _fitting(" ".join(f"as {text}" for text in translated(record)), room - 1)
        pods = _fitting(ends(record), room - len(nat) - 2)
        words = cut(" ".join(filter(None, (pods, packet, nat, fate))), full)
        painted = self._terminal.paint(verdict, _COLOURS.get(record["verdict"], ""))
        return [f"{time} {painted} {took} {words}"]


def _fate(record: Record) -> str:
    """Why it died and where, unless the arrow between the pods names that; and what is unsure."""
    words = [record["drop.reason"]] if "drop.reason" in record else []
    place = where(record)
    if words and place.removeprefix("pod ") not in ends(record):
        words.append(f"in {place}")
    return " ".join(words + [word for word in ("inferred", "incomplete") if word in record])


def _fitting(text: str, room: int) -> str:
    """`text` cut to `room`, or nothing where too little of it would be left."""
    return cut(text, room) if room >= MIN_ENDS else ""


def _made(first: Record) -> str:
    """What a branch is, by its first hop."""
    return next((text for text in _COPIES if text in first.get("changes", ())), "clone")


class _Branches:
    """Hops by branch, and where each branch begins."""

    def __init__(self, hops: Sequence[Record]) -> None:
        self.hops: dict[int, list[tuple[int, Record]]] = {0: []}
        self.forks: dict[int, list[int]] = {}
        for at, hop in enumerate(hops):
            number = hop.get("branch", 0)
            if "after" in hop:
                self.forks.setdefault(hop["after"], []).append(number)
            self.hops.setdefault(number, []).append((at, hop))


def _branches(hops: Sequence[Record]) -> _Branches:
    return _Branches(hops)


def where(fields: Record) -> str:
    """`pod shop/web-0`, `node` or `netns dv2`."""
    pod = fields.get("k8s.pod.name")
    if pod:
        return f"pod {fields.get('k8s.pod.namespace', '')}/{pod}"
    name = fields.get("netns.name")
    return "node" if name == "node" else f"netns {name or fields.get('netns', '(unknown)')}"


def ends(record: Record) -> str:
    """`shop/client-0 → shop/web-0`; empty when neither pod is known."""
    names = [
        "/".join(record[f"k8s.{end}.{part}"] for part in ("namespace", "pod.name")
                 if f"k8s.{end}.{part}" in record)
        for end in ("src", "dst")
    ]  # fmt: skip
    return f"{names[0] or '(no pod)'} → {names[1] or '(no pod)'}" if any(names) else ""


def translated(record: Record) -> list[str]:
    """What NAT made of the packet, or the tunnel it was in."""
    if "tunnel.packet" in record:
        name = f"{record.get('tunnel.type', 'tunnel')} {record.get('tunnel.id', '')}".rstrip()
        return [f"{record['tunnel.packet']} ({name})"]
    if not any(name.startswith("nat.") for name in record):
        return []
    both = []
    for end in ("src", "dst"):
        address, port = (
            record.get(f"nat.{end}.{part}", record.get(f"{end}.{part}"))
            for part in ("address", "port")
        )
        text = f"[{address}]" if ":" in str(address) and port is not None else str(address)
        both.append(text if port is None else f"{text}:{port}")
    return [" → ".join(both)]


def notes(record: Record) -> Iterator[str]:
    """Lines under a packet's head: pods, NAT, and how sure all of it is."""
    first = [text for text in (ends(record), *(f"as {one}" for one in translated(record))) if text]
    if first:
        yield ", ".join(first)
    if record["flow"] not in record.get("packet", ""):
        yield f"of {record['flow']}"
    if record.get("tcp.retransmission"):
        yield "retransmission: these bytes were sent before"
    if "incomplete" in record:
        yield f"incomplete: {record['incomplete']}"


def hop_notes(hop: Record) -> list[str]:
    """What is worth telling of a hop, besides when and where."""
    told = [text for text in hop.get("changes", ()) if not text.startswith("crossed into ")]
    told = [text for text in told if text not in _COPIES]
    if "bridge.name" in hop:
        told.append(_bridge(hop))
    if "tc.redirect.action" in hop:
        told.append(_redirect(hop))
    if "tc.filters" in hop:
        side = "ingress" if hop["hook"] == "netif_receive_skb" else "egress"
        told.append(f"tc {side}: {', '.join(hop['tc.filters'])}")
    if "route.interface.name" in hop:
        told.append(f"to {hop['route.interface.name']}")
    if "copied_bytes" in hop:
        told.append(f"{hop['copied_bytes']} bytes read")
    if "drop.reason" in hop:
        told.insert(0, hop["drop.reason"])
    if hop.get("verdict", "accept") != "accept":
        told.insert(0, hop["verdict"])
    if "location" in hop:
        told.append(f"by {hop['location']}")
    if hop.get("duration_ns"):
        told.append(f"took {span(hop['duration_ns'])}")
    return told


def _bridge(hop: Record) -> str:
    """`bridge cni0: forwarded veth1 → veth2`."""
    name, action = hop["bridge.name"], hop["bridge.action"]
    words = "delivered locally" if action == "delivered" else action
    if action != "in":
        words += f" {hop.get('bridge.port', name)} → {hop['interface.name']}"
    return f"bridge {name}: {words}"


def _redirect(hop: Record) -> str:
    """`redirected by tc at lxc1 ingress (bpf cil_from_container id 7)`."""
    action, peer = hop["tc.redirect.action"], hop.get("tc.redirect.peer")
    words = f"redirected to the peer of {peer}" if peer else action
    place = f"{hop.get('tc.redirect.interface.name', '')} {hop['tc.redirect.hook']}".lstrip()
    by = hop.get("tc.redirect.filters")
    words += f" by tc at {place}" + (f" ({'; '.join(by)})" if by else "")
    return f"{words}, inferred" if hop.get("tc.redirect.inferred") else words


def rule_words(hop: Record) -> str:
    """The rules that changed or decided a packet at a hop; empty where only policies did."""
    told = []
    for rule in hop.get("rules", ()):
        if "netfilter.policy" in rule and rule["netfilter.policy"] == "accept":
            continue
        does = ", ".join(rule.get("netfilter.changes", ())) or rule["netfilter.verdict"]
        words = f"{does} by {rule['netfilter.table']} {rule['netfilter.chain']}"
        names = [rule.get(f"netfilter.object.{part}") for part in ("namespace", "name")]
        name = "/".join(filter(None, names))
        told.append(f"{words} ({rule['netfilter.object.kind']} {name})" if name else words)
    return f"rules: {'; '.join(told)}" if told else ""


def summary(records: Sequence[Record], terminal: Terminal) -> list[str]:
    """Tables of the latency records among `records`, and what the end record says."""
    rows = [record for record in records if record["type"] == "latency"]
    lines: list[str] = []
    for title, kinds, most in (("flow", ("way",), _FLOWS), ("hop", ("step", "hook"), _STEPS)):
        chosen = [row for row in rows if row.get("latency.of") in kinds]
        if kinds != ("way",):  # where most of the time went
            chosen.sort(key=lambda row: -row["p50_ns"] * row["packets"])
        if chosen:
            lines += print_table(_table(title, chosen[:most]), terminal).rstrip().splitlines()
        if len(chosen) > most:
            lines.append(f"… and {len(chosen) - most} more: -o json has them")
    for record in records:
        if record["type"] == "end":
            lines.append(_end(record))
    return lines


def _table(title: str, rows: Sequence[Record]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column(title, overflow="fold", ratio=1)
    for name in ("packets", "p50", "p90", "p99", "max"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("ns, by powers of 2", no_wrap=True)
    for row in rows:
        place, goal = row["latency.from"], row["latency.to"]
        if row["latency.of"] == "way":
            name = f"{row['flow']}, {place}: {goal}"
        else:
            name = f"inside {place}" if place == goal else _step(place, goal)
        figures = (span(row[f"{name}_ns"]) for name in ("p50", "p90", "p99", "max"))
        table.add_row(name, str(row["packets"]), *figures, bars(row["histogram"]))
    return table


def _step(place: str, goal: str) -> str:
    """From one hop to the next; where both are is said once."""
    hook, _, here = place.partition(" in ")
    following, _, there = goal.partition(" in ")
    return f"{hook} → {following} in {here}" if here == there else f"{place} → {goal}"


def bars(histogram: dict[str, int]) -> str:
    """`512 ▂█▁ 2048`: counts by power of two, between the least and the greatest."""
    powers = {max(0, int(least).bit_length() - 1): count for least, count in histogram.items()}
    low, high, most = min(powers), max(powers), max(powers.values())
    counts = [powers.get(power, 0) for power in range(low, high + 1)]
    drawn = "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] for count in counts)
    return f"{1 << low} {drawn} {1 << high}"


def _end(record: Record) -> str:
    lost = ", ".join(f"{count} of {source}" for source, count in record.get("lost", {}).items())
    text = f"{record.get('packets', 0)} packets followed, {record.get('shown', 0)} shown"
    if "bursts" in record:
        rate = f"{record['sample.rate']:,}" if "sample.rate" in record else "an unknown number"
        text += f"; in {record['bursts']} bursts one of {rate} was looked at"
    return f"{text}; lost: {lost}" if lost else text


def open_sink(output: Output) -> Tree:
    """Write trees to `output`: coloured on a terminal, unless NO_COLOR is set."""
    return Tree(output, terminal_of(output))
