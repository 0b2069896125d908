"""The command line: help, output with and without a terminal, without rich; and `info`."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import adaptk
import pytest
from adaptk._cli import COMMANDS, main
from adaptk._cli._chart import chart
from adaptk._cli._screen import Column, Screen, progress

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def in_terminal(*arguments: str, columns: int = 100, **environment: str) -> tuple[int, str, str]:
    """Status, standard output and standard error of `python -m adaptk`, each in a separate terminal."""
    pty = pytest.importorskip("pty", reason="a system without pseudo-terminals")
    import fcntl
    import termios

    ends = [pty.openpty() for _ in range(2)]
    for _, slave in ends:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "TERM", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "adaptk", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=ends[0][1],
        stderr=ends[1][1],
        env={**kept, "TERM": "xterm-256color", "COLUMNS": str(columns), "PYTHONIOENCODING": "utf-8", **environment},
    )
    texts = [b"", b""]
    for _, slave in ends:
        os.close(slave)
    import select

    masters = [master for master, _ in ends]
    while masters:
        for master in select.select(masters, [], [], 60)[0]:
            try:
                data = os.read(master, 65536)
            except OSError:  # on Linux: the other end is closed
                data = b""
            if data:
                texts[[m for m, _ in ends].index(master)] += data
            else:
                masters.remove(master)
                os.close(master)
    out, err = (text.decode("utf-8").replace("\r\n", "\n") for text in texts)
    return process.wait(60), out, err


# Help and errors


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^  {command} +\S", text, re.MULTILINE) for command in COMMANDS)
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: python -m adaptk {command} ")
    assert "--json [FILE]" in text
    assert "examples:" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dmeo"], "no command 'dmeo'; did you mean demo?"),
        (["zzz"], "no command 'zzz'; there are demo, "),
        (["demo", "--rulse", "adam"], "did you mean --rules"),
        (["demo", "--rules", "Adam"], "no rule 'Adam'; did you mean adam"),
        (["bench", "--dtypes", "float"], "no dtype 'float'; did you mean float64"),
        (["info", "--pkgconfig"], "did you mean"),
    ],
)
def test_misspelt_names(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if arguments == ["info", "--pkgconfig"]:
        # argparse completes unambiguous prefixes.
        assert main(arguments) == 0
        return
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"adaptk {adaptk.__version__}\n"


def test_the_script_is_the_command_line() -> None:
    project = Path(__file__).parents[1] / "pyproject.toml"
    assert re.search(r'^\[project.scripts\]\nadaptk = "adaptk._cli:main"$', project.read_text(), re.MULTILINE)
    code = "import sys; sys.argv = ['/usr/bin/adaptk', 'info', '--help']; from adaptk._cli import main; main()"
    assert python("-c", code).stdout.startswith("usage: adaptk info ")


# With and without a terminal


def test_colour_only_on_a_terminal() -> None:
    status, out, err = in_terminal("info")
    assert status == 0
    assert ESCAPE.search(out)
    assert err == ""
    plain = python("-m", "adaptk", "info").stdout
    assert not ESCAPE.search(plain)
    assert [line.rstrip() for line in ESCAPE.sub("", out).splitlines()] == plain.splitlines()
    assert not ESCAPE.search(in_terminal("info", NO_COLOR="1")[1])
    assert not ESCAPE.search(in_terminal("info", TERM="dumb")[1])
    assert ESCAPE.search(in_terminal("demo", "--help")[1])


@pytest.mark.parametrize("no_colour", ["", "1"])
def test_a_narrow_terminal(no_colour: str) -> None:
    arguments = ("bench", "--rules", "adam,rmsprop_centered_momentum", "--sizes", "64", "--repeats", "1")
    status, out, _ = in_terminal(*arguments, columns=48, NO_COLOR=no_colour)
    assert status == 0
    lines = ESCAPE.sub("", out).splitlines()
    assert max(map(len, lines)) <= 48
    head = lines[0]
    assert "of ceiling" in head
    assert "B/param" not in head
    assert any(line.startswith("rmsprop_centered_momentum ") for line in lines)


def test_progress_is_on_standard_error_of_a_terminal() -> None:
    status, out, err = in_terminal("bench", "--rules", "adam", "--sizes", "64K", "--repeats", "50")
    assert status == 0
    assert "adam float32 64K" in err
    assert "%" in err
    assert "100%" not in out
    # It is erased at the end.
    assert ESCAPE.sub("", err.rsplit("\x1b[2K", 1)[-1]).strip() == ""
    assert python("-m", "adaptk", "bench", "--rules", "adam", "--sizes", "64", "--repeats", "1").stderr == ""


def test_progress_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(3, "work") as bar:
        bar.describe("more work")
        bar.advance()
    assert capsys.readouterr() == ("", "")


JSON = {
    "info": [],
    "demo": ["--epochs", "1", "--rules", "adam", "--models", "softmax", "--no-fits", "--no-sparse"],
    "bench": ["--rules", "adam", "--sizes", "64", "--repeats", "1"],
    "compare": ["--rules", "adam", "--problems", "ravine", "--rates", "0.1", "--steps", "5"],
}


@pytest.mark.parametrize("command", JSON)
def test_json_alone_on_standard_output(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, *JSON[command], "--json"]) == 0
    json.loads(capsys.readouterr().out)
    path = tmp_path / "out.json"
    assert main([command, *JSON[command], "--json", str(path)]) == 0
    assert capsys.readouterr().out.strip()
    json.loads(path.read_text(encoding="utf-8"))
    assert main([command, *JSON[command], "--json", str(tmp_path / "nowhere" / "x.json")]) == 1
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", JSON)
def test_without_rich(command: str) -> None:
    """As after `pip install --no-deps`: the same text, without colour."""
    code = f"""
