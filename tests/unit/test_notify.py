"""What systemd is told, heard at a socket of our own."""

import os
import socket

import pytest

from tracer.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def heard(request, tmp_path, monkeypatch):
    """A NOTIFY_SOCKET, and what has come to it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@tracer-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0", 1))
        listener.settimeout(0)
        monkeypatch.setenv("NOTIFY_SOCKET", name)

        def messages():
            found = []
            try:
                while True:
                    found.append(listener.recv(4096).decode())
            except BlockingIOError:
                return found

        yield messages


def test_ready_reloading_stopping(heard, monkeypatch):
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    notifier = Notifier()
    notifier.ready("counting")
    notifier.alive()
    notifier.reloading()
    notifier.ready("again")
    notifier.stopping()
    first, reloading, again, stopping = heard()
    assert (first, again, stopping) == (
        "READY=1\nSTATUS=counting",
        "READY=1\nSTATUS=again",
        "STOPPING=1",
    )
    assert reloading.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert notifier.watchdog_s == float("inf")


def test_the_watchdog_hears_of_it_but_not_all_the_time(heard, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    notifier = Notifier()
    assert notifier.watchdog_s == 15
    for _ in range(5):
        notifier.alive()
    assert heard() == ["WATCHDOG=1"]


def test_the_watchdog_of_another_process_is_not_ours(heard, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    Notifier().alive()
    assert heard() == []


def test_without_systemd_and_with_one_that_is_gone_nothing_happens(monkeypatch, tmp_path):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().ready("x")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    Notifier().ready("x")
