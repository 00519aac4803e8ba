"""What nft, iptables-save and ipset print of the calling thread's network namespace.

They are only asked to list; where a list could make the kernel load a module or make a table,
/proc is asked first whether there is one.
"""

from __future__ import annotations

import errno
import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tracer.netfilter import nfnl, nft_table

TIMEOUT_S = 60.0
MANY_RULES = 5000
"""Of iptables-nft: nft takes many times as long as iptables-save to list so many, and says less."""
_NET = Path("/proc/thread-self/net")
"""/proc/net would be the namespace of the process, not of this thread."""
_LEGACY = {
    "iptables_legacy": ("ip_tables_names", "iptables-legacy-save"),
    "ip6tables_legacy": ("ip6_tables_names", "ip6tables-legacy-save"),
}
_XT_NFT = {"iptables": ("ip", "iptables-nft-save"), "ip6tables": ("ip6", "ip6tables-nft-save")}
_KUBE_PROXY = "kube-proxy"
"""Its table in nftables mode; in iptables mode its Services stand in these chains."""
_SERVICE_LINES = re.compile(
    r"^(?:\*\S+|COMMIT|[:-](?:A )?KUBE-(?:SERVICES|NODEPORTS|EXTERNAL-SERVICES) .*)$", re.MULTILINE
)
_SECTION = re.compile(r"^\*(\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Printed:
    """What was printed; empty for what there is not."""

    texts: dict[str, str]
    """`nft`, `iptables`, `ip6tables`, `iptables_legacy`, `ip6tables_legacy`, `ipset`, `chains`."""
    warnings: tuple[str, ...] = ()
    handles: bool = True
    """False where nft was not asked for the tables of iptables-nft: too many rules."""


def legacy_tables() -> bool:
    """Whether xtables itself has tables here: changes of those are told by nobody."""
    return any(_listed(tables) for tables, _ in _LEGACY.values())


def list_rules() -> Printed:
    """Run every program that has something to tell here."""
    warnings: list[str] = []
    texts = {name: _run(warnings, program, "-c") for name, (_, program) in _XT_NFT.items()}
    many = sum(text.count("\n") for text in texts.values()) > MANY_RULES
    if many:
        known = {(_XT_NFT[name][0], table) for name in texts for table in _tables(texts[name])}
        texts["nft"] = _without(warnings, known)
    else:
        texts["nft"] = _run(warnings, "nft", "-a", "-j", "list", "ruleset")
        if not _is_whole(texts["nft"]):
            texts["nft"] = _without(warnings, set())
    if any(f'"hook": "{hook}"' in texts["nft"] for hook in ("ingress", "egress")):
        texts["chains"] = _run(warnings, "nft", "list", "chains")
    for name, (tables, program) in _LEGACY.items():
        texts[name] = _run(warnings, program, "-c") if _listed(tables) else ""
    if any("--match-set" in texts[name] for name in (*_XT_NFT, *_LEGACY)):
        texts["ipset"] = _run(warnings, "ipset", "save")
    return Printed(texts, tuple(warnings), handles=not many)


def list_service_rules() -> Printed:
    """The same of the rules that tell Services of kube-proxy, of either mode, and no others."""
    warnings: list[str] = []
    programs = {name: program for name, (_, program) in _XT_NFT.items()}
    programs |= {name: program for name, (tables, program) in _LEGACY.items() if _listed(tables)}
    texts = {
        name: service_lines(_run(warnings, program))
        for name, program in programs.items()
        if shutil.which(program)
    }
    with nfnl.open_socket() as sock:
        tables = nft_table.tables(sock) if nft_generation() else []
    others = {one for one in tables if one[1] != _KUBE_PROXY}
    texts["nft"] = _without(warnings, others) if len(others) < len(tables) else ""
    return Printed(texts, tuple(warnings), handles=False)


def nft_generation() -> int:
    """nf_tables' number of the ruleset here, which grows with each change; 0: no nf_tables."""
    with nfnl.open_socket() as sock:
        try:
            return nft_table.generation(sock)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return 0


def service_lines(save: str) -> str:
    """The lines of iptables-save that tell Services, in their tables."""
    return "\n".join([*_SERVICE_LINES.findall(save), ""])


def _tables(save: str) -> list[str]:
    return _SECTION.findall(save)


def _without(warnings: list[str], known: set[tuple[str, str]]) -> str:
    """nft's JSON of all tables but the known ones; it breaks off if one of them did."""
    parts, end = [], "]}"
    with nfnl.open_socket() as sock:
        tables = nft_table.tables(sock)
    for family, table in tables:
        if (family, table) not in known:
            text = _run(warnings, "nft", "-a", "-j", "list", "table", family, table)
            if _is_whole(text):
                parts.append(text[text.find("[") + 1 : text.rfind("]")])
            elif not nft_table.is_ours(table):
                end = ""
    return '{"nftables": [' + ", ".join(filter(None, parts)) + end


def _is_whole(text: str) -> bool:
    """Whether nft's JSON came to its end.

    nft 1.0.6 prints other memory for the flags of a table, as our own has, and stops where that
    is no text: all tables behind it would be missing.
    """
    return not text.strip() or text.rstrip().endswith("]}")


def _listed(tables: str) -> bool:
    with suppress(OSError):
        return bool(_NET.joinpath(tables).read_text().strip())
    return False


def _run(warnings: list[str], program: str, *arguments: str) -> str:
    if not shutil.which(program):
        warnings.append(f"{program}: not installed: its rules are not known")
        return ""
    try:
        done = subprocess.run(
            (program, *arguments), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        warnings.append(f"{program}: no answer for {TIMEOUT_S:.0f} s: its rules are not known")
        return ""
    if done.returncode:
        first = done.stderr.strip().partition("\n")[0] or f"exit {done.returncode}"
        warnings.append(f"{program}: {first}: its rules are not known")
        return ""
    return done.stdout
