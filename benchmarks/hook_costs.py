"""`hook_cost.py` in other kernels, one guest after the other; one Markdown table of them all.

A nanosecond of the guest is one of its instructions (`scripts/kernels --instructions`). What each
kernel said is kept in build/hook_cost: a kernel that is not named keeps its column.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests/kernels"))

from vm.catalog import SUITES

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "build/hook_cost"
DOCUMENT = ROOT / "docs/overhead.md"
HEADING = "## A call of each hook, way by way"
RUN_S = 1500
ROW = re.compile(r"^\| (\w+) \| (\w+) \| (\w+) \| \d+ \| (-?\d+) \|$", re.MULTILINE)


def run_in(kernel: str) -> None:
    """Keep what `hook_cost.py` says there; nothing of a run that failed."""
    script = (sys.executable, "benchmarks/hook_cost.py")
    guest = ("scripts/kernels", kernel, "--instructions", "--timeout", str(RUN_S))
    print(f"--- {kernel}", file=sys.stderr)
    said: list[str] = []
    with subprocess.Popen(
        (*guest, "--", *script), cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout or ():
            said.append(line)
            print(line, end="", file=sys.stderr, flush=True)
    if process.returncode:
        sys.exit(f"error: {kernel}: not measured")
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / f"{kernel}.md").write_text("".join(said))


def table(kept: dict[str, str]) -> str:
    """Kernel → what it said, as one table: command and function × kernel, all ways in a cell."""
    found: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for kernel, text in kept.items():
        for command, function, way, per_call in ROW.findall(text):
            found.setdefault((command, function), {}).setdefault(way, {})[kernel] = per_call
    lines = [["command", "function", "ways", *kept], ["-"] * (3 + len(kept))]
    for (command, function), ways in found.items():
        cells = [" / ".join(per.get(kernel, "–") for per in ways.values()) for kernel in kept]
        lines.append([command, function, " / ".join(ways), *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write(text: str) -> None:
    """Put the table where the document has its former one."""
    before, heading, after = DOCUMENT.read_text().partition(HEADING)
    after = re.sub(r"(^\|.*\n)+", lambda _: text, after, count=1, flags=re.MULTILINE)
    DOCUMENT.write_text(before + heading + after)


def main() -> None:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kernels", nargs="*", help=f"of {', '.join(SUITES)}; none: as measured")
    parser.add_argument("--document", action="store_true", help=f"also into {DOCUMENT.name}")
    arguments = parser.parse_args()
    for kernel in arguments.kernels:
        run_in(kernel)
    places = {kernel: KEPT / f"{kernel}.md" for kernel in SUITES}
    text = table({kernel: at.read_text() for kernel, at in places.items() if at.exists()})
    print(text, end="")
    if arguments.document:
        write(text)


if __name__ == "__main__":
    main()
