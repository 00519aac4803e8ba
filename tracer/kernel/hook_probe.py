"""How each hook would attach here: an empty program, attached for an instant, way by way."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from tracer.errors import TracerError
from tracer.kernel import headers, libbpf
from tracer.kernel.attach import attach, load_plain
from tracer.kernel.hooks import FEXIT, HOOKS, KRETPROBE, NETFILTER, RAW, Hook, Way
from tracer.kernel.probe import load_empty


@dataclass(frozen=True, slots=True)
class HookProbe:
    """What was found out about one hook."""

    hook: Hook
    way: Way | None
    """The first way that works here; None when none does."""
    tried: bool
    """False without the right to load programs: `way` is then what BTF promises."""
    refused: tuple[str, ...] = ()
    """`way: why not`, of each way before `way`."""


def probe_hooks() -> tuple[HookProbe, ...]:
    """Probe every hook of the table, in its order. Nothing stays attached."""
    if may_load():
        return tuple(_probe(hook) for hook in HOOKS)
    known = _targets()
    return tuple(_promise(hook, known) for hook in HOOKS)


def may_load() -> bool:
    """Whether this process may load programs, so that ways can be tried."""
    try:
        os.close(load_empty())
    except (OSError, TracerError):
        return False
    return True


def refusal(way: Way) -> str:
    """Why `way` is closed here; empty when an empty program could be loaded and attached."""
    try:
        if way.kind == NETFILTER:
            return _netfilter_refusal()
        if way.kind == RAW:
            program = load_empty()
        elif way.kind == KRETPROBE:
            program = load_empty(libbpf.BPF_PROG_TYPE_KPROBE)
        else:
            program = load_plain("probe", libbpf.EMPTY_PROGRAM, way.kind, way.target)
    except OSError as error:
        return _words(error, way)
    try:
        os.close(attach(program, way.kind, way.target, at_exit=way.kind == KRETPROBE))
    except OSError as error:
        return _words(error, way)
    finally:
        os.close(program)
    return ""


def _netfilter_refusal() -> str:
    try:
        os.close(libbpf.load_netfilter("probe", libbpf.ACCEPTING_PROGRAM))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return "this kernel has no netfilter programs (6.4 and later have)"
        return str(error.strerror)
    return ""


def _words(error: OSError, way: Way) -> str:
    """ENOENT is the kernel's (and libbpf's) way to say that it has nothing of this name."""
    if error.errno in (errno.ENOENT, errno.ESRCH):
        kind = "function" if way.kind in (FEXIT, KRETPROBE) else "tracepoint"
        return f"this kernel has no such {kind}"
    return str(error.strerror)


def _probe(hook: Hook) -> HookProbe:
    refused: list[str] = []
    for way in hook.ways:
        reason = refusal(way)
        if not reason:
            return HookProbe(hook, way, tried=True, refused=tuple(refused))
        refused.append(f"{way.kind} {way.target}: {reason}")
    return HookProbe(hook, None, tried=True, refused=tuple(refused))


def _targets() -> frozenset[str]:
    """Return what BTF promises: raw tracepoints, netfilter programs; none where it is hidden."""
    try:
        types = headers.ensure()
    except TracerError:
        return frozenset()
    ways = [way for hook in HOOKS for way in hook.ways]
    netfilter = {way.target for way in ways if way.kind == NETFILTER}
    has_netfilter = types.origin == "btf" and types.has("HAS_STRUCT_bpf_nf_ctx")
    functions = {way.target for way in ways if way.kind == FEXIT and _in_btf(way.target)}
    return frozenset(types.tracepoints) | functions | (netfilter if has_netfilter else set())


def _in_btf(function: str) -> bool:
    try:
        return libbpf.target_id(function, libbpf.BPF_TRACE_FENTRY) > 0
    except OSError:
        return False


def _promise(hook: Hook, known: frozenset[str]) -> HookProbe:
    way = next((way for way in hook.ways if way.target in known), None)
    refused = () if way else tuple(f"{way.kind} {way.target}: not in BTF" for way in hook.ways)
    return HookProbe(hook, way, tried=False, refused=refused)
