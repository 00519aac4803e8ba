"""Time to know a node of 250 pods with two containers each.

Run as root: `benchmarks/inventory.py [PODS]`. The node is a namespace of its own (network,
mounts, processes), so that nothing is left and nothing else is seen; its pods are real
namespaces, veth pairs on a bridge, processes and cgroups; the runtime is a fake one that
answers with the size of a real one's answers. Bars: full scan ≤1 s, update ≤50 ms.
"""

from __future__ import annotations

import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from fake_cri import FakeRuntime

    from tracer.inventory import Inventory
    from tracer.inventory.facts import Facts
    from tracer.model import Node

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests" / "unit" / "inventory")]

CONTAINERS = 2
SCANS = UPDATES = 15
SCAN_BAR_S, UPDATE_BAR_S = 1.0, 0.05
CGROUPS = next(
    (
        root
        for root in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
        if (root / "cgroup.procs").exists()
    ),
    None,
)
OURS = "tracer-benchmark"


def sh(*command: str, **options: object) -> None:
    """Run a command that must succeed."""
    subprocess.run(command, check=True, **options)  # type: ignore[call-overload]


def uid(number: int) -> str:
    """Name a pod's uid, which no other test uses."""
    return f"7e57ab1f-0000-4000-8000-{number:012d}"


def container_id(number: int, index: int) -> str:
    """Name a container; index 0 is the sandbox."""
    return f"{number * 10 + index:064x}"


def make_pod(number: int, logs: Path) -> None:
    """Make a pod as a runtime does: namespace, veth, addresses, three processes in cgroups."""
    name, veth = f"cni-{number}", f"tbv{number}"
    commands = (
        f"netns add {name}\n"
        f"link add {veth} type veth peer name eth0 netns {name}\n"
        f"link set {veth} master tbr0 up\n"
    )
    sh("ip", "-batch", "-", input=commands, text=True)
    inside = (
        f"addr add 10.{60 + number // 250}.{number % 250}.2/8 dev eth0\n"
        f"addr add fd60::{number:x}/64 dev eth0 nodad\nlink set eth0 up\nlink set lo up\n"
    )
    sh("ip", "-n", name, "-batch", "-", input=inside, text=True)
    for index in range(1 + CONTAINERS):
        process = subprocess.Popen(["ip", "netns", "exec", name, "sleep", "1000"])
        if CGROUPS:
            home = CGROUPS / OURS / f"pod{uid(number)}" / container_id(number, index)
            home.mkdir(parents=True)
            (home / "cgroup.procs").write_text(str(process.pid))
    (logs / f"shop_web-{number}_{uid(number)}").mkdir()


def runtime(numbers: range) -> FakeRuntime:
    """Make a fake runtime that knows the pods `numbers`, from a real one's answers."""
    from fake_cri import FakeRuntime, recorded  # noqa: PLC0415 - needs the path above

    from tracer.inventory.cri_messages import MESSAGES  # noqa: PLC0415 - same

    template = recorded("containerd-2.1.9")
    listing = MESSAGES["ListPodSandboxResponse"].FromString(template.listing)
    item = listing.items[0]
    answer = template.statuses[item.id]
    made, statuses = MESSAGES["ListPodSandboxResponse"](), {}
    for number in numbers:
        box = made.items.add()
        box.CopyFrom(item)
        box.id = container_id(number, 0)
        box.metadata.uid, box.metadata.name = uid(number), f"web-{number}"
        statuses[box.id] = answer.replace(item.id.encode(), box.id.encode())
    return FakeRuntime(made.SerializeToString(), statuses)


def serve(path: Path, ready: Path, numbers: range) -> None:
    """Serve the pods `numbers`; SIGUSR1 adds the next one."""
    from fake_cri import serving  # noqa: PLC0415 - needs the path above

    fake = runtime(numbers)

    def grow(_signal: int, _frame: object) -> None:
        nonlocal numbers
        numbers = range(numbers.start, numbers.stop + 1)
        grown = runtime(numbers)
        fake.statuses = grown.statuses
        fake.listing = grown.listing

    signal.signal(signal.SIGUSR1, grow)
    with serving(fake, path):
        ready.touch()
        while True:
            signal.pause()


def report(what: str, seconds: list[float], bar_s: float | None = None) -> None:
    """Print median and worst; the median is judged, for the machine is shared."""
    times = sorted(seconds)
    text = (
        f"{what:<42} median {statistics.median(times) * 1e3:7.1f} ms  worst {times[-1] * 1e3:7.1f}"
    )
    verdict = (
        ""
        if bar_s is None
        else f"  bar {bar_s * 1e3:.0f}: {'ok' if statistics.median(times) <= bar_s else 'MISSED'}"
    )
    print(text + verdict)


