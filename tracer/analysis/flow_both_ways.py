"""Flow counts of one interval → tables of connections, both directions in one record."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tracer.analysis.connections import Details, Linked, link
from tracer.analysis.flow_columns import by_time, flags_column, flow_columns
from tracer.analysis.flow_details import detail_columns
from tracer.analysis.flow_ends import Ends, Pods
from tracer.analysis.flow_pairs import Pairs, pair
from tracer.analysis.flows import sum_flows
from tracer.flow_table import FIELDS, Column, FlowTable
from tracer.flow_table import table as as_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracer.analysis.connections import Hashes, Rows
    from tracer.analysis.drops import Context

REVERSE = "flow.reverse."
"""Begins the names of what the answers have; without it they are those of a flow."""


def connection_tables(
    keys: np.ndarray, counts: np.ndarray, context: Context, details: Details, own: Hashes
) -> Iterator[FlowTable]:
    """The same as `flow_tables`, a row a connection; `own` as `flow_pairs.here` has it.

    Of the entries of `details` the newest count, and older ones where there is none. Sums have each
    packet once, at the end that `flow_pairs` chooses; who sends again, and the time that packets
    between two pods take, is told of both.
    """
    keys, totals = sum_flows(keys, counts)
    linked = link(keys, totals["syn_ns"], details)
    pairs = pair(keys, totals["retransmits"], linked, details.entries, own)
    totals = totals.copy()  # they may be those of the caller
    for name in ("packets", "bytes"):
        totals[name][pairs.untold] = 0
    there, back = (
        _side(totals, near, far)
        for near, far in ((pairs.there, pairs.far_there), (pairs.back, pairs.far_back))
    )
    whole = _spanning(there, back)
    asked, answered = _linked(pairs, linked)
    pods = Pods(context.node)
    for rows in by_time(whole):
        told = pairs.keys[rows]
        columns = flow_columns(told, whole[rows], asked.at(rows), context, pods, details)
        columns |= _reverse_columns(back[rows], answered.at(rows), Ends(told["tuple"]))
        columns["flow.both_here"] = Column(pairs.both_here[rows], None, pairs.both_here[rows])
        yield as_table(len(rows), columns)


def _side(totals: np.ndarray, near: Rows, far: Rows) -> np.ndarray:
    """(n,) flow_count of one direction, 0 where it was not seen."""
    padded = np.concatenate((totals, np.zeros(1, totals.dtype)))
    other = padded[far]
    side: np.ndarray = padded[near]
    # What the sender's TCP knows is told at its own device only.
    side["retransmits"] += other["retransmits"]
    side["rtt_us"] = np.where(side["rtt_us"] > 0, side["rtt_us"], other["rtt_us"])
    return side


def _spanning(there: np.ndarray, back: np.ndarray) -> np.ndarray:
    """`there`, from the first packet either way to the last."""
    whole: np.ndarray = there.copy()
    first = np.minimum(there["first_ns"], back["first_ns"])
    either = np.maximum(there["first_ns"], back["first_ns"])
    whole["first_ns"] = np.where(first > 0, first, either)
    for name in ("last_ns", "sample_rate"):
        whole[name] = np.maximum(there[name], back[name])
    return whole


def _linked(pairs: Pairs, linked: Linked) -> tuple[Linked, Linked]:
    """What belongs to each of both directions."""
    seen = pairs.there >= 0
    both = linked.at(np.where(seen, pairs.there, pairs.back))
    transit = np.append(linked.transit, -1)
    there, back = (
        np.maximum(transit[near], transit[far])
        for near, far in ((pairs.there, pairs.far_there), (pairs.back, pairs.far_back))
    )
    reply = both.reply == seen
    return replace(both, reply=reply, transit=there), replace(both, transit=back)


def _reverse_columns(back: np.ndarray, linked: Linked, ends: Ends) -> dict[str, Column]:
    columns = {
        "packets": Column(back["packets"]),
        "bytes": Column(back["bytes"]),
        "tcp.flags": flags_column(back, ends),
        **detail_columns(back, linked, ends),
    }
    named = {f"{REVERSE}{name}": column for name, column in columns.items()}
    return {name: column for name, column in named.items() if name in FIELDS}
