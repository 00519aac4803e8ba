"""Packets and their ways → flat records with a list `hops` (docs/formats.md)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.addresses import address_text
from tracer.analysis.assemble import Assembler, Batch, Path
from tracer.analysis.branches import FLAG, HOP
from tracer.analysis.bridges import bridge_passages
from tracer.analysis.changes import tunnel_of_row
from tracer.analysis.columns import OUTCOMES
from tracer.analysis.conntrack import IP_CT_IS_REPLY, conntrack_fields
from tracer.analysis.drops import drop_record, place_fields
from tracer.analysis.explain import explain
from tracer.analysis.flow_key import KEY_BYTES
from tracer.analysis.names import pod_at, pod_fields, service_fields, who_fields
from tracer.analysis.neighbours import asks_neighbour, neighbour_waits
from tracer.analysis.packet import describe, parse
from tracer.analysis.redirects import filter_fields, filters_by_place, redirects
from tracer.analysis.uncollected import uncollected
from tracer.analysis.untracked import state_without_entry
from tracer.analysis.verdict import duration_ns, end_note, verdict_of
from tracer.layout import layout
from tracer.wall_time import time_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tracer.analysis.columns import Columns, Place
    from tracer.analysis.drops import Context
    from tracer.model import Node, Record

    Explain = Callable[[Record], Record]

__all__ = ["Assembler", "Path", "path_record", "path_records"]

NF_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
NF_HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
HOOKS = {
    HOP.HOP_DEV_QUEUE: "net_dev_queue",
    HOP.HOP_QDISC_ENQUEUE: "qdisc_enqueue",
    HOP.HOP_QDISC_DEQUEUE: "qdisc_dequeue",
    HOP.HOP_DEV_XMIT: "net_dev_start_xmit",
    HOP.HOP_NETIF_RX: "netif_rx",
    HOP.HOP_DEV_RX: "netif_receive_skb",
    HOP.HOP_ROUTE: "fib_table_lookup",
    HOP.HOP_TCP_RECEIVE: "tcp_probe",
    HOP.HOP_COPIED: "skb_copy_datagram_iovec",
    HOP.HOP_RETRANSMIT: "tcp_retransmit_skb",
    HOP.HOP_CONSUMED: "consume_skb",
    HOP.HOP_DROPPED: "kfree_skb",
}
"""The kernel's names of where a hop was seen."""
_DROP_NAMES = ("drop.", "netfilter.", "interface.", "netns", "k8s.pod.", "mark")
_TELLING = frozenset((HOP.HOP_ROUTE, HOP.HOP_DROPPED, HOP.HOP_CONSUMED, HOP.HOP_COPIED))


def path_record(path: Path, context: Context, explained: Explain | None = None) -> Record:
    """One packet as a flat record; `explained` puts the explanation into a drop record.

    By default that is done without evidence. Records of many packets: `path_records`.
    """
    return path_records([path], context, explained)[0]


@uncollected()
def path_records(
    paths: Sequence[Path], context: Context, explained: Explain | None = None
) -> list[Record]:
    """Many packets at once, which is cheaper: they share their batches' columns."""
    views: dict[int, _View] = {}
    for path in paths:
        if id(path.batch) not in views:
            views[id(path.batch)] = _view(path.batch, context)
    return [_record(path, views[id(path.batch)], explained or _explained) for path in paths]


@dataclass(frozen=True, slots=True)
class _View:
    """A batch at one moment, and what is the same for many hops of it."""

    rows: np.ndarray
    columns: Columns
    context: Context
    forms: list[Record]
    """By Columns.form: a hop with all but its numbers; to be copied."""
    telling: list[bool]
    """By Columns.form, whether `_note_end` has something to tell."""
    tuples: np.ndarray
    entries: np.ndarray
    sizes: np.ndarray
    """The fields `tuple`, `ct` and `bytes` of all rows: a field of a struct is slow to take."""
    headers: list[tuple[int, bytes]]
    """Of each packet, as it was first sent: EtherType, and the bytes from its network header on."""
    times: list[str]
    """Of each row, as the records write it."""
    passages: list[dict[int, Record]]
    """Row → what a bridge, or tc, had done."""
    waits: set[int]
    """Rows that waited for the next hop's link address."""


