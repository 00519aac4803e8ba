"""The recorder: raw columns and what names their numbers, appended block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from tracer import __version__
from tracer.errors import TracerError
from tracer.files import PieceFile
from tracer.layout import layout
from tracer.recording import blocks
from tracer.recording.columns import describe, pack
from tracer.recording.node_json import node_patch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tracer.analysis.drops import Context
    from tracer.model import Node, Record
    from tracer.recording.rules import EventKey

CHUNK_BYTES = 1 << 20
"""Most of a batch in one block, before compression: what fits a CPU's cache is packed fastest."""

_ADDRESSES = ("location", "stack")
"""Fields that hold kernel addresses, of every struct that has them."""


class Recorder:
    """Appends batches; whatever ends the process, all whole batches before can be read."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        """Begin a recording; `header`: JSON values that tell what was asked for, `command` first.

        Raises TracerError for a path that cannot be written or holds something else.
        """
        self._file = PieceFile(path, blocks.MAGIC)
        self._encoder = blocks.Encoder()
        self._kinds: dict[tuple[str, np.dtype[Any]], int] = {}
        self._node: Node | None = None
        self._symbols: dict[int, str] = {}
        self._reasons: Mapping[int, str] = {}
        self._wall_offset_ns: int | None = None
        self._evidence: dict[int, dict[str, str]] = {}
        self._rules: dict[bytes, int] = {}
        self._rows = 0
        self._is_whole = True
        enums = {
            name: {member.name: member.value for member in enum}
            for name, enum in layout().enums.items()
        }
        own = {"tracer": __version__, "enums": enums}
        self._append(blocks.MAGIC + self._json(blocks.HEAD, {**header, **own}))

    def record(self, kind: str, array: np.ndarray, context: Context) -> None:
        """Write a batch with what `context` knows of it: all that a live command has to call."""
        names = {
            address: context.symbol(address)
            for address in addresses(array)
            if address not in self._symbols
        }
        self.context(context.node, names, context.reasons, context.wall_offset_ns)
        self.write(kind, array)

    def write(self, kind: str, array: np.ndarray) -> None:
        """Append a batch of records, one-dimensional and of any structured dtype; may be empty.

        `kind` says what they are: `hops` (hop_event), `drops` (drop_event).
        """
        if not len(array):
            return
        index = self._index(kind, array.dtype)
        rows = max(1, CHUNK_BYTES // array.dtype.itemsize)
        for at in range(0, len(array), rows):
            payload = index.to_bytes(4, "little") + pack(array[at : at + rows])
            self._append(self._encoder.encode(blocks.ROWS, payload))
        self._rows += len(array)

    def context(
        self,
        node: Node,
        symbols: Mapping[int, str],
        reasons: Mapping[int, str],
        wall_offset_ns: int,
    ) -> None:
        """What the batches from here on are read with; only what changed is written.

        `symbols` (kernel address → name) adds to those given before.
        """
        change: dict[str, Any] = {}
        if node is not self._node:
            change["node"] = node_patch(self._node, node)
        fresh = {at: name for at, name in symbols.items() if self._symbols.get(at) != name}
        if fresh:
            change["symbols"] = {str(at): name for at, name in fresh.items()}
        if reasons is not self._reasons and reasons != self._reasons:
            change["reasons"] = {str(value): name for value, name in reasons.items()}
        if wall_offset_ns != self._wall_offset_ns:
            change["wall_offset_ns"] = wall_offset_ns
        if any(change.values()):
            self._append(self._json(blocks.CONTEXT, change))
        self._node, self._reasons, self._wall_offset_ns = node, reasons, wall_offset_ns
        self._symbols.update(fresh)

    def evidence(self, netns: int, values: Mapping[str, str]) -> None:
        """Sysctls as they were read just now in a network namespace: they prove explanations."""
        known = self._evidence.setdefault(netns, {})
        fresh = {name: value for name, value in values.items() if known.get(name) != value}
        if fresh:
            self._append(self._json(blocks.EVIDENCE, {"netns": netns, "values": fresh}))
            known.update(fresh)

    def rules(self, told: Sequence[tuple[EventKey, Record | Sequence[Record]]]) -> None:
        """Which rules were found behind events: the fields of a drop, or a hop's list of rules."""
        named: list[tuple[int, int, int]] = []
        fresh: dict[str, object] = {}
        for (time_ns, skb), fields in told:
            text = orjson.dumps(fields)
            number = self._rules.get(text)
            if number is None:
                number = self._rules[text] = len(self._rules)
                fresh[str(number)] = fields
            named.append((time_ns, skb, number))
        if named:
            self._append(self._json(blocks.RULES, {"fields": fresh, "of": named}))

    def lost(self, source: str, count: int) -> None:
        """Note that `count` more events of `source` were lost."""
        self._append(self._json(blocks.LOST, {"source": source, "count": count}))

    def close(self) -> None:
        """End the recording: a reader knows then that it is whole, unless a write has failed.

        TracerError on a full disk. May be called twice.
        """
        if self._is_whole:
            self._append(self._json(blocks.DONE, {"rows": self._rows}))
        self._is_whole = False
        self._file.close()

    def _append(self, block: bytes) -> None:
        try:
            self._file.append(block)
        except TracerError:
            self._is_whole = False
            raise

    def _index(self, kind: str, dtype: np.dtype[Any]) -> int:
        index = self._kinds.get((kind, dtype))
        if index is None:
            index = self._kinds[kind, dtype] = len(self._kinds)
            self._append(self._json(blocks.KIND, {"kind": kind, "fields": describe(dtype)}))
        return index

    def _json(self, tag: bytes, value: object) -> bytes:
        return self._encoder.encode(tag, orjson.dumps(value))


def addresses(array: np.ndarray) -> list[int]:
    """The kernel addresses in a batch, each once, without 0."""
    fields = [array[name].ravel() for name in _ADDRESSES if name in (array.dtype.names or ())]
    found: set[int] = set().union(*(np.unique(field).tolist() for field in fields))
    return sorted(found - {0})
