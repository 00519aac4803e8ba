"""One translation unit for bcc, spliced from the files of `bpf/` that a program needs.

bcc exports only functions of its main text, and rewrites maps and dereferences only there:
so the files are spliced, each behind a `#line`, and clang's errors name the real file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

COMMON = (
    "config.h",
    "kernel.h",
    "event.h",
    "skb.bpf.h",
    "ipv4.bpf.h",
    "maps.bpf.h",
    "select.bpf.h",
)
PLANES = (
    "drop.bpf.h",
    "flow_look.bpf.h",
    "dns.bpf.h",
    "flow.bpf.h",
    "tunnel.bpf.h",
    "choose.bpf.h",
    "translate.bpf.h",
    "trace.bpf.h",
    "segment.bpf.h",
    "tell.bpf.h",
    "route.bpf.h",
    "qdisc.bpf.h",
)


def splice(bpf: Path, programs: Iterable[str], pcap_match: str = "") -> str:
    """The text of one BPF object: common files, the filter, and the named hooks' programs.

    `pcap_match` is the C text of the user's filter (see `pcap.compile_filter`), or empty.
    """
    parts = [_file(bpf, name) for name in COMMON]
    if pcap_match:
        parts.append(f'#line 1 "pcap filter"\n{pcap_match}\n')
    parts += [_file(bpf, name) for name in PLANES]
    parts += [_file(bpf, f"hooks/{program}.bpf.c") for program in programs]
    return "".join(parts)


def _file(bpf: Path, name: str) -> str:
    return f'#line 1 "bpf/{name}"\n{(bpf / name).read_text()}'
