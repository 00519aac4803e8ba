"""What a drop record has to say, put together from what the test did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lab.cluster import Pod
    from lab.namespaces import Namespace
    from lab.runner import Record

NETFILTER = {"drop.reason": "NETFILTER_DROP"}


def owner(pod: Pod, direction: str) -> Record:
    """The pod that the drop is charged to, and which way the packet was going for it."""
    named = {"k8s.pod.namespace": pod.namespace, "k8s.pod.name": pod.name}
    return {**named, "direction": direction}


def source(pod: Pod) -> Record:
    """The pod that sent the packet."""
    return {"k8s.src.namespace": pod.namespace, "k8s.src.pod.name": pod.name}


def destination(pod: Pod) -> Record:
    """The pod that the packet was for."""
    return {"k8s.dst.namespace": pod.namespace, "k8s.dst.pod.name": pod.name}


def place(where: Namespace, device: str = "") -> Record:
    """The namespace, and the device there, where the packet died."""
    found: Record = {"netns": where.inode}
    if device:
        found |= {"interface.name": device, "interface.index": where.ifindex(device)}
    return found


def udp(src: str, dst: str, port: int) -> Record:
    """The addresses of a datagram to `port`."""
    return {
        "type": "drop",
        "src.address": src,
        "dst.address": dst,
        "dst.port": port,
        "transport": "udp",
        "network.type": "ipv6" if ":" in src else "ipv4",
    }


def tcp(src: str, dst: str, port: int) -> Record:
    """The addresses of a segment to `port`."""
    return {**udp(src, dst, port), "transport": "tcp"}


def at(function: str) -> Record:
    """The kernel function that dropped the packet, whatever the offset."""
    return {"drop.location": lambda text: str(text).split("+")[0] == function}


def say(records: Iterable[Record], wanted: Record, *words: str) -> None:
    """Every record has all of `wanted`, and an explanation and a hint that hold `words`."""
    for record in records:
        differs = {name: record.get(name) for name in wanted if not _holds(record, name, wanted)}
        assert not differs, f"{differs} is not as wanted in {record}"
        sentence = f"{record.get('explanation', '')} {record.get('hint', '')}".lower()
        assert record.get("explanation"), f"no explanation in {record}"
        assert record.get("hint"), f"no hint in {record}"
        missing = [word for word in words if word.lower() not in sentence]
        assert not missing, f"{missing} not in {sentence!r}"


def _holds(record: Record, name: str, wanted: Record) -> bool:
    value: Any = record.get(name)
    want = wanted[name]
    return want(value) if callable(want) else value == want