import sys
sys.modules["rich"] = None
from adaptk._cli import main
status = main({[command, *JSON[command]]!r}) or main({[command, *JSON[command], "--json"]!r})
sys.exit(status)
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    text, brace, rest = done.stdout.partition("\n{")
    assert text.strip()
    json.loads(brace + rest)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes close in another way there")
def test_a_reader_that_closes_the_pipe() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "adaptk", "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) == 1


def test_the_import_of_adaptk_does_not_load_the_command_line() -> None:
    code = "import sys, adaptk; print([m for m in sys.modules if m.startswith(('rich', 'adaptk._cli'))])"
    assert python("-c", code).stdout.strip() == "[]"


def test_output_without_unicode() -> None:
    done = python("-m", "adaptk", "demo", *JSON["demo"], PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "training loss" in done.stdout


# Tables and charts


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_optional_columns_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = [Column("rule", left=True), Column("first to go", drop=2), Column("second one", drop=1), Column("stays")]
    rows = [["adam", "1", "2", "3"], ["lion", "1", "2", "3"]]
    monkeypatch.setenv("NO_COLOR", "1")
    for width, cells in ((40, "1 2 3"), (30, "2 3"), (20, "3")):
        monkeypatch.setenv("COLUMNS", str(width))
        screen = Screen(Terminal())
        screen.table(columns, rows)
        lines = screen.stream.getvalue().splitlines()  # type: ignore[attr-defined]
        assert max(map(len, lines)) <= width
        assert lines[2].split() == ["adam", *cells.split()]
        assert "stays" in lines[0]


def drawn(curves: dict[str, list[float]], **options: Any) -> list[str]:
    stream = io.StringIO()
    chart(Screen(stream), curves, title="loss", below="epoch", **options)
    return stream.getvalue().splitlines()


def test_a_chart_shows_each_curve() -> None:
    lines = drawn({"falls": [10.0 ** -(i / 4) for i in range(21)], "stays": [1.0] * 21}, height=11, max_width=60)
    title, *rows, _, below, legend = lines
    assert title == "loss"
    assert below.split() == ["0", "epoch", "20"]
    assert legend.split() == ["o", "falls", "x", "stays"]
    assert rows[0].split("|")[-1].strip().startswith("x")
    assert rows[-1].rstrip().endswith("o")
    assert [row.split()[0] for row in rows[:11:4]] == ["1", "0.01", "1e-4"]
    places = [row.index("o") for row in rows if "o" in row]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "values",
    [[1.0, float("nan"), float("inf"), 0.0, 0.5], [2.0, 2.0, 2.0], [1e-300, 1e300], [1.0, 1.0 + 1e-12]],
)
def test_charts_of_special_values(values: list[float]) -> None:
    lines = drawn({"odd": values})
    assert len(lines) == 16
    assert any("o" in line for line in lines[1:13])


def test_an_empty_chart() -> None:
    assert drawn({}) == drawn({"a": [float("nan")] * 3}) == drawn({"a": [1.0]}) == []


# info


def test_info_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["isa"] == adaptk.get_isa()
    assert info["rules"] == list(adaptk.rules())
    assert info["include_dir"] == adaptk.get_include()


def test_info_names_versions() -> None:
    from adaptk._cli._info import cuda_text, openmp_version

    assert [openmp_version(date) for date in (201511, 201811, 202203, 199810)] == ["4.5", "5.0", "5.2", "199810"]
    assert cuda_text("13.0", ["80-virtual", "80-real"]) == "13.0, compute capability 8.0 (machine code and PTX)"
    assert cuda_text("13.0", ["80-virtual", "90a-real", "120"]) == (
        "13.0, compute capability 8.0 (PTX), 9.0a (machine code), 12.0 (machine code and PTX)"
    )


def test_info_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["adaptk", adaptk.__version__]
    margin = lines[0].index(adaptk.__version__)
    assert all(line[margin - 1] == " " != line[margin] for line in lines)
    assert adaptk.get_isa() in "\n".join(lines)


@pytest.mark.parametrize(
    ("option", "file"),
    [
        ("--include-dir", "adaptk/adaptk.h"),
        ("--cmake-dir", "adaptk-config.cmake"),
        ("--pkgconfig-dir", "adaptk.pc"),
    ],
)
def test_info_prints_one_folder(option: str, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", option]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert (Path(line) / file).exists()


def test_info_prints_one_thing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["info", "--json", "--cmake-dir"])
    assert "not allowed with" in capsys.readouterr().err
