"""Directories of the kubelet, CNI and `ip netns`, and a /proc of the tests' own."""

import os
from pathlib import Path

import orjson
import pytest

from tracer.inventory.facts import CniResult, PodLog, cri_sockets
from tracer.inventory.files import cni_results, named_netns, pod_logs, stamps
from tracer.inventory.processes import Reader

UID = "8db0041a-ae77-4873-abac-58f9adb66146"
ID = "3f86c33291fe7ca460097763f72b009562d5365eac277e32dbcfcd1a9799504a"
CACHE = {
    "kind": "cniCacheV1",
    "containerId": ID,
    "config": "e30=",
    "ifName": "eth0",
    "networkName": "pods",
    "cniArgs": [
        ["IgnoreUnknown", "1"],
        ["K8S_POD_NAMESPACE", "shop"],
        ["K8S_POD_NAME", "web"],
        ["K8S_POD_INFRA_CONTAINER_ID", ID],
        ["K8S_POD_UID", UID],
    ],
    "result": {
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "cni0", "mac": "8a:69:03:cf:10:f1"},
            {"name": "eth0", "sandbox": "/var/run/netns/cni-39eaf79f"},
        ],
        "ips": [{"address": "10.244.0.5/24", "interface": 1}, {"address": "fd00::5/64"}],
    },
}


def test_pod_logs(tmp_path):
    for name in (f"shop_web-77fc-4j8cs_{UID}", "not-a-pod", "a_b_c_d"):
        (tmp_path / name).mkdir()
    assert pod_logs(tmp_path) == (PodLog(UID, "shop", "web-77fc-4j8cs"),)
    assert pod_logs(tmp_path / "absent") == ()


def test_cni_results(tmp_path):
    (tmp_path / f"pods-{ID}-eth0").write_bytes(orjson.dumps(CACHE))
    (tmp_path / "old-format").write_bytes(orjson.dumps({"ips": []}))
    results, warnings, unfinished = cni_results([tmp_path, tmp_path / "absent"])
    assert results == (
        CniResult(ID, "/var/run/netns/cni-39eaf79f", ("10.244.0.5", "fd00::5"), UID, "shop", "web"),
    )
    assert not warnings
    assert not unfinished


@pytest.mark.parametrize("written", [0, 100])
def test_half_written_cni_result_is_a_warning_unless_it_is_being_written(tmp_path, written):
    torn = tmp_path / "torn"
    torn.write_bytes(orjson.dumps(CACHE)[:written])
    assert cni_results([tmp_path]) == ((), (), True)
    os.utime(torn, (1, 1))
    results, warnings, unfinished = cni_results([tmp_path])
    assert (results, unfinished) == ((), False)
    assert "torn" in warnings[0]


def test_a_file_that_is_no_namespace_any_more_is_none(tmp_path):
    (tmp_path / "stale").touch()
    assert named_netns([tmp_path], Path("/proc")) == ()


def test_stamps_tell_of_a_new_entry(tmp_path):
    before = stamps([tmp_path])
    os.utime(tmp_path, ns=(1, 1))
    assert stamps([tmp_path]) != before
    assert stamps([tmp_path / "absent"]) == (0,)


def process(root, pid, netns, cgroup):
    (root / str(pid) / "ns").mkdir(parents=True)
    (root / str(pid) / "ns" / "net").symlink_to(f"net:[{netns}]")
    (root / str(pid) / "cgroup").write_text(cgroup)


def test_processes(tmp_path):
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    path = f"kubepods/pod{UID}/{ID}"
    (cgroups / path).mkdir(parents=True)
    (cgroups / "cgroup.procs").touch()
    process(proc, 10, 4026532000, f"0::/{path}\n")
    process(proc, 11, 4026531840, "0::/init.scope\n")
    (proc / "12").mkdir()  # ended between listing and reading
    (proc / "self").mkdir()
    processes, warnings = Reader(proc, [tmp_path / "none", cgroups]).read()
    pod, other = sorted(processes, key=lambda process: process.pid)
    assert (pod.netns, pod.uid, pod.container_id) == (4026532000, UID, ID)
    assert pod.cgroup == (cgroups / path).stat().st_ino
    assert (other.uid, other.container_id, other.cgroup) == ("", "", None)
    assert not warnings


def test_a_pure_v1_host_has_no_cgroup_ids(tmp_path):
    process(tmp_path, 10, 4026532000, f"1:cpu:/kubepods/pod{UID}/{ID}\n")
    (process_,), _ = Reader(tmp_path, [tmp_path / "none"]).read()
    assert (process_.uid, process_.cgroup) == (UID, None)


def test_socket_from_the_environment():
    named = cri_sockets({"CONTAINER_RUNTIME_ENDPOINT": "unix:///run/x.sock"})
    assert [str(path) for path in named] == ["/run/x.sock"]
    assert len(cri_sockets({})) == 3