def _view(batch: Batch, context: Context) -> _View:
    forms: list[Record] = []
    telling: list[bool] = []
    filters = filters_by_place(context.node)
    for place, has_delta, has_duration in batch.columns.forms:
        form = {**_place(place, context.node), **filter_fields(place, filters), "time": ""}
        if has_delta:
            form["delta_ns"] = 0
        if has_duration:
            form["duration_ns"] = 0
        forms.append(form)
        telling.append(place[2] in _TELLING)
    rows, headers = batch.rows, _headers(batch)
    fields = rows["tuple"], rows["ct"], rows["bytes"]
    times = time_texts(rows["time_ns"].astype(np.int64) + context.wall_offset_ns)
    sent = redirects(rows, batch.order, context.node, filters)
    bridges = bridge_passages(rows, batch.order, batch.columns, context.node, sent)
    waits = neighbour_waits(rows, batch.order, batch.columns, context.symbol)
    return _View(
        rows, batch.columns, context, forms, telling, *fields, headers, times,
        [told for told in (sent, bridges) if told], waits,
    )  # fmt: skip


def _headers(batch: Batch) -> list[tuple[int, bytes]]:
    first = batch.rows.take(batch.inner)
    room, l3 = first.dtype["packet"].itemsize, layout().constants["L2_BYTES"]
    data = first["packet"].tobytes()
    told = zip(first["tuple"]["ethertype"].tolist(), first["captured_bytes"].tolist(), strict=True)
    return [
        (ethertype, data[at * room + l3 : at * room + min(captured, room)])
        for at, (ethertype, captured) in enumerate(told)
    ]


def _place(key: Place, node: Node) -> Record:
    netns, ifindex, kind, family, hook, outcome = key
    place: Record = {"hook": hook_name(kind, family, hook)}
    if OUTCOMES[outcome]:
        place["verdict"] = OUTCOMES[outcome]
    pod = node.pods.get(node.pod_by_netns.get(netns, ""))
    return {**place, **place_fields(node, netns, ifindex), **pod_fields("", pod)}


@lru_cache(maxsize=65536)
def _conntrack(entry: bytes) -> Record:
    """Fields of a `struct conntrack`; not to be changed."""
    return conntrack_fields(np.frombuffer(entry, layout().structs["conntrack"])[0])


def where(place: Record) -> str:
    """`pod shop/web-0`, `node`, or `netns dv2`, of a hop's fields."""
    name = place.get("k8s.pod.name")
    if name:
        return f"pod {place.get('k8s.pod.namespace', '')}/{name}"
    name = place.get("netns.name")
    return "node" if name == "node" else f"netns {name or place.get('netns', '?')}"


def _record(path: Path, view: _View, explained: Explain) -> Record:
    verdict, last = verdict_of(path, view.context)
    node = view.context.node
    record: Record = {
        "type": "packet",
        "time": view.times[path.start],
        "duration_ns": duration_ns(path, view.context),
        "verdict": verdict,
        "k8s.node.name": node.name,
    }
    packet = _packet(path, view)
    final = _tuple(view.tuples[last].tobytes())
    record.update(_ends(path, view, packet, final, last if verdict == "delivered" else -1))
    record.update(packet)
    record.update(_nat(packet, final) if path.tunnel < 0 else _tunnel(view.rows[path.tunnel]))
    record["packets"], record["bytes"] = 1, int(view.sizes[path.start])
    record["flow"] = path.flow.text or packet["packet"]
    if path.flow.community_id:
        record["network.community_id"] = path.flow.community_id
    entry = int(path.batch.conntrack[path.number])
    if entry >= 0:
        record.update(_conntrack(view.entries[entry].tobytes()))
    elif state := state_without_entry(view.columns.changes, path.start, path.stop):
        record["conntrack.state"] = state
    record.update(service_fields(node, record))
    if path.retransmitted:
        record["tcp.retransmission"] = True
    if verdict == "dropped" and path.drop is not None:
        record.update(_death(path.drop, view.context, explained))
    if path.joined:
        record["inferred"] = True
    missing = _incomplete(path)
    if missing:
        record["incomplete"] = missing
    record["hops"] = _hops(path, view)
    return record


