"""What stands between a test and another kernel: no guest is booted here."""

import io
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tracer.errors import TracerError

sys.path.append(str(Path(__file__).parents[1] / "kernels"))

import document
import results
from vm import arm64, catalog, initramfs, machine

DEPENDENCIES = {
    "virtio_ring": (),
    "virtio": ("virtio_ring",),
    "virtio_pci": ("virtio_ring", "virtio"),
    "virtio_console": ("virtio_ring", "virtio"),
    "9pnet": (),
    "9pnet_virtio": ("9pnet", "virtio_ring", "virtio"),
    "9p": ("9pnet",),
}


def kernel(tmp_path, built_in=("kernel/fs/overlayfs/overlay.ko",)):
    made = catalog.Kernel("5.10", "5.10.0-test", tmp_path)
    made.modules.mkdir(parents=True)
    lines = (
        f"{name.replace('_', '-')}.ko: {' '.join(f'{other}.ko' for other in others)}\n"
        for name, others in DEPENDENCIES.items()
    )
    (made.modules / "modules.dep").write_text("".join(lines))
    (made.modules / "modules.builtin").write_text("".join(f"{path}\n" for path in built_in))
    return made


def test_modules_come_after_those_they_need(tmp_path):
    names = [path.name for path in initramfs._insertion_order(kernel(tmp_path))]
    assert len(names) == len(set(names)) == len(DEPENDENCIES)
    for name, others in DEPENDENCIES.items():
        after = names.index(f"{name.replace('_', '-')}.ko")
        assert all(names.index(f"{other.replace('_', '-')}.ko") < after for other in others)


def test_a_kernel_without_a_needed_module_is_refused(tmp_path):
    with pytest.raises(TracerError, match="no module overlay"):
        initramfs._insertion_order(kernel(tmp_path, built_in=()))


def test_archive():
    archive = initramfs._cpio([initramfs.Entry("init", 0o100755, b"12345")])
    header, rest = archive[:110], archive[110:]
    fields = [int(header[6 + 8 * n : 14 + 8 * n], 16) for n in range(13)]
    assert header[:6] == b"070701"
    assert fields[1] == 0o100755
    assert fields[6] == 5
    assert rest.startswith(b"init\0")
    # Header and name, then data, each padded to four bytes.
    assert archive[116:124] == b"12345\0\0\0"
    assert archive[124:130] == b"070701"


@pytest.fixture
def talk(tmp_path):
    """Let a made-up guest say something on its ports, then end or go on; the Ending."""
    guests = []

    def say(said, *, goes_on=True, job=None):
        pairs = {name: socket.socketpair() for name in machine.PORTS}
        guest = subprocess.Popen(["sleep", "60"] if goes_on else ["true"])
        guests.append(guest)
        for name, text in said.items():
            pairs[name][1].sendall(text)
        if not goes_on:
            guest.wait()
            for _, end in pairs.values():
                end.close()
        (tmp_path / "console").write_text("Kernel panic")
        ours = {name: pair[0] for name, pair in pairs.items()}
        job = job or machine.Job(("true",), tmp_path)
        out, err = io.BytesIO(), io.BytesIO()
        ending = machine._Conversation(guest, job, tmp_path / "console", ours).until_end(out, err)
        return ending.code, out.getvalue(), err.getvalue()

    yield say
    for guest in guests:
        guest.kill()
        guest.wait()


def test_exit_code_and_both_streams(talk):
    said = {"control": b"started\nexit 7\n", "out": b"data", "err": b"message"}
    assert talk(said) == (7, b"data", b"message")


def test_a_guest_that_never_starts_the_command(talk):
    with pytest.raises(machine.BootError) as raised:
        talk({}, goes_on=False)
    assert "Kernel panic" in raised.value.hint


def test_a_guest_that_dies_on_the_way(talk):
    with pytest.raises(machine.GuestDiedError):
        talk({"control": b"started\n"}, goes_on=False)


def test_limits(talk, tmp_path):
    with pytest.raises(machine.BootError, match="no boot within 0 s"):
        talk({}, job=machine.Job(("true",), tmp_path, boot_s=0.1))
    code, out, _ = talk(
        {"control": b"started\n", "out": b"half"}, job=machine.Job(("true",), tmp_path, run_s=0.1)
    )
    assert (code, out) == (machine.TIMED_OUT, b"half")


REPORT = """<testsuites><testsuite>
<properties><property name="release" value="5.10.0"/></properties>
<testcase name="test_way[a]"><properties><property name="hook" value="skb-drop"/>
<property name="way" value="tp_btf"/><property name="costs" value=""/>
<property name="refused" value="no such tracepoint"/></properties></testcase>
<testcase name="test_drop[a]"><properties><property name="case" value="no route"/>
<property name="way" value="tp_btf"/><property name="drop.reason" value="NOT_SPECIFIED"/>
<property name="drop.location" value="ip_error+0x2"/><property name="netfilter.mechanism" value=""/>
</properties><failure message="bad"/></testcase>
</testsuite></testsuites>"""


def test_document_tells_what_failed_and_what_is_lost(tmp_path):
    results.report_path(tmp_path, "5.10").write_text(REPORT)
    results.save_figures(tmp_path, "5.10", "bullseye", machine.Ending(1, 5.2, 300.4))
    text = document.document([results.load(tmp_path, "5.10")])
    assert "| 5.10 | 5.10.0 | Debian bullseye | 5 s | 300 s | 1 of 2 |" in text
    assert "| skb-drop | none; tp_btf: no such tracepoint |" in text
    assert "| no route | `ip_error` (tp_btf failed) |" in text
    assert "| 5.10 | 0 of 0 | no | no skb-drop |" in text


def test_no_report_is_no_run(tmp_path):
    assert results.load(tmp_path, "5.10") is None


def test_btf_is_found_in_an_image():
    tables = b"types..." + b"strings"
    btf = arm64.HEADER.pack(0xEB9F, 1, 0, arm64.HEADER.size, 0, 8, 8, 7) + tables
    by_chance = arm64.MAGIC + bytes(range(1, 40))
    assert arm64.find_btf(by_chance + btf + by_chance) == btf


def test_an_image_without_btf_is_refused():
    with pytest.raises(TracerError, match="holds no BTF"):
        arm64.find_btf(arm64.MAGIC + bytes(range(1, 40)))
