"""The table of hooks: what each tells, how it can be attached, and what each way loses.

A hook is what we want to know, not how we attach to the kernel. Its program is the function
of the same name (`skb-drop` → `skb_drop`) in `bpf/hooks/<program>.bpf.c`.
"""

from __future__ import annotations

from dataclasses import dataclass

TYPED = "tp_btf"
RAW = "raw_tp"
NETFILTER = "nf_link"
FEXIT = "fexit"
KRETPROBE = "kretprobe"
PLAIN_LOADS = (TYPED, NETFILTER, FEXIT)
"""Ways whose programs load the kernel's fields; those of the others call a helper for each."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to attach a hook; the first of a hook's ways is the preferred one."""

    kind: str
    """`tp_btf` (typed tracepoint, 5.5+: f1b9509c2fb0), `raw_tp` (4.17+: c4f6699dfcb8),
    `nf_link` (netfilter program, 6.4+: fd9c663b9ad6), `fexit` (of a kernel function with its
    fentry, 5.5+: fec56f5890d9, arm64 6.0+) or `kretprobe` (with its kprobe)."""
    target: str
    """Tracepoint or kernel function; for netfilter, which hooks."""
    costs: str = ""
    """What this way loses or costs compared with the preferred one."""
    full: bool = False
    """Not the preferred one, but what it tells is no partial answer."""


@dataclass(frozen=True, slots=True)
class Hook:
    """One row of the table."""

    name: str
    tells: str
    ways: tuple[Way, ...]
    commands: tuple[str, ...]
    """Commands that use it."""
    optional: bool = False
    """The command is still of use without it."""
    spare: bool = False
    """Only spares other hooks: without it nothing is missing."""

    @property
    def program(self) -> str:
        """Name of its source file."""
        return self.name.replace("-", "_")

    @property
    def functions(self) -> tuple[str, ...]:
        """Names of its BPF functions."""
        if self.name == "nf-hook":
            return ("nf_enter", "nf_leave")
        return (self.program,)

    def runs_at_exit(self, function: str) -> bool:
        """Whether it is the second of two, for the end of what the first begins."""
        return function in self.functions[1:]


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
        ("drops", "flows", "trace"),
    ),
    Hook(
        "dev-xmit",
        "packets a pod sends, at its device",
        _tracepoint("net_dev_start_xmit"),
        ("flows", "trace"),
    ),
    Hook(
        "dev-rx",
        "packets a pod receives, at its device",
        _tracepoint("netif_receive_skb"),
        ("flows", "trace"),
    ),
    Hook(
        "dev-queue",
        "packets handed to a device's transmit queue",
        _tracepoint("net_dev_queue"),
        ("trace",),
    ),
    Hook(
        "qdisc-enqueue",
        "packets kept by a queueing discipline, where a device has one",
        _tracepoint("qdisc_enqueue"),
        ("trace",),
        optional=True,
    ),
    Hook(
        "qdisc-dequeue",
        "packets that leave it",
        _tracepoint("qdisc_dequeue"),
        ("trace",),
        optional=True,
    ),
    Hook(
        "netif-rx",
        "packets put into a CPU's backlog, as a veth does",
        _tracepoint("netif_rx"),
        ("trace",),
    ),
    Hook(
        "nf-hook",
        "packets that enter and leave each netfilter hook: verdict, NAT, marks, conntrack",
        (
            Way(NETFILTER, "ip, ip6"),
            Way(
                FEXIT,
                "nf_hook_slow",
                "same records, of hooks in which something is registered: others are not told, "
                "nor that a packet queued to user space leaves",
                full=True,
            ),
            Way(
                KRETPROBE,
                "nf_hook_slow",
                "as fexit; two traps a packet, each field costs a helper call; before 5.16 stacks "
                "end at nf_hook_slow: only the hop before a drop there tells which hook it was",
            ),
        ),
        ("trace",),
        optional=True,
    ),
    Hook(
        "nf-watch",
        "packets of a namespace, each once: one run a packet for `trace --standby`",
        (Way(NETFILTER, "ip, ip6"),),
        ("trace",),
        optional=True,
        spare=True,
    ),
    Hook(
        "fib-lookup",
        "IPv4 routing decisions: table, gateway, device, or the failure",
        _tracepoint("fib_table_lookup"),
        ("trace",),
        optional=True,
    ),
    Hook(
        "fib6-lookup",
        "IPv6 routing decisions: table, gateway, device",
        _tracepoint("fib6_table_lookup"),
        ("trace",),
        optional=True,
    ),
    Hook(
        "tcp-receive",
        "segments taken by an established TCP connection",
        _tracepoint("tcp_probe"),
        ("trace",),
        optional=True,
    ),
    Hook(
        "tcp-retransmit",
        "segments that TCP sends again",
        _tracepoint("tcp_retransmit_skb"),
        ("flows", "trace"),
        optional=True,
    ),
    Hook(
        "sock-copied",
        "packets copied to an application",
        _tracepoint("skb_copy_datagram_iovec"),
        ("trace",),
        optional=True,
    ),
    Hook(
        "skb-consumed",
        "packets done with in good order",
        _tracepoint("consume_skb"),
        ("trace",),
    ),
)


def hooks_of(command: str) -> tuple[Hook, ...]:
    """The hooks that `command` attaches."""
    return tuple(hook for hook in HOOKS if command in hook.commands)
