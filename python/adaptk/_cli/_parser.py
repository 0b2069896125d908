"""Command-line parsing: coloured help on a terminal, suggestions for misspelt names, types of arguments."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from adaptk._cli._screen import coloured


class CommandError(Exception):
    """Ends a command with a message and the exit status 1."""


def program() -> str:
    """The name under which the command line was called, for texts that say what to type."""
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    return "adaptk" if name in ("adaptk", "adaptk.exe", "adaptk-script.py") else "python -m adaptk"


def suggestion(name: str, known: Iterable[str]) -> str:
    """``; did you mean ...?`` if a known name is similar, else an empty string."""
    close = difflib.get_close_matches(name, list(known), 3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


class Parser(argparse.ArgumentParser):
    """argparse's parser with examples below the options, colour on a terminal and suggestions."""

    def __init__(self, *arguments: Any, examples: Sequence[tuple[str, str]] = (), **options: Any) -> None:
        if examples:
            width = max(len(command) for command, _ in examples)
            lines = [f"  {command.ljust(width)}   {what}" for command, what in examples]
            options["epilog"] = "\n".join(["examples:", *lines, "", options.get("epilog", "")]).rstrip()
        if sys.version_info >= (3, 14):
            options["color"] = False  # Python 3.14 has colours of its own; _print_message has the same for all versions
        options["formatter_class"] = _Formatter
        super().__init__(*arguments, **options)
        self._optionals.title = "options"

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown:
            message += suggestion(unknown[1], self._option_string_actions)
        super().error(message)

    def _print_message(self, message: str, file: Any = None) -> None:
        stream: IO[str] = file if file is not None else sys.stderr
        console = coloured(stream)
        if console is None:
            super()._print_message(message, stream)
            return
        from rich.text import Text

        text = Text(message)
        text.highlight_regex(r"(?m)^(usage:|[a-z][a-z ]*:$)", "bold")
        text.highlight_regex(r"(?<![\w-])--?[a-z][\w-]*", "cyan")
        text.highlight_regex(r"(?m)^  (adaptk|python -m adaptk)(?= )", "green")
        console.print(text, end="", soft_wrap=True)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Wraps the description, but not the examples."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        options["max_help_position"] = 26
        super().__init__(*arguments, **options)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(("examples:", "commands:")):
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)


def add_json(parser: argparse._ActionsContainer, what: str = "all figures") -> None:
    """Add ``--json``, which prints JSON only, and ``--json FILE``, which writes a file besides the usual output."""
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help=f"write {what} as JSON to FILE; without FILE, print only this JSON",
    )


def names_among(what: str, known: Sequence[str]) -> Callable[[str], list[str]]:
    """A type for argparse: ``all``, or a comma-separated list of names in `known`."""

    def parse(text: str) -> list[str]:
        if text.strip() == "all":
            return list(known)
        names = list(dict.fromkeys(name for name in (part.strip() for part in text.split(",")) if name))
        if not names:
            raise argparse.ArgumentTypeError(f"no {what} given; there are {', '.join(known)}")
        for name in names:
            if name not in known:
                hint = suggestion(name, known) or f"; there are {', '.join(known)}"
                raise argparse.ArgumentTypeError(f"no {what} {name!r}{hint}")
        return names

    return parse


def whole(low: int) -> Callable[[str], int]:
    """A type for argparse: an integer >= `low`."""

    def parse(text: str) -> int:
        try:
            n = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if n < low:
            raise argparse.ArgumentTypeError(f"{n} is less than {low}")
        return n

    return parse


def check_plot(path: Path) -> None:
    """Check that a picture can be drawn, before the work, so that nobody waits in vain."""
    try:
        import matplotlib  # noqa: F401  (without it, its modules may be there in part)
        from matplotlib.figure import Figure
    except ImportError:
        raise CommandError("--plot needs matplotlib, which is not installed: pip install matplotlib") from None
    known = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix[1:].lower() not in known:
        raise CommandError(f"--plot {path}: the name must end in one of .{', .'.join(known)}")
    check_folder("--plot", path)


def check_folder(option: str, path: Path) -> None:
    """Check that a file can be written there."""
    if not path.parent.is_dir():
        raise CommandError(f"{option} {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise CommandError(f"{option} {path}: that is a folder")


def check_files(options: argparse.Namespace) -> None:
    """Check the files that ``--json`` and ``--plot`` name."""
    if getattr(options, "plot", None) is not None:
        check_plot(Path(options.plot))
    if options.json not in (None, "-"):
        check_folder("--json", Path(options.json))


def write_json(text: str, to: str | None) -> None:
    """Write a JSON document to standard output or the file of ``--json``."""
    if to == "-":
        print(text)
    elif to is not None:
        Path(to).write_text(text + "\n", encoding="utf-8")
