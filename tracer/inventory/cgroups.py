"""Pod uid and container id from /proc/PID/cgroup, whoever wrote it (pure).

cgroupfs driver   /kubepods/burstable/pod<uid>/<container>
systemd driver    /kubepods.slice/kubepods-pod<uid with _>.slice/cri-containerd-<container>.scope
CRI-O             …/crio-<container>.scope, and crio-conmon-<container>.scope for its helper
containerd, mixed kubepods-pod<uid with _>.slice:cri-containerd:<container>
static pods       a uid of 32 hex digits without dashes
"""

from __future__ import annotations

import re

_UID = re.compile(r"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?=[./:]|$)")
_CONTAINER = re.compile(r"(?<![0-9a-f])([0-9a-f]{64})(?![0-9a-f])")


def pod_and_container(text: str) -> tuple[str, str]:
    """(pod uid, container id) of a cgroup path or a whole /proc/PID/cgroup; "" where none."""
    uids, containers = _UID.findall(text), _CONTAINER.findall(text)
    uid = uids[-1].replace("_", "-") if uids else ""
    return uid, containers[-1] if containers else ""


def v2_path(text: str) -> str:
    """Read the cgroup v2 path of a /proc/PID/cgroup (its `0::` line); "" on a pure v1 host."""
    _, found, rest = text.rpartition("0::")
    return rest.partition("\n")[0].removesuffix(" (deleted)") if found else ""
