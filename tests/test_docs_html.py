"""The documentation as HTML: it builds, and has every public name, every link, every formula and every picture."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import adaptk
import numpy as np
import pytest
from adaptk._bench import Streams

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
GALLERY = ROOT / "examples" / "gallery"

# Building them runs the gallery.
pytestmark = [pytest.mark.full, pytest.mark.skipif(not DOCS.is_dir(), reason="only in a checkout")]


def needs(*modules: str) -> None:
    for name in modules:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, built without a single warning: an example that fails is one, and its own warnings make it
    fail. Examples run in the folder in which they lie, and leave nothing there."""
    needs("sphinx", "myst_parser", "furo", "sphinx_design", "sphinx_gallery", "matplotlib", "math_core", "ziamath")
    folder = tmp_path_factory.mktemp("html")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html"]
    command += ["-d", str(folder / "trees"), str(DOCS), str(folder / "pages")]
    before = set(GALLERY.rglob("*"))
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path for path in GALLERY.rglob("*") if "__pycache__" not in path.parts} <= before
    return folder / "pages"


@pytest.fixture(scope="module")
def names(html: Path) -> set[str]:
    """Everything that the pages document, from Sphinx's inventory."""
    packed = (html / "objects.inv").read_bytes().split(b"\n", 4)[4]
    return {line.split(" ")[0] for line in zlib.decompress(packed).decode().splitlines()}


class Page(HTMLParser):
    """What a page refers to, what can be referred to in it, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {value for value in (values.get("id"), values.get("name")) if value}
        if tag == "a" and (link := values.get("href")):
            self.links.append(link)
        if link := values.get("src") or (values.get("href") if tag == "link" else None):
            self.loaded.append(link)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style", "pre", "code"} & set(self.open):
            self.words.append(data)


@pytest.fixture(scope="module")
def pages(html: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in sorted(html.rglob("*.html"))}


def test_html_links_lead_somewhere(html: Path, pages: dict[Path, Page]) -> None:
    """To a file of these pages, and to an anchor that it has."""
    checked = 0
    for path, page in pages.items():
        for link in (*page.links, *page.loaded):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_relative_to(html), (path, link)
            assert target.exists(), (path, link)
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, (path, link)
            checked += 1
    assert checked > 1000


def test_html_needs_no_network(html: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        assert not [link for link in page.loaded if urlsplit(link).netloc], path
    assert not re.findall(r"url\([\"']?(?:https?:)?//", (html / "_static" / "style.css").read_text(encoding="utf-8"))
    assert (html / "_static" / "STIXTwoMath-Regular.ttf").stat().st_size > 100_000


def test_html_formulas(html: Path, pages: dict[Path, Page]) -> None:
    """Each is drawn by the browser: no TeX is left in the text."""
    assert (html / "rules.html").read_text(encoding="utf-8").count("<math") > 100
    for path, page in pages.items():
        # Without what reference pages cite of docstrings.
        text = " ".join(page.words)
        assert not re.search(r"\\\(|\\\[|\$\$|\\(?:frac|theta|begin|mathsf)\b", text), path
        assert "merror" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize("word", ["checkpoint", "migrat", "gil", "rosenbrock"])
def test_html_search(word: str, html: Path) -> None:
    """The index has the stems of words that users search for."""
    index = (html / "searchindex.js").read_text(encoding="utf-8")
    assert re.search(rf'[{{,]"?{word}"?:', index)


def test_html_has_sources(html: Path) -> None:
    text = (html / "reference" / "schedules.html").read_text(encoding="utf-8")
    assert 'href="../_modules/adaptk/schedules.html#cosine"' in text


def test_html_has_pictures(html: Path) -> None:
    """Of each example of the gallery."""
    examples = [path.stem for path in GALLERY.rglob("*.py")]
    assert examples
    for name in examples:
        assert list((html / "_images").glob(f"sphx_glr_{name}_001*.png")), name


@pytest.mark.parametrize("name", adaptk.rules())
def test_html_has_the_costs_of_a_rule(name: str, html: Path) -> None:
    rule = adaptk.rules()[name]
    text = (html / "guide" / "costs.html").read_text(encoding="utf-8")
    (row,) = [row for row in text.split("<tr")[1:] if f'#{name.replace("_", "-")}"' in row]
    cells = [" ".join(re.sub(r"<[^>]+>", "", cell).split()) for cell in re.findall(r"<td>(.*?)</td>", row, re.DOTALL)]
    states = [np.zeros(1, np.float32) for _ in rule.states]
    moved = Streams(rule, "float32", 1).bytes
    names = ", ".join(s.name for s in rule.states) or "none"
    assert cells == [name, names, str(sum(s.nbytes for s in states)), str(moved), rule.source]


def test_html_has_every_page(html: Path) -> None:
    for source in (*DOCS.rglob("*.md"), *DOCS.rglob("*.rst")):
        assert (html / source.relative_to(DOCS)).with_suffix(".html").is_file()


@pytest.mark.parametrize(
    "module",
    [
        *("", ".ops", ".optim", ".schedules", ".formats", ".init", ".curriculum", ".curriculum.pacing", ".solve"),
        *(".torch", ".jax", ".cuda"),
    ],
)
def test_html_has_every_public_name(module: str, names: set[str]) -> None:
    if module == ".torch":
        needs("torch")
    if module == ".jax":
        needs("jax", "adaptk._jax")
    public = importlib.import_module(f"adaptk{module}").__all__
    assert public
    assert {f"adaptk{module}"} <= names
    # Optimizers are documented by the names that programs use.
    place = "adaptk" if module == ".optim" else f"adaptk{module}"
    assert {f"{place}.{name}" for name in public} - names == set()


def test_html_has_everything_in_the_c_header(names: set[str]) -> None:
    header = (ROOT / "cpp" / "include" / "adaptk" / "adaptk.h").read_text(encoding="utf-8")
    functions = re.findall(r"(adaptk_\w+)\(", re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL))
    types = re.findall(r"^typedef .*?(\w+)(?: \{|;)$", header, re.MULTILINE)
    constants = re.findall(r"^ +(ADAPTK_\w+) = ", header, re.MULTILINE)
    macros = re.findall(r"^#define (ADAPTK_(?!API)\w+) \S", header, re.MULTILINE)
    for found in (functions, types, constants, macros):
        assert len(found) > 4
        assert set(found) - names == set()


@pytest.mark.parametrize("name", adaptk.rules())
def test_html_has_the_facts_of_a_rule(name: str, html: Path) -> None:
    """The hyperparameters and states of the registry, with defaults, stand below the formula."""
    rule = adaptk.rules()[name]
    text = (html / "rules.html").read_text(encoding="utf-8")
    heading = f'id="{name.replace("_", "-")}"'
    section = re.sub(r"<[^>]+>", " ", text.split(heading)[1].split("<section")[0])
    cells = " ".join(section.split())
    for h in rule.hyperparameters:
        if not h.common:
            value = str(h.default) if isinstance(h.default, bool) else f"{h.default:g}"
            assert f"{h.name} {value} {h.range} " in cells, h.name
    for s in rule.states:
        assert f"{s.name} {s.initial_from or format(s.initial, 'g')}" in cells
    assert rule.formula.splitlines()[0].split(";")[0] in section.replace("&lt;", "<").replace("&gt;", ">")
