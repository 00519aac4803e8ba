"""Pod uid and container id, from the cgroup paths of every driver."""

import pytest

from tracer.inventory.cgroups import pod_and_container, v2_path

UID = "8db0041a-ae77-4873-abac-58f9adb66146"
ESCAPED = UID.replace("-", "_")
ID = "3f86c33291fe7ca460097763f72b009562d5365eac277e32dbcfcd1a9799504a"
STATIC = "6d3ef8b1c5ab2d1f0c9f7a3c1f5f9f70"


@pytest.mark.parametrize(
    ("path", "uid", "container"),
    [
        (f"/kubepods/besteffort/pod{UID}/{ID}", UID, ID),
        (f"/kubepods/pod{UID}", UID, ""),
        (
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-"
                f"pod{ESCAPED}.slice/cri-containerd-{ID}.scope"
            ),
            UID,
            ID,
        ),
        (f"/kubepods.slice/kubepods-pod{ESCAPED}.slice/crio-{ID}.scope", UID, ID),
        (f"/kubepods.slice/kubepods-pod{ESCAPED}.slice/crio-conmon-{ID}.scope", UID, ID),
        (f"/system.slice/kubepods-pod{ESCAPED}.slice:cri-containerd:{ID}", UID, ID),
        (f"/kubepods/burstable/pod{STATIC}/{ID}", STATIC, ID),
        (f"/kubelet.slice/kubelet-kubepods.slice/kubepods-pod{ESCAPED}.slice", UID, ""),
        (f"/docker/{'a' * 64}/kubepods/pod{UID}/{ID}", UID, ID),
        (f"/kubepods/pod{UID}/{ID}/nested/child", UID, ID),
        (f"/docker/{ID}", "", ID),
        (f"/system.slice/docker-{ID}.scope", "", ID),
        ("/user.slice/user-1000.slice/session-2.scope", "", ""),
        ("/podman-1234.scope", "", ""),
        ("/", "", ""),
    ],
)
def test_every_driver(path, uid, container):
    assert pod_and_container(f"0::{path}\n") == (uid, container)


def test_hybrid_hierarchies_agree():
    text = f"4:memory:/kubepods/pod{UID}/{ID}\n1:cpu:/kubepods/pod{UID}/{ID}\n0::/kubepods/x\n"
    assert pod_and_container(text) == (UID, ID)
    assert v2_path(text) == "/kubepods/x"


def test_v2_path():
    assert v2_path("0::/a/b\n") == "/a/b"
    assert v2_path("0::/a/b (deleted)\n") == "/a/b"
    assert v2_path("1:cpu:/x\n") == ""
