"""Curves as text: Braille dots in colour, or one letter for each curve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from adaptk._cli._screen import Cell, Screen

STYLES = ("bright_blue", "bright_red", "bright_green", "bright_magenta", "bright_yellow", "bright_cyan")
MARKS = "ox+*#@%&=~"
# The bit of each dot of a Braille character, by row and column.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def _between(a: tuple[float, float], b: tuple[float, float]) -> list[tuple[int, int]]:
    """The dots on the line from a to b."""
    count = max(1, math.ceil(max(abs(b[0] - a[0]), abs(b[1] - a[1]))))
    return [
        (round(a[0] + (b[0] - a[0]) * i / count), round(a[1] + (b[1] - a[1]) * i / count)) for i in range(count + 1)
    ]


def chart(
    screen: Screen,
    curves: Mapping[str, Sequence[float]],
    *,
    title: str,
    below: str,
    last: str | None = None,
    lowest: float = 0.0,
    height: int = 12,
    max_width: int = 84,
) -> None:
    """Draw positive values over 0, 1, 2, ... on a logarithmic axis. `last` is the label of the right end.

    Values that are not finite or not positive leave a gap; those below `lowest` are drawn at `lowest`.
    """
    drawn = {
        name: [math.log10(max(v, lowest)) if 0.0 < v < math.inf else math.nan for v in values]
        for name, values in curves.items()
    }
    finite = [v for values in drawn.values() for v in values if math.isfinite(v)]
    longest = max((len(values) for values in drawn.values()), default=0)
    if not finite or longest < 2:
        return
    low, high = min(finite), max(finite)
    if high - low < 0.1:
        low, high = low - 0.05, high + 0.05
    margin = 9
    width = max(10, min(screen.width or max_width, max_width) - margin - 2)
    dots = screen.console is not None and screen.unicode
    across, down = (2, 4) if dots else (1, 1)
    columns, rows = width * across, height * down
    bits = [[0] * width for _ in range(height)]
    owner: list[list[int | None]] = [[None] * width for _ in range(height)]

    def place(i: int, value: float) -> tuple[float, float]:
        return i * (columns - 1) / (longest - 1), (high - value) / (high - low) * (rows - 1)

    for number, values in enumerate(drawn.values()):
        points = [place(i, v) if math.isfinite(v) else None for i, v in enumerate(values)]
        for a, b in zip(points, [*points[1:], None], strict=True):
            if a is None:
                continue
            for x, y in _between(a, a if b is None else b):
                row, column = y // down, x // across
                bits[row][column] |= _DOTS[y % 4][x % 2] if dots else 1
                owner[row][column] = number

    labels = _labels(low, high, height)
    bar, corner, floor = ("\u2502", "\u2514", "\u2500") if screen.unicode else ("|", "+", "-")
    screen.line((title, "bold"))
    for row in range(height):
        parts: list[Cell] = [(f"{labels.get(row, ''):>{margin - 1}} {bar}", "dim")]
        for column in range(width):
            number_there = owner[row][column]
            if number_there is None:
                parts.append(" ")
            elif dots:
                parts.append((chr(0x2800 + bits[row][column]), STYLES[number_there % len(STYLES)]))
            else:
                parts.append(MARKS[number_there % len(MARKS)])
        screen.line(*parts)
    screen.line((" " * margin + corner + floor * width, "dim"))
    last = str(longest - 1) if last is None else last
    screen.line((" " * (margin + 1) + "0" + below.center(width - 1 - len(last)) + last, "dim"))
    legend: list[Cell] = [" " * (margin + 1)]
    used = margin + 1
    for number, name in enumerate(drawn):
        mark = ("\u2501\u2501" if dots else MARKS[number % len(MARKS)]) + " "
        if used + len(mark + name) > margin + 1 + width and len(legend) > 1:
            screen.line(*legend)
            legend, used = [" " * (margin + 1)], margin + 1
        legend += [(mark, STYLES[number % len(STYLES)]), name + "   "]
        used += len(mark + name) + 3
    screen.line(*legend)


def _labels(low: float, high: float, height: int) -> dict[int, str]:
    """Labels by row: powers of ten, or the ends of the axis if there are fewer than two."""
    found: dict[int, str] = {}
    powers = range(math.ceil(low), math.floor(high) + 1)
    every = max(1, math.ceil(len(powers) / height * 2))
    for power in powers:
        if power % every == 0:
            found[round((high - power) / (high - low) * (height - 1))] = (
                f"1e{power}" if power < -2 else f"{10.0**power:g}"
            )
    if len(found) < 2:
        return {0: f"{10**high:.2g}", height - 1: f"{10**low:.2g}"}
    return found
