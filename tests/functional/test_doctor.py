"""doctor and hooks on this node, with and without root."""

import json
import subprocess
import sys

import pytest
from lab.shell import until

NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")


def tracer(*arguments, before=()):
    return subprocess.run(
        [*before, sys.executable, "-I", "-m", "tracer", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def probes_left():
    """Ids of the probes' BPF programs that the kernel still knows."""
    listed = subprocess.run(["bpftool", "-j", "prog"], capture_output=True, check=True).stdout
    return {program["id"] for program in json.loads(listed) if program.get("name") == "probe"}


def checks(answer):
    records = [json.loads(line) for line in answer.stdout.splitlines()]
    return {record["check"]: record for record in records}


def test_doctor_as_root_finds_what_tracer_needs():
    answer = tracer("doctor", "-o", "json")
    found = checks(answer)
    assert answer.stderr == ""
    for check in ("privileges", "bpf", "btf", "bcc", "libbpf", "libpcap", "kallsyms"):
        assert found[check]["state"] == "ok", found[check]
    states = {record["state"] for record in found.values()}
    assert answer.returncode == (1 if "degraded" in states else 0)
    assert all("hint" in r for r in found.values() if r["state"] == "missing")


def test_doctor_without_root_tells_what_it_can():
    answer = tracer("doctor", "-o", "json", before=NOBODY)
    found = checks(answer)
    assert answer.returncode == 2
    assert answer.stderr == ""
    assert found["privileges"]["state"] == "missing"
    assert found["privileges"]["hint"] == "run it with sudo"
    assert found["btf"]["state"] == "ok"
    assert "needs root" in found["hook skb-drop"]["detail"]


def test_doctor_text_ends_with_the_verdict():
    last = tracer("doctor").stdout.splitlines()[-1]
    assert last.split(":")[0] in ("ready", "degraded")


def test_hooks_tries_every_hook_and_leaves_nothing_behind():
    answer = tracer("hooks", "-o", "json")
    records = [json.loads(line) for line in answer.stdout.splitlines()]
    assert answer.returncode == 0, answer.stdout
    assert {"skb-drop", "dev-xmit", "dev-rx"} <= {record["hook"] for record in records}
    assert all(record["tried"] and record["way"] for record in records)
    # The kernel frees programs after a grace period, behind the caller's back.
    until(lambda: not probes_left(), "the probes are gone", timeout_s=5)


def test_hooks_without_root_promises_from_btf():
    answer = tracer("hooks", "-o", "json", before=NOBODY)
    assert answer.returncode == 0
    assert not any(json.loads(line)["tried"] for line in answer.stdout.splitlines())


@pytest.mark.parametrize("command", ["doctor", "hooks"])
def test_bad_output_format(command):
    answer = tracer(command, "-o", "xml")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.splitlines()[0].startswith("error: argument -o/--output: invalid choice")
