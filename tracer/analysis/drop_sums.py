"""Drop counts of the kernel as a flow table, by pod and reason: what metrics add up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracer.analysis.drops import place_fields
from tracer.analysis.names import who_fields
from tracer.analysis.selection import owner
from tracer.flow_table import Column, FlowTable, coded, constant, table

if TYPE_CHECKING:
    import numpy as np

    from tracer.analysis.drops import Context

_WHOSE = "k8s.pod.namespace", "k8s.pod.name", "k8s.owner.kind", "k8s.owner.name", "netns.name"


def drop_sums(keys: np.ndarray, counts: np.ndarray, context: Context) -> FlowTable:
    """One dropped flow a key: `keys` (n,) drop_key, `counts` (n, cpus) drop_count.

    Whose: the pod, or where there is none the network namespace.
    """
    node, rows = context.node, len(keys)
    whose = [
        who_fields(node, "", owner(node, key)) or place_fields(node, int(key["netns"]), 0)
        for key in keys
    ]
    return table(
        rows,
        {
            "type": constant("flow", rows),
            "verdict": constant("dropped", rows),
            **{name: coded([one.get(name) for one in whose]) for name in _WHOSE},
            "drop.reason": coded([context.reason(int(key["reason"])) for key in keys]),
            "packets": Column(counts["packets"].sum(axis=1)),
            "bytes": Column(counts["bytes"].sum(axis=1)),
        },
    )
