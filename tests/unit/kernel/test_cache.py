import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import time

import pytest

from tracer.kernel import cache

FILES = {"include/a.h": "#define A 1\n", "include/empty.h": "", "arch/x86/include/": ""}
FACTS = {"names": {"1": "ONE"}}


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "cache"


def stored(directory, key="k"):
    cache.store(directory, key, FILES, FACTS)
    return directory / key


def leftovers(directory):
    return [path.name for path in directory.iterdir() if path.name.startswith(".")]


def test_what_is_stored_is_loaded(directory):
    tree = stored(directory)
    assert cache.load(directory, "k") == FACTS
    assert (tree / "include/a.h").read_text() == FILES["include/a.h"]
    assert (tree / "arch/x86/include").is_dir()
    assert leftovers(directory) == []


def test_nothing_is_loaded_where_nothing_is(directory):
    assert cache.load(directory, "k") is None
    stored(directory)
    assert cache.load(directory, "another") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda tree: (tree / "facts.json").write_text("{"),
        lambda tree: (tree / "facts.json").write_text("[]"),
        lambda tree: (tree / "facts.json").write_text('{"key": "k"}'),
        lambda tree: (tree / "facts.json").write_bytes(b"\xff\0"),
        lambda tree: (tree / "facts.json").unlink(),
        lambda tree: (tree / "include/a.h").write_text(""),
        lambda tree: (tree / "include/a.h").unlink(),
        lambda tree: shutil.rmtree(tree / "include"),
    ],
)
def test_a_damaged_tree_is_made_again(directory, damage):
    damage(stored(directory))
    assert cache.load(directory, "k") is None
    stored(directory)
    assert cache.load(directory, "k") == FACTS


def test_a_tree_under_another_key_is_not_taken(directory):
    stored(directory).rename(directory / "moved")
    assert cache.load(directory, "moved") is None


def test_a_whole_tree_is_kept_as_it_is(directory):
    made = stored(directory).stat().st_ino
    assert stored(directory).stat().st_ino == made


def test_what_a_dead_writer_left_is_removed(directory):
    stored(directory)
    torn = directory / f"{cache._TEMPORARY}dead"
    torn.mkdir()
    (torn / "vmlinux.h").write_text("struct sk_bu")
    stored(directory, "next")
    assert not torn.exists()


def test_old_trees_go_and_other_things_stay(directory):
    for number in range(cache.KEPT_TREES + 3):
        tree = stored(directory, f"k{number}")
        os.utime(tree, (number, number))
    (directory / "notes").mkdir()
    stored(directory, "newest")
    kept = {path.name for path in directory.iterdir()}
    assert {"notes", "newest", f"k{cache.KEPT_TREES + 2}"} <= kept
    assert "k0" not in kept


def _store_at(directory, start, results):
    start.wait(10)
    cache.store(directory, "k", FILES, FACTS)
    results.put(cache.load(directory, "k") == FACTS)


def test_processes_at_once(directory):
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    crowd = [context.Process(target=_store_at, args=(directory, start, results)) for _ in range(6)]
    for process in crowd:
        process.start()
    start.set()
    assert [results.get(timeout=20) for _ in crowd] == [True] * len(crowd)
    for process in crowd:
        process.join(10)
    assert {path.name for path in directory.iterdir()} == {"k"}


def _store_slowly(directory, ready):
    write = cache._write

    def stuck(tree, key, files, facts):
        write(tree, key, files, facts)
        ready.set()
        time.sleep(60)

    cache._write = stuck
    cache.store(directory, "k", FILES, FACTS)


def test_a_writer_killed_in_the_middle(directory):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    victim = context.Process(target=_store_slowly, args=(directory, ready))
    victim.start()
    assert ready.wait(10)
    assert cache.load(directory, "k") is None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join(10)
    assert len(leftovers(directory)) == 1
    stored(directory)
    assert cache.load(directory, "k") == FACTS
    assert leftovers(directory) == []


def test_a_stopped_writer_does_not_stop_us(directory, monkeypatch):
    monkeypatch.setattr(cache, "LOCK_TIMEOUT_S", 0.05)
    directory.mkdir()
    with cache._locked(directory), pytest.raises(BlockingIOError):
        stored(directory)


def test_a_full_disk_leaves_nothing(directory, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(json, "dumps", full)  # the last thing that is written
    with pytest.raises(OSError, match="No space left"):
        stored(directory)
    assert list(directory.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_really_full_disk(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=755", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True, timeout=10).returncode:
        pytest.skip("this root may not mount")
    try:
        with pytest.raises(OSError, match="No space left"):
            cache.store(tmp_path / "cache", "k", {"big.h": "x" * 200_000}, FACTS)
        assert list((tmp_path / "cache").iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True, timeout=10)


def _other_user(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 12345)


def test_directories_that_others_can_write_are_not_used(directory, tmp_path, monkeypatch):
    tree = stored(directory)
    for mode in (0o777, 0o775, 0o757):
        directory.chmod(mode)
        assert cache.load(directory, "k") is None
        with pytest.raises(PermissionError, match="writable by others"):
            stored(directory)
    directory.chmod(0o755)
    tmp_path.chmod(0o777)
    with pytest.raises(PermissionError, match="others could replace it"):
        stored(directory)
    tmp_path.chmod(0o1777)
    assert cache.load(directory, "k") == FACTS
    _other_user(monkeypatch)
    assert cache.load(directory, "k") is None
    with pytest.raises(PermissionError, match="owned by another user"):
        stored(directory)
    assert tree.exists()


def test_links_are_not_followed(directory, tmp_path):
    stored(directory)
    link = tmp_path / "link"
    link.symlink_to(directory)
    assert cache.load(link, "k") is None
    with pytest.raises(NotADirectoryError):
        stored(link)


def test_a_file_in_the_way(directory):
    directory.write_text("")
    with pytest.raises(NotADirectoryError):
        stored(directory)
