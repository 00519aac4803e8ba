"""List and watch against a fake API server that serves what a real one said."""

import json
import threading
import time

import pytest
from fake_api import KUBERNETES, TLS, FakeApi, kubeconfig, recorded

from tracer.cluster import cluster as cluster_module
from tracer.cluster import store as store_module
from tracer.cluster import watch as watch_module
from tracer.cluster.cluster import Cluster
from tracer.cluster.credentials import connect
from tracer.errors import TracerError
from tracer.model import Owner

LONG_S = 20.0
"""Deadline of what comes within milliseconds on a machine that is not overloaded."""


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(watch_module, "MIN_RETRY_S", 0.02)
    monkeypatch.setattr(watch_module, "MAX_RETRY_S", 0.1)
    monkeypatch.setattr(cluster_module, "PACE_S", 0.01)
    monkeypatch.setattr(cluster_module, "IDLE_S", 0.05)


@pytest.fixture
def api():
    with FakeApi() as fake:
        yield fake


@pytest.fixture
def follow(tmp_path):
    running = []

    def start(fake, **options):
        cluster = Cluster(connect(kubeconfig(tmp_path / "config", fake.url, **options)))
        cluster.start()
        running.append(cluster)
        return cluster

    yield start
    for cluster in running:
        cluster.stop()


def until(condition):
    deadline_s = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline_s, "did not happen in time"
        time.sleep(0.005)


def a_pod(name="web-0", address="10.9.9.9", **more):
    return {
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": "web"}, **more},
        "spec": {"nodeName": "other", "containers": []},
        "status": {"phase": "Running", "podIPs": [{"ip": address}]},
    }


def test_what_a_real_server_listed(api, follow):
    cluster = follow(api)
    assert cluster.wait_synced(LONG_S)
    view = cluster.view
    assert len(view.cluster_pods) == 11
    web = view.cluster_pods["shop/web-77fcd85cb8-4j8cs"]
    assert web.labels["app"] == "web"
    assert web.addresses == ("10.244.0.8", "fd00:10:244::8")
    assert view.cluster_pod_by_address["fd00:10:244::8"] == "shop/web-77fcd85cb8-4j8cs"
    assert web.owner == Owner("ReplicaSet", "web-77fcd85cb8")
    assert view.owners["shop/ReplicaSet/web-77fcd85cb8"] == Owner("Deployment", "web")
    agent = view.cluster_pods["ops/agent-bhb8k"]
    assert agent.host_network
    assert view.node_by_address["198.51.100.10"] == agent.node
    assert "198.51.100.10" not in view.cluster_pod_by_address
    assert view.cluster_pods["ops/done-dbw78"].addresses == ()  # a Job's, completed
    assert view.service_by_address["tcp/10.96.10.5/80"] == "shop/no-endpoints"
    assert view.service_by_address["tcp//30080"] == "shop/web-np"
    assert view.service_by_address["tcp/203.0.113.50/80"] == "shop/extip"
    assert view.services["shop/web-np-local"].external_local
    assert view.services["shop/headless"].addresses == ()
    assert view.namespace_labels["shop"]["kubernetes.io/metadata.name"] == "shop"
    policy = view.network_policies["ops/default-deny"]
    assert policy.ingress == policy.egress == ()
    assert view.network_policies["shop/web-allow-client"].egress is None
    slices = [one for one in view.endpoint_slices.values() if one.service == "web"]
    assert "10.244.0.8" in {address for one in slices for address in one.ready}
    assert cluster.warnings == ()


def test_a_list_comes_in_pages(follow):
    with FakeApi(page=2) as api:
        cluster = follow(api)
        assert cluster.wait_synced(LONG_S)
        assert len(cluster.view.cluster_pods) == 11
        assert sum(kind == "pods" and "watch" not in query for kind, query in api.requests) == 6


def test_the_events_that_a_real_server_sent(api, follow):
    events = [json.loads(line) for line in (KUBERNETES / "watch-pods.ndjson").open()]
    pod = "shop/web-77fcd85cb8-9vpjw"
    cluster = follow(api)
    assert cluster.wait_synced(LONG_S)
    assert pod not in cluster.view.cluster_pods
    lived = [event for event in events if event["object"]["metadata"].get("name") == pod[5:]]
    for event in lived[:-1]:
        api.event("pods", event["type"], event["object"])
    with_address = [e["object"]["status"].get("podIP") for e in lived]
    address = next(filter(None, with_address))
    until(lambda: pod in cluster.view.cluster_pods)
    assert address
    api.event("pods", "DELETED", lived[-1]["object"])
    api.event("pods", "ADDED", a_pod())
    until(lambda: "10.9.9.9" in cluster.view.cluster_pod_by_address)
    assert pod in cluster.view.cluster_pods, "late packets of the gone still have names"


def test_the_name_of_a_gone_pod_goes_in_the_end(api, follow, monkeypatch):
    monkeypatch.setattr(store_module, "LINGER_S", 0.05)
    cluster = follow(api)
    api.event("pods", "ADDED", a_pod())
    until(lambda: "10.9.9.9" in cluster.view.cluster_pod_by_address)
    api.event("pods", "DELETED", a_pod())
    until(lambda: "shop/web-0" not in cluster.view.cluster_pods)
    assert "10.9.9.9" not in cluster.view.cluster_pod_by_address


def test_an_address_belongs_to_its_newest_pod(api, follow, monkeypatch):
    monkeypatch.setattr(store_module, "LINGER_S", 0.05)
    cluster = follow(api)
    api.event("pods", "ADDED", a_pod("old"))
    until(lambda: cluster.view.cluster_pod_by_address.get("10.9.9.9") == "shop/old")
    api.event("pods", "DELETED", a_pod("old"))
    api.event("pods", "ADDED", a_pod("new"))
    until(lambda: "shop/old" not in cluster.view.cluster_pods)
    assert cluster.view.cluster_pod_by_address["10.9.9.9"] == "shop/new"


