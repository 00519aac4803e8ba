"""A containerd of the tests' own: configuration, image, start, stop, and what is left of it.

Everything lives below `STATE`; only the CRI socket prefers the path that tracer looks at
by default, when no other containerd is there.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
from contextlib import closing, suppress
from pathlib import Path

import grpc
import psutil

from lab.cri import Runtime
from lab.shell import run, until

STATE = Path("/run/tracer-tests")
CNI_STATE = Path("/var/lib/cni")
"""Where libcni keeps the results of all networks."""
DEFAULT_SOCKET = Path("/run/containerd/containerd.sock")
IMAGE = "registry.test/busybox:1"
BRIDGE = "tcni0"
NETWORK = "tracer-tests"
SITE = 77
"""Third number of all addresses: an address in two namespaces names no pod, so who may run beside
the tests sets another one first."""
GATEWAY4, GATEWAY6 = f"10.244.{SITE}.1", f"fd00:10:244:{SITE}::1"

CONFIG = """\
version = 2
root = "{state}/root"
state = "{state}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  restrict_oom_score_adj = true
  disable_tcp_service = true
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "{state}/cni"
"""


def _network() -> dict[str, object]:
    """The CNI configuration of the pods' bridge."""
    ranges = [[{"subnet": f"10.244.{SITE}.0/24"}], [{"subnet": f"fd00:10:244:{SITE}::/64"}]]
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(STATE / "ipam"),
            "ranges": ranges,
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
    return {"cniVersion": "1.0.0", "name": NETWORK, "plugins": [bridge, portmap]}


def write_image(path: Path) -> None:
    """A docker-archive of one layer that holds the static busybox; it sleeps for ever."""
    busybox = shutil.which("busybox")
    assert busybox, "busybox-static is not installed"
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(busybox, "bin/busybox")
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": {"Cmd": ["/bin/busybox", "sleep", "1000000"]},
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"],
        },
    }
    manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    members = {
        "layer.tar": layer.getvalue(),
        "config.json": json.dumps(config).encode(),
        "manifest.json": json.dumps(manifest).encode(),
    }
    with tarfile.open(path, "w") as tar:
        for name, body in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            tar.addfile(entry, io.BytesIO(body))


def _is_served(path: Path) -> bool:
    """Whether a process listens there; a file that a killed one left does not count."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


class Containerd:
    """One containerd process; `socket` is where its CRI answers once it is started."""

    def __init__(self) -> None:
        taken = _is_served(DEFAULT_SOCKET)
        self.socket = STATE / "containerd.sock" if taken else DEFAULT_SOCKET
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def in_usual_place(self) -> bool:
        """Whether tracer finds it without being told."""
        return self.socket == DEFAULT_SOCKET

    @property
    def log(self) -> str:
        """Everything it has said."""
        return (STATE / "containerd.log").read_text()

    def prepare(self) -> None:
        """Write the configuration, the CNI network and the image archive."""
        (STATE / "cni").mkdir(parents=True, exist_ok=True)
        config = CONFIG.format(state=STATE, socket=self.socket, image=IMAGE)
        (STATE / "config.toml").write_text(config)
        (STATE / "cni" / "10-tests.conflist").write_text(json.dumps(_network()))
        write_image(STATE / "image.tar")

    def start(self) -> None:
        """Start it and wait until CRI answers; pods of before a `kill` are still there."""
        with (STATE / "containerd.log").open("a") as log:
            argv = ["containerd", "-c", str(STATE / "config.toml")]
            self._process = subprocess.Popen(argv, stdout=log, stderr=log)
        (STATE / "pid").write_text(str(self._process.pid))
        until(self._answers, f"containerd is up (see {STATE}/containerd.log)", 30)

    def _answers(self) -> bool:
        assert self._process, "start() comes first"
        assert self._process.poll() is None, f"containerd died: {self.log[-2000:]}"
        with closing(Runtime(str(self.socket))) as runtime, suppress(grpc.RpcError):
            return bool(runtime.version())
        return False

    def import_image(self) -> None:
        """Give it the one image that sandboxes and containers are made of."""
        archive = str(STATE / "image.tar")
        run("ctr", "-a", str(self.socket), "-n", "k8s.io", "images", "import", archive)

    def kill(self) -> None:
        """SIGKILL, as a crash would; containers go on under their shims."""
        if self._process:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def remove_pods(self) -> None:
        """Stop and remove every sandbox."""
        with closing(Runtime(str(self.socket))) as runtime:
            for sandbox in runtime.sandboxes():
                runtime.remove_sandbox(sandbox)

    def stop(self) -> None:
        """End it in good order; waits."""
        if self._process:
            self._process.terminate()
            self._process.wait(20)
            self._process = None
            for path in (self.socket, Path(f"{self.socket}.ttrpc")):
                path.unlink(missing_ok=True)


def sweep() -> None:
    """Remove what a killed run left, by starting its containerd once more to delete its pods."""
    if not (STATE / "config.toml").exists():
        return
    with suppress(FileNotFoundError, ValueError, psutil.NoSuchProcess):
        old = psutil.Process(int((STATE / "pid").read_text()))
        if str(STATE / "config.toml") in old.cmdline():
            old.kill()
            old.wait(10)
    again = Containerd()
    again.prepare()
    again.start()
    again.remove_pods()
    again.stop()
    remove_state()


def remove_state() -> None:
    """Unmount and delete everything below `STATE`."""
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        target = line.split()[4]
        if target.startswith(f"{STATE}/"):
            run("umount", "--lazy", target, check=False)
    shutil.rmtree(STATE)
