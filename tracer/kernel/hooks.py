"""The table of hooks: what each tells, how it can be attached, and what each way loses.

A hook is what we want to know, not how we attach to the kernel. Its program is the function
of the same name (`skb-drop` → `skb_drop`) in `bpf/hooks/<program>.bpf.c`.
"""

from __future__ import annotations

from dataclasses import dataclass

TYPED = "tp_btf"
RAW = "raw_tp"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to attach a hook; the first of a hook's ways is the preferred one."""

    kind: str
    """`tp_btf` (typed tracepoint, 5.5+: f1b9509c2fb0) or `raw_tp` (4.17+: c4f6699dfcb8)."""
    target: str
    """Tracepoint name."""
    costs: str = ""
    """What this way loses or costs compared with the preferred one."""


@dataclass(frozen=True, slots=True)
class Hook:
    """One row of the table."""

    name: str
    tells: str
    ways: tuple[Way, ...]
    commands: tuple[str, ...]
    """Commands that use it."""

    @property
    def program(self) -> str:
        """Name of its BPF function and source file."""
        return self.name.replace("-", "_")


def _tracepoint(target: str) -> tuple[Way, ...]:
    return (
        Way(TYPED, target),
        Way(RAW, target, "same records; each field costs a helper call"),
    )


HOOKS = (
    Hook(
        "skb-drop",
        "every packet freed because it died: reason, place, stack",
        _tracepoint("kfree_skb"),
        ("drops", "flows"),
    ),
    Hook(
        "dev-xmit",
        "packets a pod sends, at its device",
        _tracepoint("net_dev_start_xmit"),
        ("flows",),
    ),
    Hook(
        "dev-rx",
        "packets a pod receives, at its device",
        _tracepoint("netif_receive_skb"),
        ("flows",),
    ),
)


def hooks_of(command: str) -> tuple[Hook, ...]:
    """The hooks that `command` attaches."""
    return tuple(hook for hook in HOOKS if command in hook.commands)
