"""Every birth and death of 1,000 short connections a second, and what following them costs.

Run as root: `benchmarks/conntrack.py [SECONDS [PER_SECOND]]` (default 60 s of 1,000). Two
namespaces of our own are joined by a veth pair, one of them tracks connections; a client there
opens, writes, reads and closes TCP connections at an even pace. `tracer conntrack -o json` follows
that namespace. Bars: each connection's birth and death is told once, or counted as lost.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from pyroute2 import netns

REPOSITORY = Path(__file__).resolve().parents[1]
CLIENT, SERVER, PORT = "trb-ct-a", "trb-ct-b", 80
ADDRESSES = {CLIENT: "198.18.78.1", SERVER: "198.18.78.2"}
CONNTRACK = "table ip t { chain c { type filter hook output priority 0; ct state new accept; }; }"
TIMEOUTS = ("tcp_timeout_time_wait", "tcp_timeout_close", "tcp_timeout_last_ack")
STOP_S = 30.0


def sh(*argv: str, stdin: str = "") -> str:
    """Stdout of a command that must succeed."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=20, check=True)
    return done.stdout


def make() -> None:
    """Two namespaces, a wire, conntrack in the first, entries that end a second after close."""
    for name in ADDRESSES:
        sh("ip", "netns", "add", name)
    wire = f"link add eth0 netns {CLIENT} type veth peer name eth0 netns {SERVER}\n"
    sh("ip", "-batch", "-", stdin=wire)
    for name, address in ADDRESSES.items():
        inside = f"addr add {address}/24 dev eth0\nlink set eth0 up\nlink set lo up\n"
        sh("ip", "-n", name, "-batch", "-", stdin=inside)
        sh("ip", "netns", "exec", name, "sysctl", "-wq", "net.ipv4.ip_local_port_range=1024 65535")
        sh("ip", "netns", "exec", name, "sysctl", "-wq", "net.ipv4.tcp_tw_reuse=1")
    sh("ip", "netns", "exec", CLIENT, "nft", "-f", "-", stdin=CONNTRACK)
    for name in TIMEOUTS:
        sh("ip", "netns", "exec", CLIENT, "sysctl", "-wq", f"net.netfilter.nf_conntrack_{name}=1")


def clear() -> None:
    """Remove the namespaces."""
    for name in ADDRESSES:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def serve() -> None:
    """Answer each connection with what it sent; runs until killed."""
    netns.setns(SERVER)
    with socket.create_server((ADDRESSES[SERVER], PORT), backlog=4096) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(connection.recv(64))


def send(seconds: float, per_s: int) -> int:
    """Open connections at an even pace; how many."""
    netns.setns(CLIENT)
    begun_s, made = time.monotonic(), 0
    while (now_s := time.monotonic() - begun_s) < seconds:
        due = int(now_s * per_s)
        for number in range(made, due):
            with socket.socket() as sock:
                # Ports in turn: each connection is a new entry, not an old one opened again.
                sock.bind((ADDRESSES[CLIENT], 1024 + number % 64000))
                sock.connect((ADDRESSES[SERVER], PORT))
                sock.sendall(b"x")
                sock.recv(64)
        made = due
        time.sleep(0.002)
    return made


def start_tracer(ready: Path, output: Path) -> subprocess.Popen[str]:
    """`tracer conntrack` on the client's namespace, once it is ready."""
    arguments = ("conntrack", "--netns", CLIENT, "-o", "json", "--concurrent")
    process = subprocess.Popen(
        [sys.executable, "-m", "tracer", *arguments, "--ready-file", str(ready)],
        stdout=output.open("w"), stderr=subprocess.DEVNULL, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    end = time.monotonic() + STOP_S
    while not ready.exists():
        if time.monotonic() > end or process.poll() is not None:
            raise RuntimeError("tracer does not start")
        time.sleep(0.05)
    return process


def wait_for_deaths() -> None:
    """Until the table is empty; listing it has the kernel throw away some of what has run out.

    What has run out is not listed, but is there until then.
    """
    inside = ("ip", "netns", "exec", CLIENT)
    end = time.monotonic() + STOP_S
    while int(sh(*inside, "sysctl", "-n", "net.netfilter.nf_conntrack_count")):
        sh(*inside, "conntrack", "-L")
        if time.monotonic() > end:
            raise RuntimeError("entries do not end")
        time.sleep(0.3)


def cpu_s(pid: int) -> float:
    """Processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mb(pid: int) -> int:
    """Most memory that a process has had resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) >> 10
    return 0


def in_thread_count(seconds: float, per_s: int) -> int:
    """`send` in a thread of its own, which stays in its namespace."""
    made: list[int] = []
    thread = threading.Thread(target=lambda: made.append(send(seconds, per_s)))
    thread.start()
    thread.join()
    return made[0]


def measure(seconds: float, per_s: int) -> dict[str, float]:
    """One run's figures."""
    server = subprocess.Popen([sys.executable, __file__, "--serve"])
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory, "records")
        try:
            time.sleep(0.5)
            tracer = start_tracer(Path(directory, "ready"), output)
            before_s, begun_s = cpu_s(tracer.pid), time.monotonic()
            made = in_thread_count(seconds, per_s)
            elapsed_s = time.monotonic() - begun_s
            share = (cpu_s(tracer.pid) - before_s) / elapsed_s
            wait_for_deaths()
            time.sleep(1)
            peak = peak_mb(tracer.pid)
            tracer.send_signal(2)
            tracer.wait(STOP_S)
        finally:
            server.kill()
            server.wait()
        records = [json.loads(line) for line in output.read_text().splitlines()]
    events = [record["event"] for record in records if record["type"] == "conntrack"]
    end = records[-1]
    lost = end["lost"]
    return {
        "connections": made,
        "connections_per_s": round(made / elapsed_s, 1),
        "events": len(events),
        "births": events.count("new"),
        "deaths": events.count("destroy"),
        "events_lost": lost.get("conntrack events", 0),
        "births_lost": lost.get("births", 0),
        "deaths_lost": lost.get("deaths", 0),
        "alive": end["alive"],
        "cpu_share_percent": round(100 * share, 1),
        "peak_memory_mb": peak,
    }


def main() -> int:
    """Print the figures; 1 where a birth or death is neither told nor counted."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    per_s = int(sys.argv[2]) if len(sys.argv) > 2 else 1000  # noqa: PLR2004 - arguments
    clear()
    try:
        make()
        figures = measure(seconds, per_s)
    finally:
        clear()
    for name, value in figures.items():
        print(f"{name:<20} {value}")
    is_exact = all(
        figures[what] + figures[f"{what}_lost"] == figures["connections"]
        for what in ("births", "deaths")
    )
    print("every birth and death is told or counted:", "yes" if is_exact else "NO")
    return 0 if is_exact else 1


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    sys.exit(main())