def test_a_service_that_goes_takes_its_addresses(api, follow):
    cluster = follow(api)
    assert cluster.wait_synced(LONG_S)
    (web,) = (item for item in recorded("services") if item["metadata"]["name"] == "web")
    api.event("services", "DELETED", web)
    until(lambda: "tcp/10.96.10.1/80" not in cluster.view.service_by_address)
    assert "shop/web" not in cluster.view.services
    assert "shop/web-np" in cluster.view.services


def test_410_lists_again_and_drops_what_has_gone(api, follow, monkeypatch):
    monkeypatch.setattr(store_module, "LINGER_S", 0.0)
    cluster = follow(api)
    assert cluster.wait_synced(LONG_S)
    until(lambda: api.watches("pods"))
    del api.objects["pods"]["shop", "client"]  # nobody is told
    api.objects["pods"]["shop", "web-0"] = a_pod()
    assert api.lists("pods") == 1
    api.compact()
    until(lambda: "shop/web-0" in cluster.view.cluster_pods)
    until(lambda: "shop/client" not in cluster.view.cluster_pods)
    assert api.lists("pods") == 2
    assert cluster.warnings == ()


def test_a_bookmark_is_where_the_next_watch_begins(tmp_path, follow):
    with FakeApi() as api:
        cluster = follow(api)
        assert cluster.wait_synced(LONG_S)
        until(lambda: len(api.watches("pods")) == 1)
        api.bookmark("pods")
        version, port = api.version, api.port
        until(lambda: cluster._watchers[0]._version == str(version))
    until(lambda: cluster.warnings)
    with FakeApi(port=port) as api:
        api.version = version
        until(lambda: api.watches("pods"))
        assert api.watches("pods")[0] == str(version)
        assert api.lists("pods") == 0, "what is known was not listed again"
        until(lambda: cluster.warnings == ())
    assert tmp_path.exists()


def test_a_dying_server_is_a_warning_and_names_stay(follow):
    with FakeApi() as api:
        cluster = follow(api)
        assert cluster.wait_synced(LONG_S)
        port = api.port
    until(
        lambda: any(
            "no answer" in warning and "names of pods on other nodes" in warning
            for warning in cluster.warnings
        )
    )
    assert len(cluster.view.cluster_pods) == 11
    with FakeApi(port=port) as api:
        api.event("pods", "ADDED", a_pod())
        until(lambda: "10.9.9.9" in cluster.view.cluster_pod_by_address)
        until(lambda: cluster.warnings == ())


def test_what_may_not_be_listed_is_told_and_the_rest_goes_on(api, follow):
    api.status = {"networkpolicies": 403, "jobs": 403}
    cluster = follow(api)
    assert cluster.wait_synced(LONG_S, ("pods", "services"))
    told = (
        "kubernetes API: networkpolicies, jobs: not allowed: what NetworkPolicies allow,"
        " CronJobs of pods may be missing or stale"
    )
    until(lambda: cluster.warnings == (told,))
    api.status = {}
    until(lambda: cluster.warnings == ())
    assert "ops/default-deny" in cluster.view.network_policies


def test_nonsense_is_a_warning(api, follow):
    cluster = follow(api)
    assert cluster.wait_synced(LONG_S)
    api.event("pods", "ADDED", a_pod() | {"spec": "nonsense"})
    until(lambda: any("not understood" in warning for warning in cluster.warnings))


def test_tls_and_tokens(follow):
    with FakeApi(tls=True) as api:
        cluster = follow(api, ca=TLS / "cert.pem")
        assert cluster.wait_synced(LONG_S)
        assert len(cluster.view.cluster_pods) == 11


def test_a_server_that_is_not_trusted_is_not_asked(follow):
    with FakeApi(tls=True) as api:
        cluster = follow(api)
        until(lambda: any("SSL" in warning for warning in cluster.warnings))
        assert api.requests == []


def test_a_wrong_token_is_told(api, follow):
    cluster = follow(api, token="expired")  # noqa: S106 - a test's
    until(lambda: any("credentials are not accepted" in one for one in cluster.warnings))


def test_stopping_does_not_wait_for_the_server(api, follow):
    cluster = follow(api)
    assert cluster.wait_synced(LONG_S)
    until(lambda: all(api.watches(kind) for kind in ("pods", "services", "jobs")))
    cluster.stop()
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("cluster-")])


def test_only_list_and_watch_are_asked(api, follow):
    """What deploy/clusterrole.yaml has to allow, and nothing else."""
    cluster = follow(api)
    assert cluster.wait_synced(LONG_S)
    assert {kind for kind, _ in api.requests} == {one.kind for one in watch_module.RESOURCES}


def test_no_credentials_no_cluster(monkeypatch):
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert connect() is None


def test_a_pod_without_token_does_not_ask(monkeypatch):
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(
        "kubernetes.config.incluster_config.SERVICE_TOKEN_FILENAME", "/nonexistent/token"
    )
    assert connect() is None


def test_kubeconfig_from_the_environment(api, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", api.url)))
    access = connect()
    response = access.get("/api/v1/pods", {"limit": "1"}, "application/json", 5.0)
    assert response.status == 200
    response.close()


@pytest.mark.parametrize("text", [None, "", "{", "kind: Config\n"])
def test_a_bad_kubeconfig_is_an_error(tmp_path, text):
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)
    with pytest.raises(TracerError, match=r"kubeconfig .*config"):
        connect(path)