def measure(pods: int, place: Path, server: subprocess.Popen[bytes]) -> None:
    """Scan once and again, then follow."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    from tracer.inventory import Inventory, Paths  # noqa: PLC0415 - its time is measured

    paths = Paths(pod_logs=place / "logs", cri_sockets=(place / "cri.sock",))
    inventory = Inventory(paths=paths)
    node = inventory.scan()
    report(f"first scan of {pods} pods, imports included", [time.perf_counter() - started])
    known = [pod for pod in node.pods.values() if pod.name and pod.netns and pod.addresses]
    if len(known) != pods or any(
        (inode, 2) not in node.pod_by_device for inode in node.pod_by_netns
    ):
        sys.exit(f"{len(known)} of {pods} pods are known: {node.warnings}")
    print(
        f"{'':<42} {len(node.devices)} devices, {len(node.namespaces)} namespaces, "
        f"sources {','.join(known[0].sources)}"
    )
    inventory.stop()
    times = []
    for _ in range(SCANS):
        fresh = Inventory(paths=paths)
        started = time.perf_counter()
        fresh.scan()
        times.append(time.perf_counter() - started)
        fresh.stop()
    report("full scan, a new connection each time", times, SCAN_BAR_S)
    follow(pods, place, server, Inventory(paths=paths))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{'resident memory':<42} {before / 1024:.0f} MB before imports, "
        f"{after / 1024:.0f} MB at most"
    )


def follow(pods: int, place: Path, server: subprocess.Popen[bytes], inventory: Inventory) -> None:
    """Time updates: the refresh itself, and from the pod's birth to its name."""
    refreshes: list[float] = []
    collect, publish = inventory._collector.collect, inventory._publish  # noqa: SLF001 - measured
    began = 0.0

    def timed_collect() -> Facts:
        nonlocal began
        began = time.perf_counter()
        return collect()

    def timed_publish(facts: Facts) -> Node:
        node = publish(facts)
        refreshes.append(time.perf_counter() - began)
        return node

    object.__setattr__(inventory, "_publish", timed_publish)
    inventory._collector = type(  # noqa: SLF001 - same
        "Timed",
        (),
        {
            "__getattr__": lambda _, name: getattr(collect.__self__, name),
            "collect": staticmethod(timed_collect),
        },
    )()
    inventory.start()
    wait(lambda: inventory._node and len(inventory._node.pod_by_netns) == pods)  # noqa: SLF001
    time.sleep(1)
    refreshes.clear()
    placed, named = [], []
    for number in range(pods, pods + UPDATES):
        make_pod(number, place / "logs")
        started = time.perf_counter()
        wait(lambda n=number: uid(n) in inventory.node.pods)
        placed.append(time.perf_counter() - started)
        started = time.perf_counter()
        server.send_signal(signal.SIGUSR1)
        wait(lambda n=number: inventory.node.pods[uid(n)].labels)
        named.append(time.perf_counter() - started)
    report("one update (a refresh)", refreshes, UPDATE_BAR_S)
    report("from a pod's processes to its identity", placed)
    report("from the runtime's word to its labels", named)
    time.sleep(8)  # a change is followed by some seconds of looking closer
    refreshes.clear()
    cpu, started = time.process_time(), time.perf_counter()
    time.sleep(30)
    share = (time.process_time() - cpu) / (time.perf_counter() - started)
    print(f"{'following an idle node':<42} {share:.2%} of one CPU, {len(refreshes)} refreshes")
    started = time.perf_counter()
    inventory.stop()
    report("stop", [time.perf_counter() - started], 0.1)


def wait(condition: Callable[[], object]) -> None:
    """Wait for up to 20 s."""
    deadline = time.monotonic() + 20
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.002)


def isolated() -> None:
    """Run ourselves again as the first process of a node of our own."""
    sh(
        "unshare",
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        sys.executable,
        __file__,
        *sys.argv[1:],
        env={**os.environ, "ISOLATED": "1"},
    )


def main() -> None:
    """Build the node, measure, and leave the rest to the end of the namespaces."""
    pods = int(sys.argv[1]) if len(sys.argv) > 1 else 250
    with tempfile.TemporaryDirectory(prefix="tracer-bench") as directory:
        place = Path(directory)
        (place / "logs").mkdir()
        Path("/run/netns").mkdir(exist_ok=True)
        sh("mount", "-t", "tmpfs", "none", "/run/netns")
        sh("ip", "link", "add", "tbr0", "type", "bridge")
        for number in range(pods):
            make_pod(number, place / "logs")
        command = [sys.executable, __file__, "serve", str(pods), directory]
        server = subprocess.Popen(command)
        wait((place / "ready").exists)
        measure(pods, place, server)
        server.kill()


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(Path(sys.argv[3]) / "cri.sock", Path(sys.argv[3]) / "ready", range(int(sys.argv[2])))
    elif os.environ.get("ISOLATED"):
        main()
    else:
        try:
            isolated()
        finally:
            for home in sorted((CGROUPS / OURS).rglob("*/"), reverse=True) if CGROUPS else ():
                home.rmdir()
            if CGROUPS and (CGROUPS / OURS).exists():
                (CGROUPS / OURS).rmdir()
