"""What /proc tells of processes, and what it hides from whom."""

import pytest

from tracer.inventory import processes
from tracer.inventory.processes import Reader

UID = "11111111-1111-4111-8111-111111111111"
POD = f"/kubepods/pod{UID}/{'a' * 64}"
DOCKER = f"/docker/{'b' * 64}"


@pytest.fixture
def hide(tmp_path, monkeypatch):
    """Make one process of each cgroup, all with hidden namespaces; its warnings for a user id."""

    def read(user, *cgroups):
        for pid, cgroup in enumerate(cgroups, 1):
            (tmp_path / str(pid)).mkdir()
            (tmp_path / str(pid) / "cgroup").write_text(f"0::{cgroup}\n")
        monkeypatch.setattr(processes.os, "geteuid", lambda: user)
        monkeypatch.setattr(processes, "read_inode", lambda _path: None)
        found, warnings = Reader(tmp_path, ()).read()
        assert [process.netns for process in found] == [None] * len(cgroups)
        return warnings

    return read


@pytest.mark.parametrize("user", [0, 1000])
def test_the_nodes_own_processes_may_be_hidden(hide, user):
    assert hide(user, "/", "/system.slice/ssh.service") == ()


@pytest.mark.parametrize("cgroup", [POD, DOCKER, f"/kubepods/pod{UID}"])
def test_hidden_containers_are_told_with_the_reason(hide, cgroup):
    (warning,) = hide(1000, "/", cgroup)
    assert "netns of 1 containers' processes is hidden without root" in warning


def test_root_is_not_told_to_be_root(hide):
    (warning,) = hide(0, POD, "/")
    assert "although we are root" in warning
    assert "without root" not in warning
