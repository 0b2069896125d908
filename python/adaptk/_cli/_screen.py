"""Output of the commands: by rich in colour on a terminal, as plain aligned text elsewhere.

rich is optional. If it is missing, if NO_COLOR is set, or if the output is not a terminal, the same tables are printed
without it.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from rich.console import Console

#: A text, or a text and its style in rich's syntax.
Cell: TypeAlias = "str | tuple[str, str]"

# The width of running text, if the terminal is wider or there is none.
TEXT_WIDTH = 100


def is_terminal(stream: IO[str]) -> bool:
    """Whether the stream is a terminal."""
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # None, or a closed stream
        return False


def coloured(stream: IO[str]) -> Console | None:
    """rich's console if the stream is a terminal with colours, else None."""
    if not is_terminal(stream) or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(file=stream, highlight=False, width=terminal_width(), legacy_windows=False)


def terminal_width() -> int:
    """The number of columns of the terminal, or the value of COLUMNS."""
    return max(20, shutil.get_terminal_size().columns)


@dataclass(frozen=True)
class Column:
    """A column of a table. In a narrow terminal the column with the highest `drop` > 0 is left out first."""

    title: str
    left: bool = False
    style: str = ""
    drop: int = 0


def _text(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell[0]


class Screen:
    """The output of a command.

    Parameters
    ----------
    stream : text file, optional
        By default standard output.
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        self.stream = sys.stdout if stream is None else stream
        self.console = coloured(self.stream)
        #: The width of a line; None if the output is not a terminal.
        self.width = terminal_width() if is_terminal(self.stream) else None

    @property
    def unicode(self) -> bool:
        """Whether the stream can show block and Braille characters."""
        try:
            "\u2588\u28ff\u2502\u2500".encode(getattr(self.stream, "encoding", None) or "ascii")
        except (UnicodeEncodeError, LookupError):
            return False
        return True

    @property
    def text_width(self) -> int:
        return min(self.width or TEXT_WIDTH, TEXT_WIDTH)

    def line(self, *parts: Cell) -> None:
        """Print one line unchanged."""
        if self.console is None:
            print("".join(_text(p) for p in parts).rstrip(), file=self.stream)
            return
        from rich.text import Text

        self.console.print(Text.assemble(*parts), soft_wrap=True)

    def text(self, text: str = "", style: str = "", indent: str = "") -> None:
        """Print a paragraph."""
        for line in textwrap.wrap(text, self.text_width, initial_indent=indent, subsequent_indent=indent) or [""]:
            self.line((line, style))

    def headline(self, text: str) -> None:
        self.text(text, "bold")

    def note(self, text: str) -> None:
        self.text(text, "dim")

    def pairs(self, rows: Sequence[tuple[str, str]]) -> None:
        """Print names and values; long values continue on indented lines."""
        margin = max(len(name) for name, _ in rows) + 2
        for name, value in rows:
            lines = textwrap.wrap(
                value, max(self.text_width - margin, 20), break_long_words=False, break_on_hyphens=False
            )
            first, *rest = lines or [""]
            self.line((name.ljust(margin), "cyan"), first)
            for line in rest:
                self.line(" " * margin + line)

    def fitting(self, columns: Sequence[Column], rows: Sequence[Sequence[Cell]], gap: int = 2) -> list[int]:
        """The columns that fit."""
        shown = list(range(len(columns)))
        widths = [max(len(c.title), *(len(_text(row[i])) for row in rows), 0) for i, c in enumerate(columns)]
        while self.width is not None and sum(widths[i] + gap for i in shown) - gap > self.width:
            least = max(shown, key=lambda i: columns[i].drop)
            if columns[least].drop == 0:
                break
            shown.remove(least)
        return shown

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> None:
        """Print a table with a rule below its header."""
        shown = self.fitting(columns, rows)
        columns = [columns[i] for i in shown]
        rows = [[row[i] for i in shown] for row in rows]
        if self.console is not None:
            self._rich_table(columns, rows)
            return
        widths = [max([len(c.title), *(len(_text(row[i])) for row in rows)]) for i, c in enumerate(columns)]

        def aligned(cells: Sequence[str]) -> str:
            each = [
                cell.ljust(w) if c.left else cell.rjust(w) for cell, w, c in zip(cells, widths, columns, strict=True)
            ]
            return "  ".join(each).rstrip()

        head = aligned([c.title for c in columns])
        print(head, "-" * (sum(widths) + 2 * len(widths) - 2), sep="\n", file=self.stream)
        for row in rows:
            print(aligned([_text(cell) for cell in row]), file=self.stream)

    def _rich_table(self, columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> None:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        assert self.console is not None
        table = Table(
            box=box.SIMPLE_HEAD,
            header_style="bold",
            pad_edge=False,
            padding=(0, 1, 0, 0),
            show_edge=False,
        )
        for c in columns:
            table.add_column(Text(c.title), style=c.style, justify="left" if c.left else "right", no_wrap=True)
        for row in rows:
            table.add_row(*(Text(cell) if isinstance(cell, str) else Text(*cell) for cell in row))
        self.console.print(table)


class Progress:
    """A progress bar on standard error if that is a terminal, else nothing."""

    def __init__(self, bar: Any = None, task: Any = None) -> None:
        self._bar = bar
        self._task = task

    def describe(self, what: str) -> None:
        """Set the description of the current work."""
        if self._bar is not None:
            self._bar.update(self._task, description=what)

    def advance(self, by: float = 1.0) -> None:
        """Advance by a part of the total."""
        if self._bar is not None:
            self._bar.advance(self._task, by)


@contextmanager
def progress(total: float, what: str = "") -> Iterator[Progress]:
    """A progress bar that is erased at the end."""
    console = coloured(sys.stderr) if is_terminal(sys.stderr) else None
    if console is None:
        yield Progress()
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = [
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    ]
    with Bars(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as bars:
        yield Progress(bars, bars.add_task(what, total=total))
