"""How cells are written for people: by the unit that ends a column's name."""

from __future__ import annotations

from typing import Any

from tracer.sinks.terminal import span

_STEP = 1000


def size(count: float) -> str:
    """`870 B`, `14.7 kB`, `3.20 GB`: three digits that count."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if value < _STEP:
            break
        value, unit = value / _STEP, larger
    if unit == "B":
        return f"{int(value)} B"
    digits = 2 if value < 10 else 1 if value < 100 else 0  # noqa: PLR2004 - three digits
    return f"{value:.{digits}f} {unit}"


def cell(column: str, value: Any) -> str:  # noqa: ANN401 - whatever DuckDB answers
    """One cell; NULL is empty."""
    if value is None:
        return ""
    if isinstance(value, str):
        return moment(value) if column in ("first", "last") else value
    if column.endswith("_ns"):
        return span(int(value))
    if column.endswith("bytes"):
        return size(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def heading(column: str) -> str:
    """`rtt_p50_ns` → `rtt p50`: what `cell` writes has its unit."""
    return column.removesuffix("_ns").replace("_", " ")


def moment(time: str) -> str:
    """RFC 3339 to the second; the offset is said once, beside the table."""
    return time[:19].replace("T", " ")