def _hops(path: Path, view: _View) -> list[Record]:
    """The visible hops of a packet by time."""
    columns, part, changes = view.columns, slice(path.start, path.stop), view.columns.changes
    forms, telling = view.forms, view.telling
    hops: list[Record] = []
    told = zip(
        range(path.start, path.stop),
        columns.form[part],
        view.times[part],
        columns.delta_ns[part],
        columns.duration_ns[part],
        columns.absorbed[part],
        strict=True,
    )
    for row, form, time, delta_ns, inside_ns, is_absorbed in told:
        if is_absorbed:
            continue
        hop = forms[form].copy()
        hop["time"] = time
        if delta_ns >= 0:
            hop["delta_ns"] = delta_ns
        if inside_ns >= 0:
            hop["duration_ns"] = inside_ns
        if row in changes:
            text = changes[row]
            hop["changes"] = text if text[0] else [f"crossed into {where(hop)}", *text[1:]]
        for passages in view.passages:
            hop.update(passages.get(row, {}))
        if row in view.waits:
            hop["changes"] = [*hop.get("changes", ()), "waited for the next hop's link address"]
        if telling[form]:
            _note_end(hop, view, row)
        hops.append(hop)
    if columns.branched[path.number]:
        _note_branches(hops, path, columns)
    return hops


def _note_branches(hops: list[Record], path: Path, columns: Columns) -> None:
    """The branch of each hop, and after which hop each branch begins."""
    number: dict[int, int] = {}
    at = -1
    for row in range(path.start, path.stop):
        if columns.absorbed[row]:
            number[row] = number[columns.state[row]]
            continue
        at += 1
        number[row] = at
        before = columns.previous[row]
        hops[at]["branch"] = columns.branch[row]
        if before >= 0 and columns.branch[before] != columns.branch[row]:
            hops[at]["after"] = number[before]


def hook_name(kind: int, nf_family: int, nf_hook: int) -> str:
    """`nf ip FORWARD`, or the kernel's name of the tracepoint, by the fields of a hop_event."""
    if kind in (HOP.HOP_NF_ENTER, HOP.HOP_NF_LEAVE):
        name = NF_HOOKS[nf_hook] if nf_hook < len(NF_HOOKS) else str(nf_hook)
        return f"nf {NF_FAMILIES.get(nf_family, nf_family)} {name}"
    return HOOKS.get(kind, f"hop {kind}")


def _note_end(hop: Record, view: _View, row: int) -> None:
    """Where the packet goes by the routing table, why and by whom it was freed, what was read."""
    columns, context = view.columns, view.context
    netns, _, kind, *_ = columns.place[row]
    if kind == HOP.HOP_ROUTE:
        out = context.node.devices.get((netns, int(columns.out_ifindex[row])))
        if out:
            hop["route.interface.name"] = out.name
    elif kind == HOP.HOP_COPIED:
        hop["copied_bytes"] = int(columns.argument[row])
    else:
        hop["location"] = context.symbol(int(columns.location[row]))
        if kind == HOP.HOP_DROPPED:
            hop["drop.reason"] = context.reason(int(columns.argument[row]))
        elif asks_neighbour(hop["location"]):
            hop["changes"] = [*hop.get("changes", ()), "asks for the next hop's link address"]
        elif note := end_note(hop["location"]):
            hop["changes"] = [*hop.get("changes", ()), note]


def parse_row(row: np.void) -> Record:
    """Fields of the packet as one hop saw it."""
    data = row["packet"].tobytes()[: int(row["captured_bytes"])]
    return parse(int(row["tuple"]["ethertype"]), data[layout().constants["L2_BYTES"] :])


