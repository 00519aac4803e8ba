"""A pod that is being set up while tracer looks: its addresses are known, whatever the order.

The namespaces, devices and addresses are the kernel's; the pod's process and its log directory
are files of the test's, so that no runtime's word stands in for what netlink must tell.
"""

from __future__ import annotations

import os
import random
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from lab import namespaces
from lab.shell import run, until

from tracer.inventory import Inventory, Paths

if TYPE_CHECKING:
    from pathlib import Path

REPEATS = 11
MOST_DELAY_S = 0.3
SEEN_S = 2.5
"""Of a namespace that nothing tells of: its file's directory is looked at every second."""
KNOWN_S = 1.0
"""Of an address in a namespace that is known."""
UID = "7e57ab1e-0000-4000-8000-00000000000b"
DEVICE = f"{namespaces.PREFIX}new"


@dataclass(frozen=True, slots=True)
class Node:
    """A running inventory of this kernel, and where its made-up processes and logs are."""

    inventory: Inventory
    place: Path

    def add_pod(self, netns: int) -> None:
        """A process of the pod, in `netns`."""
        process = self.place / "proc" / "50"
        (process / "ns").mkdir(parents=True)
        (process / "ns" / "net").symlink_to(f"net:[{netns}]")
        (process / "cgroup").write_text(f"0::/kubepods/pod{UID}/{'a' * 64}\n")
        (self.place / "logs" / f"shop_new-0_{UID}").mkdir()

    def name_of(self, address: str) -> str:
        """The pod that holds `address`, as every record would name it."""
        node = self.inventory.node
        uid = node.pod_by_address.get(address)
        return node.pods[uid].key if uid else ""

    def sees(self, netns: int, device: str) -> bool:
        """Whether `device` of that namespace is known."""
        found = self.inventory.node.devices.values()
        return any((each.netns, each.name) == (netns, device) for each in found)


@contextmanager
def following(place: Path):
    (place / "proc").mkdir()
    (place / "proc" / "self").symlink_to("/proc/self")
    (place / "logs").mkdir()
    paths = Paths(proc=place / "proc", pod_logs=place / "logs", cni_results=(), cri_sockets=())
    inventory = Inventory(paths=paths)
    inventory.scan()
    inventory.start()
    try:
        yield Node(inventory, place)
    finally:
        inventory.stop()


@pytest.fixture
def node(tmp_path):
    with following(tmp_path) as made:
        yield made
    for name in ("new", "far"):
        namespaces.delete(name)
    # A device lives until the kernel has taken its namespace down.
    until(lambda: DEVICE not in run("ip", "-o", "link"), "the veth pair goes")


def from_the_node(netns):
    run("ip", "link", "add", DEVICE, "type", "veth", "peer", "name", "eth0", "netns", netns.name)


def from_inside(netns):
    """As CNI's bridge plugin does it."""
    netns.ip(f"link add eth0 type veth peer name {DEVICE}")
    netns.ip(f"link set {DEVICE} netns {os.getpid()}")


def to_another(netns):
    """The node gets no id for it, so the kernel tells nobody here of its changes."""
    netns.ip(f"link add eth0 type veth peer name {DEVICE} netns {namespaces.create('far').name}")


@pytest.mark.parametrize("repeat", range(REPEATS))
@pytest.mark.parametrize("make_veth", [from_the_node, from_inside, to_another])
def test_addresses_that_come_late(node, make_veth, repeat):
    """Each step a while after the inventory has seen the one before, or in a hurry."""
    chance = random.Random(repeat)  # noqa: S311 - repeatable, not secret
    is_patient = repeat % 2 == 0
    address = f"10.249.7.{10 + repeat}"
    netns = namespaces.create("new")
    node.add_pod(netns.inode)
    time.sleep(chance.uniform(0, MOST_DELAY_S))
    make_veth(netns)
    if is_patient:
        until(lambda: node.sees(netns.inode, "eth0"), "the device is seen", SEEN_S)
    time.sleep(chance.uniform(0, MOST_DELAY_S))
    netns.ip(f"address add {address}/24 dev eth0")
    within_s = KNOWN_S if is_patient else SEEN_S
    until(lambda: node.name_of(address) == "shop/new-0", f"{address} has a name", within_s)
