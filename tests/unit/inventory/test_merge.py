"""Facts of several sources become one node; who wins where they differ."""

from dataclasses import replace

from tracer.inventory.facts import (
    CniResult,
    Facts,
    Link,
    NamedNetns,
    PodLog,
    Process,
    Sandbox,
    View,
)
from tracer.inventory.merge import merge

NODE, ONE, TWO, OTHER = 100, 201, 202, 203
UID, UID2 = "1d0a42d5-533b-4850-b92b-00a543436360", "8db0041a-ae77-4873-abac-58f9adb66146"
BOX = Sandbox(
    id="b" * 64,
    uid=UID,
    namespace="shop",
    name="web",
    runtime="containerd",
    created_ns=2,
    labels={"app": "web"},
    addresses=("10.244.0.8",),
    pid=7,
    netns_path="/var/run/netns/cni-1",
)


def view(address, link=None, nsid=None, index=2, kind="veth"):
    end = Link(index, "eth0", kind, link=link, link_nsid=nsid)
    loopback = Link(1, "lo")
    return View(
        {1: loopback, index: end},
        {1: {"127.0.0.1": None}, index: {address: None, "fe80::1": None}},
        {0: NODE},
    )


def node_view(*ends):
    return View({i: Link(i, f"veth{i}", "veth", link=2, link_nsid=n) for i, n in ends})


def facts(**known):
    return Facts("node-1", NODE, **known)


PROCESS = Process(7, ONE, UID, BOX.id, 9001)


def test_everything_known():
    node = merge(
        facts(
            sandboxes=(BOX,),
            pod_logs=(PodLog(UID, "shop", "web"),),
            cni_results=(CniResult(BOX.id, "/var/run/netns/cni-1", ("10.244.0.8",)),),
            processes=(PROCESS, Process(8, ONE, UID, "c" * 64, 9002), Process(1, NODE)),
            named=(NamedNetns(ONE, "/run/netns/cni-1"),),
            views={ONE: view("10.244.0.8", link=17, nsid=0), NODE: node_view((17, 5))},
        )
    )
    pod = node.pods[UID]
    assert (pod.key, pod.netns, pod.addresses) == ("shop/web", ONE, ("10.244.0.8",))
    assert pod.sources == ("cri", "logs", "cgroup", "cni", "netns", "proc", "netlink")
    assert node.pod_by_netns == {ONE: UID}
    assert node.devices[ONE, 2].peer == (NODE, 17)
    assert node.devices[NODE, 17].peer == (ONE, 2)
    assert node.pod_by_device == {(ONE, 1): UID, (ONE, 2): UID, (NODE, 17): UID}
    assert node.pod_by_address == {"10.244.0.8": UID}
    assert node.pod_by_cgroup == {9001: UID, 9002: UID}
    assert node.namespaces[ONE].name == "cni-1"
    assert node.namespaces[NODE].name == "node"


def test_without_cri_logs_name_the_pod_and_processes_place_it():
    node = merge(
        facts(
            pod_logs=(PodLog(UID, "shop", "web"), PodLog(UID2, "shop", "long-gone")),
            processes=(Process(8, ONE, UID, "c" * 64, 9002),),
            views={ONE: view("10.244.0.8")},
        )
    )
    assert list(node.pods) == [UID]
    pod = node.pods[UID]
    assert (pod.key, pod.netns, pod.addresses) == ("shop/web", ONE, ("10.244.0.8",))
    assert pod.sources == ("logs", "cgroup", "proc", "netlink")


def test_cri_alone_places_a_pod_by_its_netns_path():
    named = (NamedNetns(ONE, "/run/netns/cni-1"),)
    pod = merge(facts(sandboxes=(replace(BOX, pid=None),), named=named)).pods[UID]
    assert (pod.netns, pod.addresses) == (ONE, ("10.244.0.8",))
    assert merge(facts(sandboxes=(BOX,), processes=(Process(7, TWO),))).pods[UID].netns == TWO


def test_a_superseded_sandbox_does_not_shadow_the_ready_one():
    newer = replace(BOX, id="d" * 64, ready=False, created_ns=9, addresses=("10.244.0.99",))
    pod = merge(facts(sandboxes=(BOX, newer), processes=(PROCESS,))).pods[UID]
    assert (pod.sandbox_id, pod.ready, pod.addresses) == (BOX.id, True, ("10.244.0.8",))


