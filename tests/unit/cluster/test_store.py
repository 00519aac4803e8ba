"""What the store keeps stays bounded, however much comes and goes."""

import tracemalloc

from tracer.cluster import store as store_module
from tracer.cluster.store import Store

PODS, ROUNDS = 2000, 5
MOST_BYTES_A_POD = 3000
"""Twice what it is: JSON that is kept by mistake would be several times that."""


def pod(number, generation):
    return {
        "metadata": {
            "name": f"web-{generation}-{number}",
            "namespace": "shop",
            "labels": {"app": "web", "generation": str(generation)},
            "ownerReferences": [{"kind": "ReplicaSet", "name": f"web-{generation}",
                                 "controller": True}],
        },
        "spec": {"nodeName": f"node{number % 50}", "containers": [{"image": "i" * 99}]},
        "status": {"phase": "Running", "podIPs": [{"ip": f"10.{generation}.{number >> 8}."
                                                         f"{number & 255}"}]},
    }  # fmt: skip


def fill(store, generation):
    return {store.put("pods", pod(number, generation)) for number in range(PODS)}


def test_pods_in_common_share_what_they_have_in_common():
    store = Store()
    fill(store, 0)
    pods = list(store.view().cluster_pods.values())
    assert len(pods) == PODS
    assert len({id(one.labels) for one in pods}) == 1
    assert len({id(one.owner) for one in pods}) == 1


def test_a_pod_takes_little():
    store = Store()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        fill(store, 0)
        store.view()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / PODS < MOST_BYTES_A_POD


def test_what_came_and_went_leaves_nothing(monkeypatch):
    monkeypatch.setattr(store_module, "LINGER_S", 0.0)
    monkeypatch.setattr(store_module, "SHARED_SLACK", 0)
    store = Store()
    for generation in range(ROUNDS):
        keys = fill(store, generation)
        store.keep_only("pods", keys)
        view = store.view()
        assert len(view.cluster_pods) == len(view.cluster_pod_by_address) == PODS
    assert len(store._shared) <= 2 * PODS
    assert not store._gone


def test_no_more_names_of_the_gone_than_are_told(monkeypatch):
    monkeypatch.setattr(store_module, "MAX_GONE", 10)
    store = Store()
    for key in fill(store, 0):
        store.drop("pods", key)
    assert len(store.view().cluster_pods) == 10


def test_a_view_does_not_change():
    store = Store()
    fill(store, 0)
    before = store.view()
    assert store.view() is before
    store.drop("services", "shop/nobody")
    assert store.view() is before
    fill(store, 1)
    assert len(before.cluster_pods) == PODS
    assert len(store.view().cluster_pods) == 2 * PODS
