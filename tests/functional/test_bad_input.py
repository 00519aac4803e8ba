"""What a user gets wrong: one line, a hint, exit 2, and nothing half-done."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lab import runner
from lab.shell import run
from lab.traffic import new_port, send_udp

NOBODY = 65534
pytestmark = pytest.mark.usefixtures("nothing_left")


def is_told(done, *words):
    """Exit 2, `error:` and `hint:` and no more; the error names `words`; nothing on stdout."""
    assert done.code == 2, (done.out, done.err)
    assert "Traceback" not in done.err
    lines = done.err.splitlines()
    assert len(lines) == 2, done.err
    assert lines[0].startswith("error: "), done.err
    assert lines[1].startswith("hint: "), done.err
    assert len(lines[1]) > len("hint: ")
    for word in words:
        assert word in lines[0], done.err
    assert done.out == ""


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("drops", "--pod", "shop/nobody"), "shop/nobody"),
        (("drops", "--namespace", "nowhere"), "nowhere"),
        (("drops", "--selector", "app=nothing"), "app=nothing"),
        (("drops", "--selector", "app=(("), "app=(("),
        (("drops", "--netns", "no-such-netns"), "no-such-netns"),
        (("drops", "--interface", "a-name-that-is-too-long"), "a-name-that-is-too-long"),
        (("drops", "--reason", "NO_SUCH_REASON"), "NO_SUCH_REASON"),
        (("drops", "--duration", "5 parsecs"), "5 parsecs"),
        (("drops", "--duration", "0s"), "0s"),
        (("drops", "--count", "0"), "0"),
        (("drops", "--count", "many"), "many"),
        (("drops", "-o", "xml"), "xml"),
        (("drops", "udp and and"), "udp and and"),
        (("drops", "not a filter"), "filter"),
        (("drops", "--ready-file", "/no/such/directory/ready"), "/no/such/directory"),
        (("flows", "--interval", "soon"), "soon"),
        (("flows", "--write", "/no/such/directory/flows"), "/no/such/directory"),
        (("flows", "--write", "/proc"), "/proc"),
        (("flows", "--format", "papyrus"), "papyrus"),
        (("flows", "--pod", "shop/nobody"), "shop/nobody"),
        (("nonsense",), "nonsense"),
    ],
)
def test_wrong_use(cri_env, arguments, word):
    is_told(runner.finish(*arguments, env=cri_env), word)


@pytest.mark.parametrize("command", ["drops", "flows"])
def test_not_root(command, as_nobody):
    is_told(as_nobody(command), "root")


@pytest.fixture
def as_nobody():
    """Run tracer as a user without any privilege (its files are readable for all)."""

    def start(*arguments):
        drop = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        return runner.finish(*arguments, env={"HOME": "/nonexistent"}, **drop)

    return start


def test_doctor_and_hooks_without_root(as_nobody):
    """They tell what an ordinary user may know, and what is missing; they do not fall over."""
    for command in ("doctor", "hooks"):
        done = as_nobody(command)
        assert done.code in (0, 1, 2)
        assert "Traceback" not in done.err
        assert done.out


def with_mounted(source, target, *arguments, env):
    """Run tracer where `source` hides `target`, for this one process and its children only."""
    script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(source), str(target)]
    done = subprocess.run(
        [*command, *runner.tracer(*arguments)],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, **env},
        check=False,
    )
    return runner.Done(done.returncode, done.stdout, done.stderr)


def test_missing_bcc(tmp_path, cri_env):
    """An environment made without --system-site-packages, or a node without python3-bpfcc."""
    settings = Path(sys.prefix, "pyvenv.cfg")
    isolated = tmp_path / "pyvenv.cfg"
    isolated.write_text(
        settings.read_text().replace("system-site-packages = true", "system-site-packages = false")
    )
    assert isolated.read_text() != settings.read_text()
    done = with_mounted(isolated, settings, "drops", env=cri_env)
    is_told(done, "bcc")
    assert "python3-bpfcc" in done.err


def test_pypi_bcc(tmp_path, cri_env):
    """PyPI's `bcc` is another thing: it imports, and has nothing of ours."""
    (tmp_path / "__init__.py").write_text("")
    real = importlib.util.find_spec("bcc").submodule_search_locations[0]
    is_told(with_mounted(tmp_path, real, "drops", env=cri_env), "bcc")


