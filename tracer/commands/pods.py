"""Which pod does this netns, device or address belong to.

exit code: 0 done; 1 a source failed (warnings say which and what is lost); 2 wrong use, or
no pod of this node was asked for.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import orjson

from tracer.analysis.selection import check_selection
from tracer.commands.options import add_pod_selection, pod_selection
from tracer.errors import ExitCode
from tracer.inventory import Inventory
from tracer.inventory.merge import is_routable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

    from tracer.model import Device, Node, Pod, Record

PIPE_COLUMNS = 120
UNBOUNDED_COLUMNS = 2000
EXAMPLES = """\
examples:
  tracer pods                              every pod of this node
  tracer pods -n shop -l app=web --wide    some, with full ids and every source
  tracer pods --all                        and the namespaces that are no pod's
  tracer pods -o json | jq -r 'select(.addresses[]? == "10.244.0.5") | ."k8s.pod.name"'
"""
ID_CHARACTERS = 12
"""Of a sandbox id: what crictl shows too."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the selection, --all, --wide and -o."""
    parser.epilog = EXAMPLES
    add_pod_selection(parser)
    parser.add_argument(
        "-a", "--all", action="store_true", help="also the network namespaces that are no pod's"
    )
    parser.add_argument(
        "-w", "--wide", action="store_true", help="full ids, every source, as wide as it gets"
    )
    parser.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="json: one object a line"
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Scan the node once and print what was asked for."""
    inventory = Inventory()
    node = inventory.scan()
    inventory.stop()
    selection = pod_selection(args)
    for warning in node.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    check_selection(selection, node)
    pods = sorted((pod for pod in node.pods.values() if selection.matches(pod)), key=_order)
    records = [pod_record(node, pod) for pod in pods]
    if args.all:
        records += namespace_records(node)
    if args.output == "json":
        sys.stdout.writelines(orjson.dumps(record).decode() + "\n" for record in records)
    elif records:
        _print_table(records, wide=args.wide)
    if not records:
        sys.stderr.write("no pods on this node; tracer pods --all shows its namespaces\n")
    return ExitCode.PARTIAL if node.warnings else ExitCode.DONE


def pod_record(node: Node, pod: Pod) -> Record:
    """One pod in flat names; what is unknown is absent."""
    record: Record = {
        "k8s.pod.namespace": pod.namespace,
        "k8s.pod.name": pod.name,
        "k8s.pod.uid": pod.uid,
        "netns": pod.netns,
        "addresses": list(pod.addresses),
        "labels": dict(pod.labels),
        "sandbox.id": pod.sandbox_id,
        "runtime": pod.runtime,
        "host_network": pod.host_network,
        "ready": pod.ready,
        "sources": list(pod.sources),
    }
    if not pod.host_network and pod.netns is not None:
        record |= _devices(node, pod.netns)
    return _known(record)


def namespace_records(node: Node) -> Iterable[Record]:
    """Yield the namespaces that are no pod's, the node's own first."""
    for inode in sorted(node.namespaces, key=lambda inode: (inode != node.netns, inode)):
        if inode in node.pod_by_netns:
            continue
        space = node.namespaces[inode]
        inside = [device for device in node.devices.values() if device.netns == inode]
        record: Record = {
            "netns": inode,
            "netns.name": space.name,
            "pid": space.pid,
            "addresses": [a for device in inside for a in device.addresses if is_routable(a)],
            "sources": list(space.sources),
        }
        if inode != node.netns:
            record |= _devices(node, inode)
        yield _known(record)


def _devices(node: Node, netns: int) -> Record:
    """Name the main device of a namespace, and its other end where that is on the node."""
    device = main_device(device for device in node.devices.values() if device.netns == netns)
    if device is None:
        return {}
    record: Record = {"interface.name": device.name, "interface.index": device.ifindex}
    peer = node.devices.get(device.peer) if device.peer else None
    if peer and peer.netns == node.netns:
        record |= {"node.interface.name": peer.name, "node.interface.index": peer.ifindex}
    return record


def main_device(devices: Iterable[Device]) -> Device | None:
    """Choose the device that a pod talks through: with a peer, with addresses, the first."""
    candidates = [device for device in devices if device.name != "lo"]
    return max(
        candidates,
        key=lambda device: (bool(device.peer), bool(device.addresses), -device.ifindex),
        default=None,
    )


def _order(pod: Pod) -> tuple[str, str, str]:
    return pod.namespace, pod.name, pod.uid


def _known(record: Record) -> Record:
    return {name: value for name, value in record.items() if value not in (None, "")}


def _print_table(records: Sequence[Record], *, wide: bool) -> None:
    from rich.console import Console  # noqa: PLC0415 - 30 ms that -o json need not pay
    from rich.table import Table  # noqa: PLC0415 - same

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("NAMESPACE", "POD", "UID", "NETNS", "DEVICE", "ADDRESSES", "SANDBOX", "SOURCE"):
        table.add_column(title, overflow="fold")
    for record in records:
        table.add_row(*_cells(record, wide=wide), style="" if record.get("ready", True) else "dim")
    console = Console(highlight=False, markup=False, emoji=False)
    if wide:
        console.width = UNBOUNDED_COLUMNS
    elif not console.is_terminal:
        console.width = PIPE_COLUMNS
    console.print(table)


def _cells(record: Record, *, wide: bool) -> list[str]:
    uid, sandbox = record.get("k8s.pod.uid", ""), record.get("sandbox.id", "")
    if not wide:
        # Every uid of a static pod or a test may begin alike; 8 digits tell most others apart.
        uid, sandbox = uid[:8], sandbox[:ID_CHARACTERS]
    ends = [record.get("interface.name", ""), record.get("node.interface.name", "")]
    device = "node" if record.get("host_network") else "↔".join(end for end in ends if end)
    is_pod = "k8s.pod.uid" in record
    sources = record["sources"]
    return [
        record.get("k8s.pod.namespace", "" if is_pod else "-"),
        record.get("k8s.pod.name", "?" if is_pod else f"({record.get('netns.name', 'unnamed')})"),
        uid,
        str(record.get("netns", "")),
        device,
        "\n".join(record["addresses"]),
        sandbox,
        ",".join(sources if wide else sources[:1]),
    ]
