"""What the loader is asked to load, and what it answers.

This is the contract between the long-lived process and the worker that holds the compiler.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Program:
    """One BPF object: hooks, settings (bpf/config.h) and filter."""

    hooks: tuple[str, ...]
    """Names in `hooks.HOOKS`."""
    defines: Mapping[str, str] = field(default_factory=dict)
    """Macros of bpf/config.h → their text; an empty text defines the name alone."""
    pcap_match: str = ""
    """C text of the packet filter, or empty."""
    deferred: tuple[str, ...] = ()
    """Those of `hooks` that are loaded, and attached only when asked for."""
    attach: Mapping[str, str] = field(default_factory=dict)
    """Hook → the only way (`hooks.Way.kind`) that may be tried; for tests."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Attached:
    """How one hook was attached."""

    hook: str
    way: str
    target: str
    costs: str = ""
    refused: tuple[str, ...] = ()
    """Ways tried before, and why each was refused."""
    full: bool = False
    """As `hooks.Way.full`."""


@dataclass(frozen=True, slots=True)
class MapInfo:
    """One map of the object; sizes in bytes, of one CPU's value for per-CPU maps."""

    name: str
    kind: int
    """enum bpf_map_type."""
    key_bytes: int
    value_bytes: int
    max_entries: int
