"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tracer.analysis.labels import parse_selector
from tracer.analysis.selection import PodSelection
from tracer.analysis.watch import ALWAYS, AUTO, NEVER
from tracer.attribution.rule_services import RuleServices
from tracer.cluster.credentials import connect
from tracer.errors import TracerError
from tracer.session import Limits

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

    from tracer.cluster.cluster import Cluster

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration_s(text: str) -> float:
    """`500ms`, `5s`, `2m`, `1h`, `7d` → seconds; TracerError for anything else, zero included."""
    found = _DURATION.fullmatch(text.strip())
    seconds = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if seconds <= 0:
        raise TracerError(f"duration '{text}': not understood", "write it as 500ms, 5s or 2m")
    return seconds


def positive(what: str) -> Callable[[str], int]:
    """A reader of whole numbers above zero, for the option `what`."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) == 0:
            raise TracerError(f"{what} '{text}': not a whole number above zero", f"{what} 100")
        return int(text)

    return read


def _new_file(text: str) -> Path:
    """A path that a file can be made at; TracerError before anything has been started."""
    path = Path(text)
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK) or path.is_dir():
        raise TracerError(f"ready file {text}: cannot be made there", "name a writable path")
    return path


def add_pod_selection(parser: argparse.ArgumentParser) -> None:
    """--pod, --namespace, --selector."""
    group = parser.add_argument_group("selection")
    group.add_argument(
        "--pod", action="append", default=[], metavar="[NS/]NAME", help="a pod; may hold * and ?"
    )
    group.add_argument(
        "-n", "--namespace", action="append", default=[], metavar="NS", help="pods of a namespace"
    )
    group.add_argument(
        "-l", "--selector", default="", metavar="LABELS", help="pods by label: app=web,tier!=db"
    )


def pod_selection(args: argparse.Namespace) -> PodSelection:
    """What `add_pod_selection` asked for."""
    return PodSelection(
        pods=tuple(args.pod),
        namespaces=tuple(args.namespace),
        selector=parse_selector(args.selector) if args.selector else None,
        selector_text=args.selector,
    )


TCP_FLAGS = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32, "ECE": 64, "CWR": 128}


def tcp_flags(text: str) -> int:
    """`SYN,RST` → bits; TracerError names what is no flag."""
    bits = 0
    for name in text.upper().split(","):
        if name not in TCP_FLAGS:
            raise TracerError(f"--tcp-flags '{text}': no flag '{name}'", ", ".join(TCP_FLAGS))
        bits |= TCP_FLAGS[name]
    return bits


def sample_rate(text: str) -> int:
    """`1/100` → 100; TracerError for anything else."""
    one, _, rate = text.partition("/")
    if one != "1" or not rate.isdecimal() or int(rate) == 0:
        raise TracerError(f"--sample '{text}': not understood", "write it as 1/100")
    return int(rate)


RULES = {
    "trace": "name the rules by the kernel's own trace, of the selected packets only: for that"
    " a table of our own is there while tracer runs",
    "read": "name them by reading the rules, which changes nothing: inferred",
    "off": "do not, nor read Services from them",
}
NO_RULES = ""
"""None is named, but kube-proxy's are read for the names of Services."""


def add_rules(parser: argparse.ArgumentParser, default: str) -> None:
    """--rules[=trace|read|off]: how the rules behind verdicts are found; else as `default`."""
    told = "without it only Services are read from them" if default == NO_RULES else None
    group = parser.add_argument_group("rules", told)
    _add_words(group, "rules", RULES, bare="trace", default=default)
    parser.set_defaults(rules=default)


STANDBY = {
    AUTO: "go on standby while the node receives many packets and none is chosen",
    ALWAYS: "nearly nothing is attached until a packet is chosen, whose path is incomplete",
    NEVER: "keep every hook attached",
}


def add_standby(parser: argparse.ArgumentParser) -> None:
    """--standby[=auto|always|never]: when nearly nothing is attached."""
    group = parser.add_argument_group("standby")
    _add_words(group, "standby", STANDBY, bare=ALWAYS, default=AUTO)
    parser.set_defaults(standby=AUTO)


def _add_words(
    group: argparse._ArgumentGroup, option: str, words: Mapping[str, str], bare: str, default: str
) -> None:
    """--OPTION=WORD for each of `words` → what it does; --OPTION alone means `bare`."""
    for word, text in words.items():
        # Each form by its whole name: with nargs="?" argparse would take the FILTER for a value.
        names = [f"--{option}"] * (word == bare) + [f"--{option}={word}"]
        shown = f"{text} (the default)" if word == default else text
        group.add_argument(*names, dest=option, action="store_const", const=word, help=shown)


