"""Options of files that give way to new ones, named as those of Hubble's exporter."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from tracer.commands import options
from tracer.errors import TracerError
from tracer.session import say
from tracer.sinks.pcapng import CAPTURE, Pcapng
from tracer.sinks.rotation import FSYNC, SUFFIXES

if TYPE_CHECKING:
    import argparse

    from tracer.sinks.rotation import Policy

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def size_bytes(text: str) -> int:
    """`10M`, `64MiB`, `500kB` → bytes; TracerError for anything else, zero included."""
    found = _SIZE.fullmatch(text.strip())
    factor = (1024 if found[3] else 1000) ** _POWERS[found[2].lower()] if found else 0
    size = int(float(found[1]) * factor) if found else 0
    if size <= 0:
        raise TracerError(f"size '{text}': not understood", "write it as 500k, 10M or 64MiB")
    return size


def _count(text: str) -> int:
    if not text.isdecimal():
        raise TracerError(f"--file-max-backups '{text}': not a whole number", "0 keeps all")
    return int(text)


def add_rotation(group: argparse._ArgumentGroup, *, size: str, age: str, backups: str) -> None:
    """--file-max-…, --file-compress, --fsync; the texts tell what is done without them."""
    group.add_argument(
        "--file-max-size", type=size_bytes, metavar="SIZE",
        help=f"begin a new file at this size (default: {size})",
    )  # fmt: skip
    group.add_argument(
        "--file-max-age", type=options.duration_s, metavar="TIME",
        help=f"or at this age (default: {age})",
    )  # fmt: skip
    group.add_argument(
        "--file-max-backups", type=_count, metavar="N",
        help=f"files that are kept; 0: all (default: {backups})",
    )  # fmt: skip
    group.add_argument(
        "--file-max-total", type=size_bytes, metavar="SIZE",
        help="room for all files together: the oldest go first",
    )  # fmt: skip
    group.add_argument(
        "--file-compress", choices=tuple(SUFFIXES), default="none",
        help="compress backups, the newest excepted",
    )  # fmt: skip
    group.add_argument(
        "--fsync", choices=FSYNC, default="never",
        help="wait for the disk: when a file is whole, or after each batch too",
    )  # fmt: skip


def rotation_policy(args: argparse.Namespace, usual: Policy) -> Policy:
    """What `add_rotation` asked for, else as `usual`; TracerError for what contradicts itself."""
    given = {
        "max_bytes": args.file_max_size,
        "max_age_s": args.file_max_age,
        "max_backups": args.file_max_backups,
        "budget_bytes": args.file_max_total,
    }
    asked = {*given.values(), args.file_compress, args.fsync} - {None, "none", "never"}
    if asked and args.write is None:
        raise TracerError("--file-…, --fsync: there is no file that they are about", "--write PATH")
    policy = replace(
        usual,
        **{name: value for name, value in given.items() if value is not None},
        compress=args.file_compress,
        fsync=args.fsync,
    )
    if args.file_max_backups == 0:
        policy = replace(policy, max_backups=None)
    if policy.budget_bytes and not policy.max_bytes:
        raise TracerError("--file-max-total: the file that grows has no limit", "--file-max-size")
    if asked - {args.fsync} and not policy.rotates:
        raise TracerError(
            "--file-max-backups, --file-compress: nothing makes backups",
            "--file-max-size or --file-max-age",
        )
    return policy


def add_capture_rotation(parser: argparse.ArgumentParser) -> None:
    """What becomes of the file of `--write FILE.pcapng`."""
    group = parser.add_argument_group("files of --write", "one file, unless it has a size or age")
    add_rotation(group, size="none", age="none", backups="all")


def open_capture(args: argparse.Namespace) -> Pcapng | None:
    """The file of `--write`, if it is asked for; TracerError where it cannot be written."""
    policy = rotation_policy(args, CAPTURE)
    return Pcapng(args.write, policy, say) if args.write else None
