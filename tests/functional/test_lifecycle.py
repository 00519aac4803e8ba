"""Start, stop, crash: how long they take, and that the node is as it was before."""

from __future__ import annotations

import os
import signal
import time

import pytest
from lab import runner
from lab.traffic import new_port, send_udp

from tracer import cli

CLI = cli.__file__
pytestmark = pytest.mark.usefixtures("nothing_left")
COMMANDS = {"drops": ("drops", "-o", "json"), "flows": ("flows", "--interval", "300ms")}
EACH = pytest.mark.parametrize("command", COMMANDS)


@EACH
def test_start_and_stop(cluster, cri_env, command, record_property):
    """The goals are 1.5 s and 0.3 s on an idle machine; a busy one is given more."""
    with runner.running(*COMMANDS[command], env=cri_env) as live:
        live.wait_for_line(lambda line: line.startswith("tracing"))
        port = new_port()
        began = time.monotonic()
        send_udp(cluster.client.where, (cluster.web.ip4, port), 7)
        runner.until(lambda: any(f'"dst.port":{port}' in x for x in live.lines), "a first record")
        first_s = time.monotonic() - began
        done = live.stop()
    assert done.code == 0, done.err
    print(
        f"{command}: start {live.ready_s:.2f} s, record {first_s:.3f} s, stop {live.stop_s:.2f} s"
    )
    record_property(f"{command}_start_s", live.ready_s)
    record_property(f"{command}_stop_s", live.stop_s)
    assert live.ready_s < 6
    assert live.stop_s < 2


@EACH
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left(cluster, cri_env, command, number):
    with runner.running(*COMMANDS[command], env=cri_env) as live:
        send_udp(cluster.client.where, (cluster.web.ip4, new_port()), 7)
        done = live.stop(number)
    assert done.code == (-number if number == signal.SIGKILL else 0), done.err
    assert "Traceback" not in done.err


@EACH
def test_ctrl_c_while_it_starts(cri_env, command):
    """The signal goes to the whole foreground group, children too, as a terminal sends it."""
    for delay_s in (0.1, 0.5, 0.9):
        process = runner.start(*COMMANDS[command], env=cri_env, start_new_session=True)
        time.sleep(delay_s)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=10)
        # At first Python itself starts, and imports what tracer's main() is in.
        assert f'File "{CLI}", line' not in err or ", in main" not in err, err


def test_a_new_one_starts_after_a_crash(cri_env):
    """What a killed run left (a lock, a ready file) does not stand in the way."""
    with runner.running("drops", env=cri_env) as live:
        live.stop(signal.SIGKILL)
    with runner.running("drops", env=cri_env) as live:
        assert live.stop().code == 0


def test_idle_costs_nothing(cri_env):
    """No busy loop: the processor time of two idle seconds."""
    with runner.running("drops", "-o", "json", "udp dst port 1", env=cri_env) as live:
        time.sleep(0.5)
        before = runner.cpu_s(live.process.pid)
        time.sleep(2)
        used = runner.cpu_s(live.process.pid) - before
    print(f"idle: {used / 2:.2%} of a processor")
    assert used / 2 < 0.03
