"""iperf3 between the pods: its client on the first CPU, its server on the next."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from two_pods import PODS, Blast, run

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 1
AFFINITY = "0,1"
FIRST = ("nice", "--adjustment=-20")
"""Before whatever else the machine has to do."""
READY_S, STOP_S = 10, 10


def installed() -> bool:
    """Whether this machine has it (Debian, Fedora: package `iperf3`)."""
    return shutil.which("iperf3") is not None


@contextmanager
def server(port: int) -> Iterator[None]:
    """iperf3's server in the second pod, for the block."""
    where = (*FIRST, "ip", "netns", "exec", list(PODS)[1])
    words = ("iperf3", "--server", "--port", str(port), "--json")
    process = subprocess.Popen((*where, *words), stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + READY_S
        while str(port) not in run(*where, "ss", "--listening", "--tcp", "--numeric"):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError("iperf3: the server does not listen")
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(timeout=STOP_S)


def client(port: int, *words: str) -> Blast:
    """One run of a second."""
    sender, receiver = PODS
    where = (*FIRST, "ip", "netns", "exec", sender, "iperf3", "--client", PODS[receiver])
    common = ("--port", str(port), "--time", str(SECONDS), "--affinity", AFFINITY, "--json")
    return moved(json.loads(run(*where, *common, *words))["end"])


def moved(end: dict[str, Any]) -> Blast:
    """What iperf3's own account of a run, `end` of its JSON, says that went from pod to pod.

    Of UDP it is what was sent: iperf3's receiver has a small buffer, and what finds no room there
    has been everywhere else.
    """
    took = end["sum"] if "packets" in end.get("sum", {}) else end["sum_received"]
    units = took.get("packets", took["bytes"])
    return Blast(units, took["bytes"], round(took["seconds"] * 1e9))