def test_a_finished_pod_owns_nothing():
    done = replace(BOX, ready=False)
    node = merge(facts(sandboxes=(done,), named=(NamedNetns(ONE, "/run/netns/cni-1"),)))
    pod = node.pods[UID]
    assert (pod.ready, pod.netns, pod.addresses) == (False, None, ())
    assert not node.pod_by_netns
    assert not node.pod_by_address


def test_host_network_pods_are_told_by_cgroup_only():
    box = replace(BOX, host_network=True, addresses=("198.51.100.10",), netns_path="")
    process = replace(PROCESS, netns=NODE)
    for known in ({"sandboxes": (box,)}, {"sandboxes": ()}):
        node = merge(facts(processes=(process,), views={NODE: view("198.51.100.10")}, **known))
        assert node.pods[UID].host_network
        assert node.pods[UID].netns == NODE
        assert not node.pod_by_netns
        assert not node.pod_by_address
        assert not node.pod_by_device
        assert node.pod_by_cgroup == {9001: UID}


def test_an_address_of_two_namespaces_names_nobody():
    shared = facts(
        sandboxes=(BOX,),
        processes=(PROCESS,),
        views={ONE: view("10.244.0.8"), OTHER: view("10.244.0.8")},
    )
    assert merge(shared).pods[UID].addresses == ("10.244.0.8",)
    assert not merge(shared).pod_by_address


def test_two_pods_that_are_told_one_address_both_lose_it():
    other = replace(BOX, id="e" * 64, uid=UID2, name="web-2", pid=None, netns_path="")
    assert not merge(facts(sandboxes=(BOX, other))).pod_by_address


def test_the_kernels_addresses_win_over_what_was_told():
    box = replace(BOX, addresses=("10.244.0.99", "10.244.0.8"))
    known = view("10.244.0.7")
    known.addresses[2]["10.244.0.8"] = None
    pod = merge(facts(sandboxes=(box,), processes=(PROCESS,), views={ONE: known})).pods[UID]
    assert pod.addresses == ("10.244.0.8", "10.244.0.7")


def test_what_was_told_stands_in_where_the_kernel_has_no_address_yet():
    bare = View({1: Link(1, "lo"), 2: Link(2, "eth0", "veth")}, {1: {"127.0.0.1": None}})
    told = (CniResult(BOX.id, addresses=("fd00:0::8",)),)
    known = {"sandboxes": (BOX,), "processes": (PROCESS,), "cni_results": told}
    node = merge(facts(views={ONE: bare}, **known))
    assert node.pods[UID].addresses == ("10.244.0.8", "fd00::8")
    assert node.pod_by_address == {"10.244.0.8": UID, "fd00::8": UID}
    bare.addresses[2] = {"10.244.0.7": None}
    assert merge(facts(views={ONE: bare}, **known)).pods[UID].addresses == ("10.244.0.7",)


def test_a_veth_between_two_pods_and_one_inside_a_namespace():
    one, two = view("10.0.0.1", link=2, nsid=4), view("10.0.0.2", link=2, nsid=0)
    one.nsids[4] = TWO
    two.nsids = {}
    inside = View({2: Link(2, "a", "veth", link=3), 3: Link(3, "b", "veth", link=2)})
    node = merge(facts(views={ONE: one, TWO: two, OTHER: inside}))
    assert node.devices[ONE, 2].peer == (TWO, 2)
    assert node.devices[TWO, 2].peer == (ONE, 2)
    assert node.devices[OTHER, 2].peer == (OTHER, 3)


def test_a_macvlan_has_no_peer():
    known = view("10.0.0.1", link=17, nsid=0, kind="macvlan")
    assert merge(facts(views={ONE: known})).devices[ONE, 2].peer is None


def test_a_container_without_pod_names_its_namespace():
    node = merge(facts(processes=(Process(9, OTHER, "", "f" * 64),)))
    assert node.namespaces[OTHER].name == "f" * 12
    assert node.namespaces[OTHER].pid == 9
    assert not node.pods
