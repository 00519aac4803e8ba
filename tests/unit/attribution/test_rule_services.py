"""Services by kube-proxy's rules, followed without the Kubernetes API."""

import threading
from pathlib import Path

import pytest

from tracer.analysis.objects import ruleset_services
from tracer.analysis.ruleset.read import Reader, Texts
from tracer.attribution import rule_services
from tracer.netfilter.rule_programs import Printed, service_lines

SAVED = (Path(__file__).parents[2] / "data/kube-proxy/iptables/iptables-save.txt").read_text()


def test_the_lines_of_services_tell_them_all():
    lines = service_lines(SAVED)
    assert len(lines) < len(SAVED) / 3
    whole, some = (Reader().read(Texts(iptables=text)) for text in (SAVED, lines))
    assert ruleset_services(some) == ruleset_services(whole)
    assert len(ruleset_services(some)[0]) == 13


@pytest.fixture
def followed(monkeypatch):
    """The rules can be changed; what was told, in order."""
    state = {"text": SAVED, "generation": 1, "readings": 0}
    changed = threading.Event()

    def printed():
        state["readings"] += 1
        return Printed({"nft": "", "iptables": state["text"]})

    monkeypatch.setattr(rule_services, "list_service_rules", printed)
    monkeypatch.setattr(rule_services, "_generation", lambda: (state["generation"], 0))
    monkeypatch.setattr(rule_services, "PERIOD_S", 0.01)
    monkeypatch.setattr(rule_services, "SHARE", 1000.0)
    services = rule_services.RuleServices()
    services.start(changed.set)
    yield services, state, changed
    services.stop()


def test_services_are_read_and_read_again(followed):
    services, state, changed = followed
    assert changed.wait(10)
    assert services.version == 1
    assert services.view.services["shop/web"].source == "rules"
    assert services.view.service_by_address["udp/10.96.10.1/53"] == "shop/web"
    changed.clear()
    state["text"], state["generation"] = "", 2
    assert changed.wait(10)
    assert services.version == 2
    assert not services.view.services
    assert state["readings"] == 2


def test_what_cannot_be_read_is_told_once(followed, monkeypatch):
    services, _, changed = followed
    assert changed.wait(10)
    ended = threading.Event()

    def refuse():
        ended.set()
        raise OSError(1, "not permitted")

    monkeypatch.setattr(rule_services, "_generation", refuse)
    assert ended.wait(10)
    services.stop()
    assert services.warnings == ("services of kube-proxy's rules: [Errno 1] not permitted",)
    assert services.view.services