@pytest.mark.parametrize("command", ["drops", "flows"])
def test_second_instance(cri_env, command):
    with runner.running(command, env=cri_env, alone=True) as first:
        is_told(runner.finish(command, env=cri_env), str(first.process.pid))
        assert first.process.poll() is None


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    run("mount", "-t", "tmpfs", "-o", "size=64k", "tracer-tests", str(tmp_path))
    yield tmp_path
    run("umount", str(tmp_path))


def test_full_disk(cluster, cri_env, small_disk):
    """Flows fill the disk: it says so and goes on; what found no room is told, lines are whole."""
    target = small_disk / "flows.jsonl"
    with runner.running(
        "flows", "--interval", "200ms", "--write", str(target), env=cri_env
    ) as live:
        client = cluster.client
        with client.where.socket(2, 2) as sender:
            for _ in range(200):
                for port in range(30000, 30040):
                    sender.sendto(b"x", (cluster.web.ip4, port))
                if "space" in live.err:
                    break
                time.sleep(0.05)
        assert live.process.poll() is None, "it does not give up"
        done = live.stop()
    assert done.code == 1, done.err
    assert "no space" in done.err.lower(), done.err
    assert "Traceback" not in done.err
    for file in small_disk.iterdir():
        for line in file.read_bytes().splitlines(keepends=True):
            assert line.endswith(b"\n"), f"a half line in {file}"
            json.loads(line)


def test_stdout_is_full(cluster, cri_env):
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(
            runner.tracer("drops", "-o", "json", "--duration", "5s"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **cri_env},
        )
        for _ in range(50):
            time.sleep(0.1)
            with cluster.client.where.socket(2, 2) as sender:
                sender.sendto(b"x", (cluster.web.ip4, 9))
            if process.poll() is not None:
                break
        _, err = process.communicate(timeout=10)
    assert process.returncode == 2, err
    assert "Traceback" not in err
    assert "space" in err.lower()


def test_containerd_dies_and_comes_back(cluster, cri_env):
    """A warning; drops go on with the names known; the new containerd's pods are known again."""
    with runner.running("drops", "-o", "json", env=cri_env) as live:
        cluster.runtime.kill()
        try:
            # containerd 1.6 has no event stream: its death shows at the next poll.
            live.wait_for_line(
                lambda line: line.startswith("warning: ") and "containerd" in line, timeout_s=20
            )
            watch, port = runner.watch(live), new_port()
            send_udp(cluster.client.where, (cluster.web.ip4, port), 7)
            found = watch.expect(7, {"type": "drop", "dst.port": port})
            assert {record["k8s.src.pod.name"] for record in found} == {"client-0"}
        finally:
            cluster.runtime.start()
        again = cluster.run_pod("shop/again-0", app="again")
        try:
            wait_until_known(live, again, cluster.web)
        finally:
            cluster.remove_pod("shop/again-0")
        done = live.stop()
    assert "Traceback" not in done.err
    warnings = [line for line in done.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) < 5, done.err


def wait_until_known(live, pod, web):
    """Send from a pod until tracer names it."""
    for _ in range(100):
        watch, port = runner.watch(live), new_port()
        send_udp(pod.where, (web.ip4, port), 1)
        record = watch.expect(1, {"type": "drop", "dst.port": port})[0]
        if record.get("k8s.src.pod.name") == pod.name:
            return
    known = runner.finish("pods", "-a", "-o", "json").out.splitlines()
    holders = [line for line in known if f'"{pod.ip4}"' in line]
    raise AssertionError(f"{pod.key} stayed unknown; {pod.ip4} is told of {holders}; {live.err}")


def test_containerd_is_not_there_at_all(cluster, cri_env):
    """Names come from the other sources: log directories, cgroups, the CNI cache."""
    cluster.runtime.kill()
    try:
        done = runner.finish("pods", "-o", "json", env=cri_env)
    finally:
        cluster.runtime.start()
    assert done.code == 1, done.err
    assert "Traceback" not in done.err
    names = {(record["k8s.pod.namespace"], record["k8s.pod.name"]) for record in done.records}
    assert {("shop", "client-0"), ("shop", "web-0"), ("ops", "agent-0")} <= names
