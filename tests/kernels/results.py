"""What the runs in the guests left on disk: pytest's own JUnit files, and the guests' figures."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from pathlib import Path

    from vm.machine import Ending


@dataclass(frozen=True, slots=True)
class Test:
    """One test in one kernel."""

    name: str
    """Function and parameters: `test_drop[tp_btf-closed UDP port]`."""
    outcome: str
    """`passed`, `failed` or `skipped`."""
    told: dict[str, str]
    """What it recorded as properties."""

    @property
    def function(self) -> str:
        """Its name without parameters."""
        return self.name.partition("[")[0]


@dataclass(frozen=True, slots=True)
class Run:
    """All tests in one kernel."""

    kernel: str
    suite: str
    release: str
    boot_s: float
    run_s: float
    tests: tuple[Test, ...]

    def of(self, function: str) -> list[Test]:
        """The tests of one function."""
        return [test for test in self.tests if test.function == function]


def report_path(directory: Path, kernel: str) -> Path:
    """Where pytest in `kernel` writes its report."""
    return directory / f"{kernel}.xml"


def _figures_path(directory: Path, kernel: str) -> Path:
    return directory / f"{kernel}.json"


def save_figures(directory: Path, kernel: str, suite: str, ending: Ending) -> None:
    """Keep what only the host knows of a run."""
    figures = {"suite": suite, **asdict(ending)}
    _figures_path(directory, kernel).write_text(json.dumps(figures))


def load(directory: Path, kernel: str) -> Run | None:
    """The last run in `kernel`; None when it left no report."""
    report, figures_file = report_path(directory, kernel), _figures_path(directory, kernel)
    if not (report.exists() and figures_file.exists()):
        return None
    figures = json.loads(figures_file.read_text())
    suite = ET.parse(report).getroot()[0]  # noqa: S314 - our own pytest wrote it
    return Run(
        kernel=kernel,
        suite=figures["suite"],
        release=_properties(suite)["release"],
        boot_s=figures["boot_s"],
        run_s=figures["run_s"],
        tests=tuple(_test(case) for case in suite.iter("testcase")),
    )


def _properties(element: ET.Element) -> dict[str, str]:
    return {
        each.get("name", ""): each.get("value", "") for each in element.iterfind("properties/*")
    }


def _test(case: ET.Element) -> Test:
    tags = {child.tag for child in case}
    outcome = (
        "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
    )
    return Test(case.get("name", ""), outcome, _properties(case))
