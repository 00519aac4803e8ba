"""Charts as inline SVG: no script, no network; colours come from the page's style."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from tracer.sinks.terminal import cut

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WIDTH, ROW, LABEL, VALUE = 960, 26, 300, 190
LABEL_CHARACTERS = 36
HEIGHT, LEFT, BOTTOM, TOP = 220, 70, 26, 10
MARKS = 6
"""How many times are written below a timeline."""

Series = tuple[str, str]
"""(its name for people, the style's class that colours it)."""


def _svg(height: float, about: str, body: Sequence[str]) -> str:
    return (
        f'<div class="wide"><svg viewBox="0 0 {WIDTH} {height:g}" role="img"'
        f' aria-label="{escape(about)}">{"".join(body)}</svg></div>'
    )


def legend(series: Sequence[Series]) -> str:
    """What the colours mean."""
    keys = (f'<span class="key {kind}"></span>{escape(name)}' for name, kind in series)
    return f'<p class="legend">{" ".join(keys)}</p>'


def bars(
    about: str,
    rows: Sequence[tuple[str, Sequence[float]]],
    series: Sequence[Series],
    write: Callable[[float], str],
) -> str:
    """A bar a row, its values one behind the other; each part and the row have a tooltip."""
    most = max((sum(values) for _, values in rows), default=0) or 1
    room = WIDTH - LABEL - VALUE
    body = []
    for index, (label, values) in enumerate(rows):
        y = index * ROW
        told = ", ".join(
            f"{name} {write(value)}" for (name, _), value in zip(series, values, strict=True)
        )
        body.append(f"<g><title>{escape(label)}: {escape(told)}</title>")
        body.append(f'<text x="{LABEL - 10}" y="{y + 17}" class="label">')
        body.append(f"{escape(cut(label, LABEL_CHARACTERS))}</text>")
        x = float(LABEL)
        for (_, kind), value in zip(series, values, strict=True):
            width = room * value / most
            body.append(
                f'<rect x="{x:.1f}" y="{y + 4}" width="{width:.1f}" height="{ROW - 8}"'
                f' class="{kind}"/>'
            )
            x += width
        total = " + ".join(write(value) for value in values if value)
        body.append(f'<text x="{x + 8:.1f}" y="{y + 17}" class="value">{escape(total)}</text></g>')
    return legend(series) + _svg(len(rows) * ROW, about, body)


def columns(
    about: str,
    points: Sequence[tuple[int, float]],
    width_s: int,
    look: str,
    write: Callable[[float], str],
    when: Callable[[int], str],
) -> str:
    """A column a step of time: (start in s since 1970, value), `width_s` wide each."""
    begin, end = points[0][0], points[-1][0] + width_s
    most = max(value for _, value in points) or 1
    across, up = (WIDTH - LEFT) / (end - begin), HEIGHT - BOTTOM - TOP
    wide = max(1.0, across * width_s - 1)
    body = []
    for part in (0, 0.5, 1):
        y = TOP + up * (1 - part)
        body.append(f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y:g}" y2="{y:g}" class="grid"/>')
        body.append(f'<text x="{LEFT - 8}" y="{y + 4:g}" class="label">')
        body.append(f"{escape(write(most * part))}</text>")
    for start, value in points:
        high = up * value / most
        x, y = LEFT + across * (start - begin), TOP + up - high
        body.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{high:.1f}"')
        body.append(f' class="{look}"><title>{escape(when(start))}: {escape(write(value))}')
        body.append("</title></rect>")
    for mark in range(MARKS):
        at_s = begin + (end - begin) * mark // MARKS // width_s * width_s
        x = LEFT + across * (at_s - begin)
        body.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" class="time">{escape(when(at_s))}</text>')
    return _svg(HEIGHT, about, body)


def matrix(
    about: str,
    ends: tuple[Sequence[str], Sequence[str]],
    cells: dict[tuple[str, str], float],
    write: Callable[[float], str],
) -> str:
    """Rows send to columns: a table whose cells are the darker the more they hold."""
    sources, destinations = ends
    most = max(cells.values(), default=0) or 1
    head = "".join(
        f'<th scope="col"><span title="{escape(one)}">{escape(cut(one, 22))}</span></th>'
        for one in destinations
    )
    lines = []
    for source in sources:
        line = [f'<th scope="row" title="{escape(source)}">{escape(cut(source, 32))}</th>']
        for destination in destinations:
            value = cells.get((source, destination), 0)
            # The square root: one huge pair must not make all others look alike.
            strength = round(100 * (value / most) ** 0.5)
            told = f"{source} to {destination}: {write(value)}"
            line.append(
                f'<td style="--strength:{strength}%" title="{escape(told)}">'
                f"{escape(write(value)) if value else ''}</td>"
            )
        lines.append(f"<tr>{''.join(line)}</tr>")
    return (
        f'<div class="wide"><table class="matrix"><caption>{escape(about)}</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
