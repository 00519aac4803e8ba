"""What made a pod, read from the labels that controllers put on it: no API needed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tracer.model import ClusterPod, Pod

_JOB_LABELS = ("batch.kubernetes.io/job-name", "job-name")
_ORDINAL = re.compile(r"-\d+$")
_RANDOM = re.compile(r"-[a-z0-9]{5}$")
"""What the API server makes of a generateName."""


class Workload(NamedTuple):
    """A controller in the pod's namespace."""

    kind: str
    name: str


def workload(pod: Pod | ClusterPod) -> Workload | None:
    """Deployment, StatefulSet, DaemonSet or Job of a pod; None where its labels tell of none.

    The Deployment's controller labels with `pod-template-hash` and names its ReplicaSets by it,
    StatefulSets and DaemonSets label with `controller-revision-hash`, Jobs with their names.
    """
    labels = pod.labels
    for label in _JOB_LABELS:
        if labels.get(label):
            return Workload("Job", labels[label])
    if hashed := labels.get("pod-template-hash"):
        name, _, _ = _RANDOM.sub("", pod.name).rpartition(f"-{hashed}")
        return Workload("Deployment", name) if name else None
    if "statefulset.kubernetes.io/pod-name" in labels:
        return Workload("StatefulSet", _ORDINAL.sub("", pod.name))
    if "controller-revision-hash" in labels and _RANDOM.search(pod.name):
        return Workload("DaemonSet", _RANDOM.sub("", pod.name))
    return None
