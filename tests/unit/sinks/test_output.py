"""A file never holds a half line: real full disks (tmpfs needs root), limits and bad paths."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tracer.errors import TracerError
from tracer.sinks import open_sink
from tracer.sinks.output import Output

LINE = b'{"x":"' + b"y" * 91 + b'"}\n'


def test_lines_are_appended(tmp_path):
    path = tmp_path / "out"
    for _ in range(2):
        output = Output(path)
        output.write(LINE)
        output.close()
        output.close()
    assert path.read_bytes() == LINE * 2


def test_half_a_record_of_a_killed_writer_is_taken_away(tmp_path):
    path = tmp_path / "out"
    path.write_bytes(LINE + b'{"type":"dr')
    Output(path).write(LINE)
    assert path.read_bytes() == LINE * 2


def test_what_is_not_ours_is_kept_on_a_line_of_its_own(tmp_path):
    path = tmp_path / "out"
    path.write_bytes(b"my notes")
    Output(path).write(LINE)
    assert path.read_bytes() == b"my notes\n" + LINE


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing/out", "no such file or directory"),
        (".", "is a directory"),
        ("f/x", "not a direct"),
    ],
)
def test_bad_paths_are_told_up_front(tmp_path, name, words):
    (tmp_path / "f").write_text("")
    with pytest.raises(TracerError, match=words) as caught:
        open_sink("json", tmp_path / name)
    assert caught.value.hint


def test_unknown_format_names_the_known():
    with pytest.raises(TracerError, match="format 'xml': unknown") as caught:
        open_sink("xml", None)
    assert "hubble" in caught.value.hint


def limited(path, size):
    """Write lines until the limit on file size stops us, in a process of its own."""
    code = f"""
import pathlib, resource, signal
from tracer.errors import TracerError
from tracer.sinks.output import Output
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
output = Output(pathlib.Path({str(path)!r}))
line = {LINE!r}
try:
    while True:
        output.write(line * 7)
except TracerError as error:
    print(error.message, "|", error.hint)
"""
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=20
    ).stdout


def test_a_short_write_is_cut_back_to_whole_lines(tmp_path):
    path = tmp_path / "out"
    told = limited(path, 1050)
    assert "file too large | the file has reached the limit" in told
    # Ten lines are 1000 bytes: they stay, the eleventh that only half fitted does not.
    assert path.read_bytes() == LINE * 10


def test_full_disk_on_a_device():
    """/dev/full is never root's alone: each write fails with ENOSPC."""
    with pytest.raises(TracerError, match="/dev/full: no space left on device") as caught:
        Output(Path("/dev/full")).write(LINE)
    assert "make room" in caught.value.hint


def fill(output):
    for _ in range(100):
        output.write(LINE * 7)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_full_disk(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    path = tmp_path / "out"
    try:
        output = Output(path)
        with pytest.raises(TracerError, match="no space left"):
            fill(output)
        content = path.read_bytes()
        output.close()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert len(content) > 8000
    assert content == LINE * (len(content) // 100)


def test_a_killed_writer_leaves_no_half_record(tmp_path):
    path = tmp_path / "out"
    code = f"""
import pathlib, resource
from tracer.sinks.output import Output
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 26, 1 << 26))
output = Output(pathlib.Path({str(path)!r}))
print("ready", flush=True)
while True:
    output.write({LINE!r} * 50)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        while path.stat().st_size < 100_000:
            pass
        writer.send_signal(signal.SIGKILL)
    # The kernel may have stopped between two pages; the next one to open the file mends that.
    Output(path).close()
    content = path.read_bytes()
    assert content == LINE * (len(content) // 100)
