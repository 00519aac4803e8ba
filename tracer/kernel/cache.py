"""A directory of file trees, each made once, for a root tool on a shared machine.

A tree appears whole or not at all: it is written under a temporary name and renamed. Who
writes holds a lock on the directory (flock: the kernel drops it when the writer dies), so
a temporary that is seen under the lock belongs to a dead writer and is removed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FACTS = "facts.json"
LOCK_TIMEOUT_S = 20.0
"""Longer than any writer needs; a stopped one must not stop us too."""
KEPT_TREES = 8
"""Trees of other kernels and other versions of tracer that stay."""
_TEMPORARY = ".making-"


def load(directory: Path, key: str) -> dict[str, Any] | None:
    """Return the facts stored with tree `key`, or None when it is absent, damaged or untrusted.

    Every file's content is compared with the digest taken when it was written.
    """
    tree = directory / key
    try:
        _check_trust(directory)
        stored = json.loads((tree / FACTS).read_bytes())
        whole = all(
            _digest((tree / path).read_bytes()) == digest
            for path, digest in stored["files"].items()
        )
        return dict(stored["facts"]) if whole and stored["key"] == key else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        # Whatever is wrong with it, the tree can be made again.
        return None


def store(directory: Path, key: str, files: Mapping[str, str], facts: Mapping[str, Any]) -> None:
    """Make tree `key` in `directory` (itself made if its parent exists); raises OSError.

    Keeps a whole tree that another process made meanwhile. `files`: path below the tree →
    content; a path that ends in `/` is a directory. `facts` must survive JSON.
    """
    with suppress(FileExistsError):  # the usual case; whether to trust it is checked next
        directory.mkdir(mode=0o755)
    _check_trust(directory)
    with _locked(directory):
        _remove_stale(directory)
        if load(directory, key) is not None:
            return
        shutil.rmtree(directory / key, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=directory))
        try:
            _write(temporary, key, files, facts)
            temporary.rename(directory / key)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _write(tree: Path, key: str, files: Mapping[str, str], facts: Mapping[str, Any]) -> None:
    digests = {}
    for name, text in files.items():
        path = tree / name
        if name.endswith("/"):
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        content = text.encode()
        path.write_bytes(content)
        digests[name] = _digest(content)
    stored = {"key": key, "files": digests, "facts": dict(facts)}
    (tree / FACTS).write_text(json.dumps(stored))
    tree.chmod(0o755)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _check_trust(directory: Path) -> None:
    """Raise PermissionError if anyone but us could put or swap something in there.

    What root compiles from here it loads into the kernel.
    """
    ours = directory.lstat()
    if not stat.S_ISDIR(ours.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "not a directory", str(directory))
    if ours.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "owned by another user", str(directory))
    if ours.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(errno.EPERM, "writable by others", str(directory))
    parent = directory.parent.stat()
    shared = parent.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not parent.st_mode & stat.S_ISVTX
    if shared or parent.st_uid not in {0, os.geteuid()}:
        raise PermissionError(errno.EPERM, "others could replace it", str(directory))


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        yield
    finally:
        os.close(handle)


def _remove_stale(directory: Path) -> None:
    """Under the lock: what dead writers left, and the oldest trees beyond `KEPT_TREES`."""
    trees = []
    for entry in directory.iterdir():
        if entry.name.startswith(_TEMPORARY):
            shutil.rmtree(entry, ignore_errors=True)
        elif (entry / FACTS).is_file():
            trees.append(entry)
    trees.sort(key=lambda tree: tree.stat().st_mtime, reverse=True)
    for tree in trees[KEPT_TREES:]:
        shutil.rmtree(tree, ignore_errors=True)