def _packet(path: Path, view: _View) -> Record:
    """Fields of the packet as it was first sent; of one in a tunnel, the inner."""
    packet = parse(*view.headers[path.number])
    if path.starts_here or "src.address" not in packet:
        return packet
    sent = _sent(path.batch.rows[path.inner])
    ends = ("src.address", "dst.address", "src.port", "dst.port")
    if sent and any(sent.get(name, packet.get(name)) != packet.get(name) for name in ends):
        packet |= {name: sent[name] for name in ends if name in sent and name in packet}
        packet["packet"] = describe(packet)
    return packet


def _sent(first: np.void) -> Record:
    """By conntrack, what the sender wrote of a packet that was chosen on its way."""
    entry = first["ct"]
    info = int(entry["info"])
    if not entry["present"] or info % IP_CT_IS_REPLY == 1:  # an ICMP error has no entry of its own
        return {}
    return _tuple(entry["reply" if info >= IP_CT_IS_REPLY else "orig"].tobytes())


@lru_cache(maxsize=65536)
def _tuple(one: bytes) -> Record:
    """Both ends of a `struct tuple`; not to be changed."""
    if not one[KEY_BYTES - 1]:
        return {}
    return {
        "src.address": address_text(one[:16]),
        "dst.address": address_text(one[16:32]),
        "src.port": int.from_bytes(one[32:34], "little"),
        "dst.port": int.from_bytes(one[34:36], "little"),
    }


def _nat(packet: Record, final: Record) -> Record:
    """`nat.…`: what the packet's ends were made into on the way."""
    translated: Record = {}
    for both in _ENDS:
        names = [name for name in both if name in packet]
        if final and any(final[name] != packet[name] for name in names):
            translated |= {f"nat.{name}": final[name] for name in names}
    return translated


_ENDS = (("src.address", "src.port"), ("dst.address", "dst.port"))


def _tunnel(row: np.void) -> Record:
    told: Record = {"tunnel.packet": parse_row(row)["packet"]}
    name, number = tunnel_of_row(row)
    if name:
        told["tunnel.type"] = name
    return told if number is None else {**told, "tunnel.id": number}


def _ends(path: Path, view: _View, packet: Record, final: Record, arrived: int) -> Record:
    """The pods that sent and received: by namespace where it was seen there, else by address."""
    node = view.context.node
    sender = ""
    if path.starts_here:
        sender = node.pod_by_netns.get(view.columns.place[path.start][0], "")
    receiver = node.pod_by_netns.get(view.columns.place[arrived][0], "") if arrived >= 0 else ""
    goal = final.get("dst.address") or packet.get("dst.address", "")
    source = packet.get("src.address", "")
    return {
        **who_fields(node, "src", node.pods.get(sender) or pod_at(node, source)),
        **who_fields(node, "dst", node.pods.get(receiver) or pod_at(node, goal)),
    }


@cache
def _is_of_drop(name: str) -> bool:
    """Whether a field tells of the death, not of the packet."""
    return name.startswith(_DROP_NAMES)


def _death(drop: np.void, context: Context, explained: Explain) -> Record:
    """Place, reason and explanation of a drop."""
    record = explained(drop_record(drop, context, with_stack=True))
    told = {name: value for name, value in record.items() if _is_of_drop(name)}
    told.pop("drop.stack", None)
    return {**told, **{name: record[name] for name in ("explanation", "hint") if name in record}}


def _explained(record: Record) -> Record:
    explanation = explain(record, {})
    return {**record, "explanation": explanation.sentence, "hint": explanation.hint}


def _incomplete(path: Path) -> str:
    """What is known to be missing, in words."""
    told = []
    if not path.batch.rows["flags"][path.start] & FLAG.HOP_FIRST:
        told.append("its beginning was lost, or shown before")
    gaps = path.batch.columns.gaps[path.number]
    if gaps:
        told.append(f"at least {gaps} of its hop records are missing")
    if path.lost:
        told.append(f"{path.lost} hop records were lost meanwhile, perhaps of other packets")
    return "; ".join(told)
