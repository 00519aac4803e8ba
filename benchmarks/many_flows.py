"""Two pods that a node routes between, and flow_blast.c: flows of which every packet is known."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from two_pods import BRIDGE, NODE, PODS, run, two_pods

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SOURCE = Path(__file__).with_name("flow_blast.c")
SENDER, SERVER = PODS
NODE_ADDRESS = "198.18.77.254"
SERVICES = ("198.18.78.0", "198.18.78.1")
"""Both lead to the server's port; of the second the source is translated too."""
SERVICE_PORT, SERVER_PORT = 80, 8080
DOOMED_UDP_BYTES = 208
NODE_RULES = f"""
table ip flows {{
  chain services {{
    type nat hook prerouting priority dstnat;
    ip daddr {{ {", ".join(SERVICES)} }} udp dport {SERVICE_PORT} \
dnat to {PODS[SERVER]}:{SERVER_PORT}
  }}
  chain masquerades {{
    type nat hook postrouting priority srcnat;
    ct original ip daddr {SERVICES[1]} masquerade
  }}
}}
"""
SERVER_RULES = f"""
table ip flows {{
  chain drops {{
    type filter hook input priority filter;
    udp length {DOOMED_UDP_BYTES} drop
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Tally:
    """Packets, and their bytes from the network header on."""

    packets: int
    bytes: int

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.packets + other.packets, self.bytes + other.bytes)

    def __sub__(self, other: Tally) -> Tally:
        return Tally(self.packets - other.packets, self.bytes - other.bytes)


@dataclass(frozen=True, slots=True)
class Sent:
    """What flow_blast says of one flow."""

    port: int
    address: int
    sent: Tally
    doomed: Tally
    answered: Tally


@contextmanager
def routed_pods() -> Iterator[None]:
    """Two pods whose default route is the node, which forwards; no Service yet."""
    with two_pods():
        run("ip", "-n", NODE, "address", "add", f"{NODE_ADDRESS}/24", "dev", BRIDGE)
        run("ip", "netns", "exec", NODE, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        for pod in PODS:
            run("ip", "-n", pod, "route", "add", "default", "via", NODE_ADDRESS)
        yield


def add_services() -> None:
    """Have the node translate SERVICES, and the server drop what flow_blast means to be dropped.

    Not the node: what dies there tracer tells of pods, and a runtime that knows ours is not here.
    """
    for where, rules in ((NODE, NODE_RULES), (SERVER, SERVER_RULES)):
        on = ("ip", "netns", "exec", where, "nft", "-f", "-")
        subprocess.run(on, input=rules, text=True, check=True, timeout=30)


class Sender:
    """A running flow_blast."""

    def __init__(self, directory: Path, to: str, address: str, port: int, *words: int) -> None:
        """Compile and start it; `to` is a namespace, `words` are PORTS and what follows."""
        program = directory / "flow_blast"
        run("cc", "-O2", "-Wall", "-o", str(program), str(SOURCE))
        places = (f"/run/netns/{SENDER}", f"/run/netns/{to}", address)
        self._process = subprocess.Popen(
            (str(program), *places, *map(str, (port, *words))),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def alone_on(self, cpu: int) -> None:
        """Nobody else shall run there while it sends."""
        os.sched_setaffinity(self._process.pid, {cpu})
        os.sched_setscheduler(self._process.pid, os.SCHED_FIFO, os.sched_param(1))

    def send(self, packets: int) -> None:
        """Send, the first packets one for each flow; all have arrived when this returns."""
        print(packets, file=self._process.stdin, flush=True)
        if self._process.stdout is None or self._process.stdout.readline() != "sent\n":
            raise RuntimeError("flow_blast: a packet is missing (see stderr)")

    def finish(self) -> Sequence[Sent]:
        """End it; what it sent, flow by flow."""
        text = self._process.communicate(timeout=60)[0]
        if self._process.returncode:
            raise RuntimeError("flow_blast failed")
        return [_sent(line) for line in text.splitlines()]

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()


def _sent(line: str) -> Sent:
    port, address, *numbers = map(int, line.split())
    tallies = [Tally(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]
    return Sent(port, address, *tallies)
