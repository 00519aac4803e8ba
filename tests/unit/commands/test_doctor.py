"""How doctor and hooks judge and print what was found."""

import json

import pytest

from tracer.commands import doctor, hooks
from tracer.errors import ExitCode
from tracer.kernel.hook_probe import HookProbe
from tracer.kernel.hooks import Hook, Way
from tracer.model import Finding, State

TYPED, RAW = Way("tp_btf", "kfree_skb"), Way("raw_tp", "kfree_skb", "each field costs a call")
DROPS = Hook("skb-drop", "who freed it", (TYPED, RAW), ("drops", "flows"))
EXTRA = Hook("nf-hook", "verdicts", (TYPED, RAW), ("drops", "flows"), optional=True)
SPARE = Hook("nf-watch", "each once", (TYPED,), ("trace",), optional=True, spare=True)
FULL = Way("fexit", "nf_hook_slow", "same records, but", full=True)
FLOWS = Hook("dev-rx", "what came", (TYPED, RAW), ("flows",))


def preferred(hook):
    return HookProbe(hook, TYPED, tried=True)


def fallback(hook):
    return HookProbe(hook, RAW, tried=True, refused=("tp_btf kfree_skb: no BTF",))


def substitute(hook):
    return HookProbe(hook, FULL, tried=True, refused=("nf_link ip: too old",))


def closed(hook):
    return HookProbe(hook, None, tried=True, refused=("tp_btf x: no", "raw_tp x: no"))


def promised(hook):
    return HookProbe(hook, TYPED, tried=False)


@pytest.mark.parametrize(
    ("probes", "states", "code"),
    [
        ([preferred(DROPS), preferred(FLOWS)], ["ok", "ok"], ExitCode.DONE),
        ([preferred(DROPS), fallback(FLOWS)], ["ok", "degraded"], ExitCode.PARTIAL),
        ([preferred(DROPS), closed(FLOWS)], ["ok", "degraded"], ExitCode.PARTIAL),
        ([closed(DROPS), preferred(FLOWS)], ["missing", "ok"], ExitCode.PARTIAL),
        ([closed(DROPS), closed(FLOWS)], ["missing", "missing"], ExitCode.UNUSABLE),
        ([preferred(DROPS), closed(EXTRA)], ["ok", "degraded"], ExitCode.PARTIAL),
        ([preferred(DROPS), substitute(EXTRA)], ["ok", "ok"], ExitCode.DONE),
        ([preferred(DROPS), closed(SPARE)], ["ok", "ok"], ExitCode.DONE),
        ([promised(DROPS), promised(FLOWS)], ["ok", "ok"], ExitCode.DONE),
    ],
)
def test_hooks_are_judged_by_what_still_runs(probes, states, code):
    """Without skb-drop neither command runs; without dev-rx only flows does not."""
    assert [finding.state.value for finding in doctor.hook_findings(probes)] == states
    assert hooks.exit_code(probes) is code


def test_a_hook_that_only_spares_others_is_not_missed():
    (finding,) = doctor.hook_findings([closed(SPARE)])
    assert finding.state is State.OK
    assert "trace does without" in finding.detail


def test_the_worst_finding_decides():
    found = [Finding("a", State.OK, ""), Finding("b", State.DEGRADED, "")]
    assert doctor.worst([]) is State.OK
    assert doctor.worst(found) is State.DEGRADED
    assert doctor.worst([Finding("c", State.MISSING, ""), *found]) is State.MISSING


def test_a_fallback_names_what_it_loses_and_why():
    (finding,) = doctor.hook_findings([fallback(DROPS)])
    assert "each field costs a call" in finding.detail
    assert "no BTF" in finding.detail


def test_a_full_substitute_says_what_is_different():
    (finding,) = doctor.hook_findings([substitute(EXTRA)])
    assert finding.detail == "fexit nf_hook_slow: same records, but (nf_link ip: too old)"


@pytest.fixture
def node(monkeypatch):
    """A node whose findings the test decides."""

    def found(*findings):
        monkeypatch.setattr(doctor.probe, "findings", lambda _: findings)
        monkeypatch.setattr(doctor.hook_probe, "probe_hooks", list)
        monkeypatch.setattr(doctor.inventory_probe, "findings", lambda _: [])

    return found


def run(output):
    return doctor.run(type("Arguments", (), {"output": output}))


def test_text_ends_with_the_verdict_and_its_causes(node, capsys):
    node(
        Finding("btf", State.OK, "there"),
        Finding("cri", State.DEGRADED, "no labels", "start containerd"),
    )
    assert run("text") is ExitCode.PARTIAL
    assert capsys.readouterr().out.splitlines() == [
        "btf  there",
        "cri  degraded: no labels",
        "     hint: start containerd",
        "degraded: cri",
    ]


def test_json_is_one_object_a_line(node, capsys):
    node(Finding("bcc", State.MISSING, "not installed", "apt"), Finding("jit", State.OK, "on"))
    assert run("json") is ExitCode.UNUSABLE
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"check": "bcc", "state": "missing", "detail": "not installed", "hint": "apt"},
        {"check": "jit", "state": "ok", "detail": "on"},
    ]


def test_ready(node, capsys):
    node(Finding("jit", State.OK, "on"))
    assert run("text") is ExitCode.DONE
    assert capsys.readouterr().out.splitlines()[-1] == "ready"


def test_hooks_record():
    assert hooks.record(fallback(DROPS)) == {
        "hook": "skb-drop",
        "tells": "who freed it",
        "way": "raw_tp",
        "target": "kfree_skb",
        "costs": "each field costs a call",
        "tried": True,
        "commands": ["drops", "flows"],
        "refused": ["tp_btf kfree_skb: no BTF"],
    }
    assert "way" not in hooks.record(closed(DROPS))
