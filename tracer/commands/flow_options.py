"""Options of `tracer flows`, named as those of Hubble's exporter where it has them."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path

from tracer.analysis.flow_aggregate import GROUPS
from tracer.cluster.credentials import configured
from tracer.commands import options
from tracer.errors import TracerError
from tracer.sinks.flow_files import FORMATS, Request, usual
from tracer.sinks.rotation import FSYNC, SUFFIXES

DEFAULT_INTERVAL_S = 10.0
_SERVICE = "service"
"""The field of --allow and --deny that only the Kubernetes API can fill."""
_DNS = "_fqdn"
"""The end of those that only --dns can fill."""
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


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _service(text: str) -> str:
    """`NS/NAME` as a filter of --allow; TracerError for anything else."""
    namespace, _, name = text.partition("/")
    if not (namespace and name):
        raise TracerError(f"--service '{text}': not a Service", "write it as namespace/name")
    return json.dumps({_SERVICE: [text]})


def add_counting(parser: argparse.ArgumentParser) -> None:
    """--interval, --max-flows, the timeouts: what is counted together, and when it is told."""
    group = parser.add_argument_group("what")
    group.add_argument(
        "--interval",
        "--aggregation-interval",
        type=options.duration_s,
        default=DEFAULT_INTERVAL_S,
        metavar="TIME",
        help="time between two looks at the counters (default: 10s)",
    )
    group.add_argument(
        "--max-flows",
        type=options.positive("--max-flows"),
        metavar="N",
        help="flows told apart in one interval; the rest is summed by pod (default: 65536,"
        " less on machines of many CPUs)",
    )
    group.add_argument(
        "--active-timeout",
        type=options.duration_s,
        metavar="TIME",
        help="tell a flow that goes on this often (default: every interval)",
    )
    group.add_argument(
        "--inactive-timeout",
        type=options.duration_s,
        metavar="TIME",
        help="tell a flow this long after its last packet (default: every interval)",
    )
    group.add_argument(
        "--bidirectional", action="store_true",
        help="one record a connection: what the client sends, and what it is answered",
    )  # fmt: skip
    group.add_argument(
        "--dns", action="store_true",
        help="tell by which DNS names pods came to addresses, from the answers they get",
    )  # fmt: skip
    group.add_argument(
        "--allow", "--allow-list", action="append", default=[], metavar="JSON",
        help='only flows that pass a filter: \'{"source_pod":["shop/"],"verdict":["DROPPED"]}\'',
    )  # fmt: skip
    group.add_argument(
        "--service", action="append", type=_service, dest="allow", default=argparse.SUPPRESS,
        metavar="NS/NAME", help="flows of a Service, as one more --allow; asks the Kubernetes API",
    )  # fmt: skip
    group.add_argument(
        "--deny", "--deny-list", action="append", default=[], metavar="JSON",
        help="no flows that pass this filter",
    )  # fmt: skip
    group.add_argument(
        "--aggregate", "--field-aggregate", default="", metavar="BY",
        help=f"sum flows by {', '.join(GROUPS)}, or by fields",
    )  # fmt: skip


def add_output(parser: argparse.ArgumentParser) -> None:
    """--format, --write and what becomes of the files."""
    group = parser.add_argument_group("output")
    group.add_argument("--format", choices=FORMATS, default="flat", help="record format")
    group.add_argument(
        "--write", "--file-path", type=Path, metavar="PATH",
        help="a file, not stdout; of parquet a directory",
    )  # fmt: skip
    group.add_argument(
        "--fields", "--field-mask", type=_names, default=(), metavar="NAMES",
        help="only these fields; of hubble its own names",
    )  # fmt: skip
    group.add_argument(
        "--file-max-size", type=size_bytes, metavar="SIZE",
        help="begin a new file at this size (default: 10M, of parquet 64M in memory's form)",
    )  # fmt: skip
    group.add_argument(
        "--file-max-age", type=options.duration_s, metavar="TIME",
        help="or at this age (default: 5m for parquet, csv and vpc)",
    )  # fmt: skip
    group.add_argument(
        "--file-max-backups", type=_count, metavar="N",
        help="files that are kept; 0: all (default: 5, of parquet all)",
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
    group.add_argument(
        "--config", metavar="FILE.toml", help="options from the table [flows] of this file"
    )


def request(args: argparse.Namespace, node: str) -> Request:
    """What the options ask to write."""
    filters = (*args.allow, *args.deny)
    if any(f'"{_SERVICE}"' in text for text in filters) and not configured(args.kubeconfig):
        raise TracerError("service: nobody tells of Services", "--kubeconfig FILE asks the API")
    if any(f'{_DNS}"' in text for text in filters) and not args.dns:
        raise TracerError("fqdn: nobody tells of DNS names", "--dns has them read")
    policy = usual(args.format)
    given = {
        "max_bytes": args.file_max_size,
        "max_age_s": args.file_max_age,
        "max_backups": args.file_max_backups,
        "budget_bytes": args.file_max_total,
    }
    asked = {*given.values(), args.file_compress, args.fsync} - {None, "none", "never"}
    if asked and args.write is None:
        raise TracerError("--file-…, --fsync: stdout is no file that rotates", "--write PATH")
    policy = replace(
        policy,
        **{name: value for name, value in given.items() if value is not None},
        compress=args.file_compress,
        fsync=args.fsync,
    )
    if args.file_max_backups == 0:
        policy = replace(policy, max_backups=None)
    if args.format == "parquet" and args.file_compress != "none":
        raise TracerError("--file-compress: Parquet is compressed already", "leave it out")
    return Request(args.format, args.write, args.fields, policy, node)
