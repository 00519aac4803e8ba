"""Options of `tracer flows`, named as those of Hubble's exporter where it has them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tracer.analysis.flow_aggregate import GROUPS
from tracer.cluster.credentials import configured
from tracer.commands import options
from tracer.commands.file_options import add_rotation, rotation_policy
from tracer.errors import TracerError
from tracer.sinks.flow_files import FORMATS, Request, usual

DEFAULT_INTERVAL_S = 10.0
DEFAULT_MAX_FLOWS = 65536
_SERVICE = "service"
"""The field of --allow and --deny that only the Kubernetes API can fill."""
_DNS = "_fqdn"
"""The end of those that only --dns can fill."""


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
        default=DEFAULT_MAX_FLOWS,
        metavar="N",
        help="flows told apart in one interval; the rest is summed by pod (default: 65536)",
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
    add_rotation(
        group,
        size="10M, of parquet 64M in memory's form",
        age="5m for parquet, csv and vpc",
        backups="5, of parquet all",
    )
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
    policy = rotation_policy(args, usual(args.format))
    if args.format == "parquet" and args.file_compress != "none":
        raise TracerError("--file-compress: Parquet is compressed already", "leave it out")
    return Request(args.format, args.write, args.fields, policy, node)