def add_path_selection(parser: argparse.ArgumentParser) -> None:
    """--tcp-flags, --sample, --first, --slow, --dropped, --count: which packets are followed."""
    group = parser.add_argument_group("what")
    group.add_argument(
        "--tcp-flags", type=tcp_flags, metavar="FLAGS", help="TCP packets with one of SYN,RST,…"
    )
    group.add_argument(
        "--inner", action="store_true", help="FILTER is about the packet inside a tunnel's, too"
    )
    group.add_argument(
        "--sample", type=sample_rate, metavar="1/N", help="one packet of N, the same at every hop"
    )
    group.add_argument(
        "--first", type=positive("--first"), metavar="N", help="N packets of each flow"
    )
    group.add_argument(
        "--slow", type=duration_s, metavar="TIME", help="only what took longer than 2ms, 1s"
    )
    group.add_argument("--dropped", action="store_true", help="only packets that died")
    group.add_argument(
        "-c", "--count", type=positive("--count"), metavar="N", help="stop after N packets"
    )


def add_path_output(parser: argparse.ArgumentParser) -> None:
    """-o, --brief, --summary, --write: how packets and their hops are shown."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "-o", "--output", choices=("tree", "brief", "json", "hubble"), default="tree", help="format"
    )
    group.add_argument("--brief", action="store_true", help="one line a packet: -o brief")
    group.add_argument(
        "--summary", action="store_true", help="only the summary of flows and latencies at the end"
    )
    group.add_argument(
        "--write", type=Path, metavar="FILE.pcapng", help="write the packets for Wireshark, too"
    )


SNAPLENS = range(32, 2049, 8)
"""Bytes of each hop's packet that programs can be made for."""


def snaplen(text: str) -> int:
    """`--snaplen`: bytes, rounded up to what a program can be made for."""
    if not text.isdecimal() or not 1 <= int(text) <= SNAPLENS[-1]:
        raise TracerError(f"--snaplen: '{text}' is not a size", f"bytes, 1 to {SNAPLENS[-1]}")
    return next(size for size in SNAPLENS if size >= int(text))


def add_run_options(parser: argparse.ArgumentParser, *, hooks: bool = True) -> None:
    """Limits and what scripts need: --duration, --ready-file, --concurrent, with hooks --attach."""
    group = parser.add_argument_group("run")
    group.add_argument(
        "--duration", type=duration_s, metavar="TIME", help="stop after 500ms, 5s, 2m"
    )
    group.add_argument(
        "--ready-file", type=_new_file, metavar="PATH", help="made once every hook is attached"
    )
    group.add_argument(
        "--concurrent", action="store_true", help="run even if this command runs already"
    )
    if hooks:
        group.add_argument(
            "--attach",
            action="append",
            default=[],
            metavar="HOOK=WAY",
            help="attach a hook in this way only (tracer hooks lists them)",
        )
    group.add_argument(
        "--kubeconfig",
        type=Path,
        metavar="FILE",
        help="ask the Kubernetes API for names beyond this node (default: $KUBECONFIG, or the"
        " service account of the pod that this runs in; without: do not ask)",
    )


def cluster(args: argparse.Namespace) -> Cluster | None:
    """The Kubernetes API, where there are credentials; TracerError for a bad kubeconfig."""
    access = connect(args.kubeconfig)
    if access is None:
        return None
    from tracer.cluster.cluster import Cluster  # noqa: PLC0415 - an HTTP client: for those who ask

    return Cluster(access)


def rule_services(args: argparse.Namespace) -> RuleServices | None:
    """Services without the API, by kube-proxy's rules; None where --rules=off forbids to read."""
    return None if getattr(args, "rules", "") == "off" else RuleServices()


def attach_ways(args: argparse.Namespace) -> dict[str, str]:
    """`--attach skb-drop=raw_tp` → {hook: way}; TracerError names what is unknown."""
    from tracer.kernel.hooks import HOOKS  # noqa: PLC0415

    ways = {}
    for text in args.attach:
        name, _, kind = text.partition("=")
        hook = next((hook for hook in HOOKS if hook.name == name), None)
        if hook is None or kind not in {way.kind for way in hook.ways}:
            raise TracerError(f"--attach '{text}': no such hook or way", "tracer hooks lists them")
        ways[name] = kind
    return ways


def limits(args: argparse.Namespace) -> Limits:
    """When the run ends by itself."""
    return Limits(count=getattr(args, "count", None), duration_s=args.duration)


IFNAMSIZ = 16


def interface_words(name: str) -> str:
    """A device's name as the two 64-bit numbers of SELECT_INTERFACE (bpf/config.h)."""
    raw = name.encode()
    if not 0 < len(raw) < IFNAMSIZ:
        raise TracerError(
            f"interface '{name}': not a device name", f"names have 1 to {IFNAMSIZ - 1} bytes"
        )
    padded = raw.ljust(IFNAMSIZ, b"\0")
    words = (int.from_bytes(padded[at : at + 8], sys.byteorder) for at in (0, 8))
    return ", ".join(f"{word:#x}ULL" for word in words)
