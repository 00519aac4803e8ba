"""deploy/ allows just what the watchers ask for."""

from pathlib import Path

import yaml

from tracer.cluster.watch import RESOURCES

DEPLOY = Path(__file__).parents[3] / "deploy"


def documents(name):
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def asked():
    """(API group, resource) of every path that is asked."""
    for resource in RESOURCES:
        parts = resource.path.split("/")
        yield ("", parts[-1]) if parts[1] == "api" else (parts[2], parts[-1])


def test_the_role_allows_what_is_asked_and_no_more():
    (role,) = documents("clusterrole.yaml")
    assert role["kind"] == "ClusterRole"
    allowed = [
        (group, resource)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    ]
    assert sorted(allowed) == sorted(asked())
    assert {verb for rule in role["rules"] for verb in rule["verbs"]} == {"list", "watch"}
    assert not {"resourceNames", "nonResourceURLs"} & {
        key for rule in role["rules"] for key in rule
    }


def test_the_binding_is_of_that_role():
    account, binding = documents("serviceaccount.yaml")
    (role,) = documents("clusterrole.yaml")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    (subject,) = binding["subjects"]
    assert subject["name"] == account["metadata"]["name"]
    assert subject["namespace"] == account["metadata"]["namespace"]
