"""The command line: ``adaptk`` and ``python -m adaptk``. No other part of the package uses rich."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import adaptk
from adaptk._cli._parser import CommandError, Parser, program, suggestion

#: What each command does, and the module whose ``main`` runs it.
COMMANDS = {
    "demo": ("train a network on handwritten digits with several rules, in seconds", "adaptk._demo"),
    "compare": ("compare all rules on small problems, each at its best learning rate", "adaptk._cli._compare"),
    "bench": ("compare the speed of steps with that of memory, or measure the figures of the README", "adaptk._bench"),
    "info": ("show how this copy was built, what it runs on, where its headers are", "adaptk._cli._info"),
}


def _parser() -> Parser:
    name = program()
    lines = [f"  {command:<9} {what}" for command, (what, _) in COMMANDS.items()]
    parser = Parser(
        prog=name,
        usage=f"{name} [-h] [--version] COMMAND [OPTIONS]",
        description="Fused update kernels of adaptive optimizers.",
        epilog="\n".join(["commands:", *lines, "", f"{name} COMMAND --help shows the options of a command."]),
    )
    parser.add_argument("--version", action="version", version=f"adaptk {adaptk.__version__}")
    parser.add_argument("command", nargs="?", metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the commands, with the arguments after its name.

    Returns
    -------
    int
        0; 1 with a message on standard error; 130 after an interrupt. Wrong arguments exit with 2, as argparse does.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    # All arguments after the command belong to it, including --help.
    command = parser.parse_args(arguments[:1]).command
    if command is None:
        parser.print_help()
        return 0
    if command not in COMMANDS:
        hint = suggestion(command, COMMANDS) or f"; there are {', '.join(COMMANDS)}"
        parser.error(f"no command {command!r}{hint}")
    return run(command, arguments[1:])


def run(command: str, arguments: Sequence[str]) -> int:
    """Run one command and print its errors as messages."""
    try:
        status = int(import_module(COMMANDS[command][1]).main(arguments))
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader has closed the pipe, as `| head` does. Redirect the output, so that the flush at exit does not
        # fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (CommandError, OSError) as error:
        print(f"adaptk {command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"adaptk {command}: interrupted", file=sys.stderr)
        return 130
