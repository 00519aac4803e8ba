"""The set-up, for real: a copy of the checkout, apt, pip, a virtual environment of its own."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tracer import __version__

ROOT = Path(__file__).parents[2]
NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
BCC = Path("/usr/lib/python3/dist-packages/bcc")


@contextlib.contextmanager
def copied_checkout():
    """A copy of the tracked files as they are now; not below pytest's own, closed directories."""
    names = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, check=True, text=True
    ).stdout.split("\0")
    with tempfile.TemporaryDirectory(prefix="trt-checkout-") as directory:
        to = Path(directory)
        to.chmod(0o755)
        for name in filter(None, names):
            if (ROOT / name).exists():
                (to / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, to / name)
        yield to


@pytest.fixture(scope="module")
def ready():
    """A checkout that `scripts/tracer` has set up; (path, what the first run wrote)."""
    with copied_checkout() as checkout:
        yield checkout, call(checkout)


@pytest.fixture
def fresh():
    """A checkout that nobody has run yet."""
    with copied_checkout() as checkout:
        yield checkout


def call(checkout, *before, script="tracer", arguments=("--version",), **options):
    return subprocess.run(
        [*before, checkout / "scripts" / script, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )


def test_the_first_run_sets_up_and_says_so_on_stderr(ready):
    _, first = ready
    assert first.returncode == 0, first.stderr
    assert first.stdout == f"tracer {__version__}\n"
    assert "set-up: installing tracer's Python packages: done" in first.stderr


def test_the_second_run_is_silent(ready):
    checkout, _ = ready
    again = call(checkout)
    assert (again.returncode, again.stdout, again.stderr) == (0, f"tracer {__version__}\n", "")


def test_what_is_set_up_costs_no_time(ready):
    checkout, _ = ready
    took_s = []
    for _ in range(7):
        start = time.monotonic()
        setup = f". {checkout}/scripts/lib/setup.sh; setup tracer"
        subprocess.run(["bash", "-c", setup], check=True)
        took_s.append(time.monotonic() - start)
    assert min(took_s) < 0.030


def test_from_elsewhere_through_a_symlink_with_another_python_first(ready, tmp_path):
    checkout, _ = ready
    other = tmp_path / "python3"
    other.write_text("#!/bin/sh\necho the wrong python >&2\nexit 9\n")
    other.chmod(0o755)
    link = tmp_path / "tracer-here"
    link.symlink_to(checkout / "scripts/tracer")
    (tmp_path / "json.py").write_text("raise SystemExit('imported from the current directory')")
    called = subprocess.run(
        [link, "--version"],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (called.returncode, called.stdout) == (0, f"tracer {__version__}\n"), called.stderr


def test_the_owner_of_the_checkout_can_use_what_root_set_up(ready):
    checkout, _ = ready
    called = call(checkout, *NOBODY)
    assert (called.returncode, called.stdout) == (0, f"tracer {__version__}\n"), called.stderr


def test_two_first_runs_at_once(fresh):
    scripts = [
        subprocess.Popen(
            [fresh / "scripts/tracer", "--version"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    answers = [script.communicate(timeout=300) for script in scripts]
    assert [out for out, _ in answers] == [f"tracer {__version__}\n"] * 2, answers
    assert sum(said.count("making") for _, said in answers) == 2  # begun and done, by one of them


def test_a_killed_set_up_is_made_good(fresh):
    first = subprocess.Popen(
        [fresh / "scripts/tracer", "--version"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    end = time.monotonic() + 60
    while not (fresh / ".venv/incomplete").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    again = call(fresh)
    assert again.returncode == 0, again.stderr
    assert again.stdout == f"tracer {__version__}\n"
    assert not (fresh / ".venv/incomplete").exists()


def test_without_a_network_one_clear_error_and_nothing_half_done(fresh):
    called = call(fresh, "unshare", "--net")
    assert (called.returncode, called.stdout) == (2, "")
    error, hint = called.stderr.splitlines()[-2:]
    assert error.startswith("error: set-up: pip install: ")
    assert "network" in hint
    assert not (fresh / ".venv").exists()


@pytest.mark.parametrize(
    ("release", "hint"),
    [
        ("ID=fedora", "hint: dnf install python3-bcc, then run it again"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"', "hint: dnf install python3-bcc, then"),
        ("ID=arch", "hint: install what this distribution calls python3-bpfcc"),
    ],
)
def test_another_distribution_is_told_what_to_install(fresh, tmp_path, release, hint):
    """os-release is another's, BCC is hidden: in a mount namespace of the test's own."""
    (tmp_path / "os-release").write_text(release + "\n")
    (tmp_path / "nothing").mkdir()
    mounts = (
        f"mount --bind {tmp_path}/os-release /etc/os-release && "
        f'mount --bind {tmp_path}/nothing {BCC} && exec "$@"'
    )
    called = call(fresh, "unshare", "--mount", "sh", "-c", mounts, "sh")
    assert (called.returncode, called.stdout) == (2, "")
    error, told = called.stderr.splitlines()
    assert error == "error: set-up: missing: module:bcc.libbcc"
    assert told.startswith(hint)
    assert not (fresh / ".venv").exists()


def test_the_tests_need_root(ready):
    checkout, _ = ready
    called = call(checkout, *NOBODY, script="test", arguments=())
    assert called.returncode == 2
    assert called.stderr.splitlines()[0] == "error: set-up: the functional tests need root"


def test_an_installed_tracer_works_the_same(ready, tmp_path):
    """pip install, not editable, into an environment on the system's Python; no checkout."""
    checkout, _ = ready
    environment = tmp_path / "environment"
    make = ["/usr/bin/python3", "-m", "venv", "--system-site-packages", environment]
    subprocess.run(make, check=True)
    install = [environment / "bin/python", "-m", "pip", "install", "--quiet", checkout]
    subprocess.run(install, check=True, timeout=300)
    doctor = subprocess.run(
        [environment / "bin/tracer", "doctor", "-o", "json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert doctor.returncode in (0, 1), doctor.stdout + doctor.stderr
    place = [environment / "bin/python", "-I", "-c"]
    found = subprocess.run(
        [*place, "from tracer.layout import bpf_dir; print(bpf_dir())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert Path(found).is_relative_to(environment)
