"""What a program may leave behind on a node, listed so that before and after can be compared.

What other programs of the machine hold open (their BPF objects come and go too) does not
count: `MARK` in the environment tells the tests' own processes from theirs.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from lab.shell import run

MARK = "TRACER_TESTS"
"""Set in the environment of the tests, and so of all that they start."""
HELD = re.compile(r"^(prog|map|link)_id:\s*(\d+)", re.MULTILINE)


BPF_LINK_TYPE_NETFILTER = 10


def listing() -> dict[str, set[str]]:
    """BPF objects, kprobes, nft rules, namespaces, files pinned or temporary, our processes."""
    bpf = {kind: {each["id"]: each for each in _bpf(kind)} for kind in ("link", "prog", "map")}
    held, processes = _processes()
    # A link holds its program and a program its maps, even where no descriptor does.
    held["prog"] |= {bpf["link"][n].get("prog_id", 0) for n in held["link"] & bpf["link"].keys()}
    for number in held["prog"] & bpf["prog"].keys():
        held["map"] |= set(bpf["prog"][number].get("map_ids", ()))
    ours = {
        kind: {f"{n} {bpf[kind][n].get('name', '')}" for n in bpf[kind].keys() - held[kind]}
        for kind in bpf
    }
    return {
        **ours,
        "kprobes": _kprobes(),
        "nft": set(run("nft", "list", "ruleset").splitlines()),
        "netns": set(run("ip", "netns", "list").splitlines()),
        "pinned": {str(path) for path in Path("/sys/fs/bpf").rglob("*")},
        "temporary": {str(path) for path in Path(tempfile.gettempdir()).glob("*tracer*")},
        "processes": processes,
    }


def _kprobes() -> set[str]:
    """Those in tracefs: unlike perf events, these outlive who made them."""
    try:
        return set(Path("/sys/kernel/tracing/kprobe_events").read_text().splitlines())
    except FileNotFoundError:
        return set()


def _bpf(kind: str) -> list[dict[str, Any]]:
    for _ in range(20):
        found = json.loads(run("bpftool", "--json", kind, "show", check=False) or "[]")
        if isinstance(found, list) and all("id" in each for each in found):
            return found
        time.sleep(0.05)  # an object vanished while bpftool walked the list: walk again
    raise AssertionError(f"bpftool {kind} show: {found}")


def _processes() -> tuple[dict[str, set[int]], set[str]]:
    """BPF ids by kind that strangers hold; (pid, command line) of our tracers."""
    held: dict[str, set[int]] = {"link": set(), "prog": set(), "map": set()}
    tracers = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if f"{MARK}=".encode() in (process / "environ").read_bytes():
                words = (process / "cmdline").read_bytes().split(b"\0")
                if any(word.startswith(b"tracer") for word in words):
                    tracers.add(f"{process.name} {b' '.join(words).decode()}")
                continue
            for file in (process / "fdinfo").iterdir():
                for kind, number in HELD.findall(file.read_text()):
                    held[kind].add(int(number))
    return held, tracers


def added(before: dict[str, set[str]]) -> dict[str, set[str]]:
    """What is there now and was not `before`, kinds without news left out."""
    now = listing()
    return {kind: now[kind] - before[kind] for kind in before if now[kind] - before[kind]}


def mark() -> None:
    """Put `MARK` into this process's environment; children inherit it."""
    os.environ[MARK] = "1"


def netfilter_links() -> list[str]:
    """Names of the programs of the netfilter links that our tracers hold, one a link."""
    kinds = ("netfilter", BPF_LINK_TYPE_NETFILTER)  # of a bpftool that knows them, or does not
    links = [link for link in _bpf("link") if link["type"] in kinds]
    names = {each["id"]: each.get("name", "") for each in _bpf("prog")}
    strangers = _processes()[0]["link"]
    return [names.get(one["prog_id"], "") for one in links if one["id"] not in strangers]
