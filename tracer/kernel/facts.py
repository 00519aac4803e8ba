"""What user space must know of the running kernel's types, read from its BTF. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracer.kernel.btf import ENUMS, RECORDS, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracer.kernel.btf import Btf, Type

TRACEPOINT_PREFIX = "btf_trace_"
CORE_PREFIX = "SKB_DROP_REASON_"
# In `enum skb_drop_reason`, but not reasons: the mask, and the count (5.17 to 6.3 and later).
_NOT_REASONS = frozenset({"SKB_DROP_REASON_MAX", "SKB_DROP_REASON_SUBSYS_MASK"})
_SUBSYS_SHIFT = 16


def tracepoints(btf: Btf) -> dict[str, tuple[str, ...]]:
    """Raw tracepoint → C types of its arguments after `void *__data`, sorted by name."""
    found = {}
    for typedef in btf.named(prefix=TRACEPOINT_PREFIX):
        pointer = btf.strip(typedef.id)
        prototype = btf.strip(pointer.target)
        if pointer.kind is Kind.PTR and prototype.kind is Kind.FUNC_PROTO:
            arguments = tuple(c_type(btf, param) for param in prototype.params[1:])
            found[typedef.name.removeprefix(TRACEPOINT_PREFIX)] = arguments
    return dict(sorted(found.items()))


def c_type(btf: Btf, type_id: int) -> str:
    """Name a type in C, without qualifiers: `struct sk_buff *`, `enum skb_drop_reason`."""
    bare = btf.strip(type_id, typedefs=False)
    if bare.kind is Kind.PTR:
        target = c_type(btf, bare.target)
        return f"{target}*" if target.endswith("*") else f"{target} *"
    if bare.kind is Kind.ARRAY:
        return f"{c_type(btf, bare.target)}[{bare.length}]"
    if bare.kind is Kind.FUNC_PROTO:
        return "void (void)"
    keyword = _keyword(bare)
    return f"{keyword} {bare.name or '{}'}" if keyword else bare.name


def _keyword(bare: Type) -> str:
    if bare.kind is Kind.FWD:
        return "union" if bare.flag else "struct"
    if bare.kind in RECORDS:
        return bare.kind.name.lower()
    return "enum" if bare.kind in ENUMS else ""


def drop_reasons(btf: Btf) -> Mapping[int, str]:
    """Drop reason → its name; empty when this kernel has no `enum skb_drop_reason`.

    Core reasons lose `SKB_DROP_REASON_`. A subsystem's enum is one whose values carry the
    number of a subsystem in their high half (net/dropreason.h); its names stay as they are,
    but for the underscores that make mac80211's private (the kernel prints them without).
    """
    core = btf.find("skb_drop_reason", ENUMS)
    if core is None:
        return {}
    subsystems = btf.find("skb_drop_reason_subsys", ENUMS)
    numbers = {value for _, value in subsystems.values if value} if subsystems else set()
    reasons = {
        value: name.removeprefix(CORE_PREFIX)
        for name, value in core.values
        if name not in _NOT_REASONS
    }
    for enum in btf.named(suffix="_drop_reason"):
        if enum.kind in ENUMS and enum.name != core.name:
            for name, value in enum.values:
                if value >> _SUBSYS_SHIFT in numbers:
                    reasons.setdefault(value, name.lstrip("_"))
    return dict(sorted(reasons.items()))
