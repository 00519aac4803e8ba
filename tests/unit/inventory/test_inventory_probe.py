"""What `doctor` says of the sources of pod names, on made-up nodes."""

import pytest
from fake_cri import recorded, serving

from tracer.inventory import probe, processes
from tracer.model import State


def test_a_runtime_that_answers(socket_path):
    with serving(recorded("containerd-2.1.9"), socket_path):
        (finding,) = probe.cri((socket_path,))
    assert finding.state is State.OK
    assert finding.detail == f"{socket_path}: containerd, 10 pod sandboxes"


def test_a_socket_that_nobody_serves(socket_path):
    with serving(recorded("containerd-2.1.9"), socket_path):
        pass
    socket_path.touch()
    (finding,) = probe.cri((socket_path,))
    assert finding.state is State.DEGRADED
    assert finding.detail.startswith(f"{socket_path}: ")
    assert "no labels" in finding.detail


def test_no_socket_names_where_it_looked(tmp_path):
    (finding,) = probe.cri((tmp_path / "a.sock", tmp_path / "b.sock"))
    assert finding.state is State.DEGRADED
    assert str(tmp_path / "b.sock") in finding.detail
    assert "CONTAINER_RUNTIME_ENDPOINT" in finding.hint


@pytest.mark.parametrize(
    ("mounted", "state", "word"),
    [
        ("", State.OK, "v2, "),
        ("unified", State.OK, "hybrid"),
        (None, State.DEGRADED, "host-network"),
    ],
)
def test_cgroups(tmp_path, mounted, state, word):
    if mounted is not None:
        (tmp_path / mounted).mkdir(exist_ok=True)
        (tmp_path / mounted / "cgroup.procs").touch()
    finding = probe.cgroups((tmp_path, tmp_path / "unified"))
    assert finding.state is state
    assert word in finding.detail


def test_directories_count_what_they_hold(tmp_path):
    (tmp_path / "shop_web_1").mkdir()
    assert "1 pods" in probe.pod_logs(tmp_path).detail
    assert "1 results" in probe.cni_results((tmp_path / "absent", tmp_path)).detail
    assert probe.pod_logs(tmp_path / "absent").state is State.OK
    assert probe.cni_results((tmp_path / "absent",)).state is State.OK


def process(proc, pid, cgroup, netns):
    (proc / str(pid) / "ns").mkdir(parents=True)
    (proc / str(pid) / "cgroup").write_text(cgroup)
    (proc / str(pid) / "ns/net").symlink_to(f"net:[{netns}]")


def test_processes(tmp_path):
    process(tmp_path, 7, "0::/init.scope\n", 4026531840)
    finding = probe.processes(tmp_path, ())
    assert (finding.state, finding.detail) == (
        State.OK,
        "1, the network namespace of 0 is hidden",
    )


def test_the_hint_about_hidden_pods_is_of_use_to_root_too(tmp_path, monkeypatch):
    process(tmp_path, 7, f"0::/kubepods/pod11111111-1111-4111-8111-111111111111/{'a' * 64}\n", 5)
    monkeypatch.setattr(processes, "read_inode", lambda _path: None)
    hints = []
    for user in (0, 1000):
        monkeypatch.setattr(probe.os, "geteuid", lambda user=user: user)
        finding = probe.processes(tmp_path, ())
        assert finding.state is State.DEGRADED
        hints.append(finding.hint)
    assert "capability" in hints[0]
    assert hints[1] == "run it with sudo"
