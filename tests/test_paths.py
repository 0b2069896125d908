"""The pages of optimizer paths in the documentation: formulas and runs against the library, pages in a browser."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import adaptk
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SCRIPT = DOCS / "_static" / "paths" / "rules.js"
STEPS = 60

# Each path as text with 17 digits, for all rules on all surfaces, at two rates each; and each surface's gradient with
# its finite difference.
PROGRAM = """
const { surfaces, path } = require(process.argv[2]);
require(process.argv[3]);
const out = { paths: [], gradients: [] };
for (const [name, s] of Object.entries(surfaces)) {
  for (const rule of Object.keys(adaptkRegistry)) {
    for (const lr of [1e-3, 3e-2]) {
      out.paths.push({ surface: name, rule, lr, points: path(rule, adaptkRegistry[rule], s, s.start, STEPS, lr) });
    }
  }
  for (const x of s.x) for (const y of s.y) {
    const h = 1e-5;
    const quotient = [[h, 0], [0, h]].map(([a, b]) => (s.f([x + a, y + b]) - s.f([x - a, y - b])) / (2 * h));
    out.gradients.push({ surface: name, gradient: s.gradient([x, y]), quotient });
  }
  out.gradients.push(...s.minima.map((p) => ({ surface: name, gradient: s.gradient(p), quotient: [0, 0] })));
}
console.log(JSON.stringify(out));
""".replace("STEPS", str(STEPS))


def paths_module() -> Any:
    sys.path.insert(0, str(DOCS))
    try:
        import paths
    finally:
        sys.path.pop(0)
    return paths


def registry_script() -> str:
    return paths_module().registry_script()


def runs_of(rules: list[str], surfaces: list[str]) -> dict[str, Any]:
    script = paths_module().runs_script(rules, surfaces)
    return json.loads(script[script.index("{") : script.rindex("}") + 1])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js")
    folder = tmp_path_factory.mktemp("paths")
    (folder / "registry.js").write_text(registry_script())
    (folder / "program.js").write_text(PROGRAM)
    command = [node, str(folder / "program.js"), str(SCRIPT), str(folder / "registry.js")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def gradient(surface: str, p: np.ndarray) -> np.ndarray:
    x, y = p
    if surface == "ravine":
        return np.array([x, 50 * y])
    if surface == "rosenbrock":
        return np.array([-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)])
    if surface == "saddle":
        return np.array([x, y**3 - y])
    if surface == "himmelblau":
        a, b = x * x + y - 11, x + y * y - 7
        return np.array([4 * x * a + 2 * b, 2 * a + 4 * y * b])
    if surface == "beale":
        powers = np.array([y, y**2, y**3])
        r = np.array([1.5, 2.25, 2.625]) - x + x * powers
        return np.array([2 * r @ (powers - 1), 2 * x * (r @ np.array([1, 2 * y, 3 * y * y]))])
    raise KeyError(surface)


def library_path(rule: str, surface: str, start: list[float], lr: float) -> np.ndarray:
    p = np.array(start)
    opt = adaptk.optimizer_for(rule, [p], lr=lr)
    points = [p.copy()]
    for _ in range(STEPS):
        if rule == "rmsprop_nesterov":
            with opt.lookahead():
                g = gradient(surface, p)
        else:
            g = gradient(surface, p)
        opt.step([g])
        if not np.all(np.abs(p) < 1e6):
            break
        points.append(p.copy())
    return np.array(points)


@pytest.mark.parametrize("rule", adaptk.rules())
def test_the_page_matches_the_library(results: dict[str, Any], rule: str) -> None:
    mine = [entry for entry in results["paths"] if entry["rule"] == rule]
    assert {entry["surface"] for entry in mine} == {"ravine", "rosenbrock", "beale", "saddle", "himmelblau"}
    for entry in mine:
        with np.errstate(over="ignore", invalid="ignore"):
            expected = library_path(rule, entry["surface"], entry["points"][0], entry["lr"])
        points = np.array(entry["points"])
        # If a path diverges, rounding errors grow with it: only the points before count.
        n = min(len(points), len(expected))
        tame = np.all(np.abs(expected[:n]) < 100, axis=1)
        n = n if tame.all() else int(np.argmin(tame))
        assert n >= 2
        if n == len(expected):
            assert len(points) == n
        # Signs of gradients near zero are the only discontinuity: none is met at these rates.
        np.testing.assert_allclose(points[:n], expected[:n], rtol=1e-7, atol=1e-9, err_msg=str(entry["surface"]))


def test_gradients(results: dict[str, Any]) -> None:
    for entry in results["gradients"]:
        scale = max(1.0, np.abs(entry["gradient"]).max())
        np.testing.assert_allclose(entry["gradient"], entry["quotient"], rtol=0, atol=1e-6 * scale)


def test_the_surfaces_match(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js")
    rng = np.random.default_rng(0)
    points = rng.uniform(-2, 2, (20, 2)).tolist()
    program = (
        "const { surfaces } = require(process.argv[2]); const points = JSON.parse(process.argv[3]);"
        "const of = ([name, s]) => [name, { start: s.start, f: points.map(s.f), g: points.map(s.gradient) }];"
        "console.log(JSON.stringify(Object.fromEntries(Object.entries(surfaces).map(of))));"
    )
    (tmp_path / "program.js").write_text(program)
    command = [node, str(tmp_path / "program.js"), str(SCRIPT), json.dumps(points)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
    mine = paths_module().SURFACES
    assert list(found) == list(mine)
    for name, (start, both) in mine.items():
        assert found[name]["start"] == list(start)
        np.testing.assert_allclose(found[name]["f"], [both(*p)[0] for p in points], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found[name]["g"], [both(*p)[1] for p in points], rtol=1e-12, atol=1e-12)


def test_the_runs_match_the_library() -> None:
    module = paths_module()
    data = runs_of(["adam", "schedule_free_sgd", "sgd"], ["rosenbrock"])
    assert list(data["runs"]) == ["rosenbrock"]
    assert data["frames"] == module.STEPS // module.EVERY + 1
    start, both = module.SURFACES["rosenbrock"]
    for rule, run in data["runs"]["rosenbrock"].items():
        rate = min(module.RATES, key=lambda r: abs(r - run["lr"]))
        p = np.array(start)
        opt = adaptk.optimizer_for(rule, [p], lr=rate)
        wanted = [p.tolist()]
        for t in range(module.STEPS):
            opt.step([np.array(both(*p.tolist())[1])])
            if (t + 1) % module.EVERY == 0:
                at = opt.evaluation_params()[0] if rule == "schedule_free_sgd" else p
                wanted.append(at.tolist())
        np.testing.assert_allclose(run["points"], wanted, atol=1e-4)
        # Its rate is the best.
        assert both(*run["points"][-1])[0] < both(*start)[0]


@pytest.mark.full
def test_animation_of_all_rules(tmp_path: Path) -> None:
    rules = ["sgd", "momentum", "adagrad", "adam", "lion", "qhm"]
    script = paths_module().runs_script(rules)
    with opened(tmp_path, "all_paths.md", {"runs.js": script}) as page:
        buttons = page.query_selector_all("#all-rules button")
        assert {b.get_attribute("data-rule") for b in buttons} == set(rules)
        values = [float(b.get_attribute("data-value")) for b in buttons]
        assert values == sorted(values)
        before = page.locator("#paths-surface").screenshot()
        page.click("#all-rules button[data-rule=lion]")
        assert page.get_attribute("#all-rules button[data-rule=lion]", "aria-pressed") == "true"
        assert page.locator("#paths-surface").screenshot() != before
        page.click("#all-rules button[data-rule=lion]")
        assert page.locator("#paths-surface").screenshot() == before
        page.locator("#all-step").evaluate("(e) => { e.value = 3; e.dispatchEvent(new Event('input')); }")
        assert page.inner_text("#all-shown") == "step 6"
        # All rules begin at the same point.
        page.locator("#all-step").evaluate("(e) => { e.value = 0; e.dispatchEvent(new Event('input')); }")
        assert len({b.get_attribute("data-value") for b in page.query_selector_all("#all-rules button")}) == 1
        page.click("#all-play")
        page.wait_for_function("Number(document.getElementById('paths-app').dataset.shown) > 2")
        page.click("#all-play")
        assert page.inner_text("#all-play") == "Play"
        page.select_option("#all-kind", "beale")
        assert page.locator("#paths-surface").screenshot() != before


@contextmanager
def opened(folder: Path, name: str, scripts: dict[str, str]) -> Iterator[Any]:
    """A page in a browser, without its theme, opened as a file."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    browser_path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser_path is None:
        pytest.skip("needs Chromium")
    shutil.copytree(DOCS / "_static", folder / "_static")
    for script, text in scripts.items():
        (folder / "_static" / "paths" / script).write_text(text)
    html = (DOCS / name).read_text(encoding="utf-8").split("```{raw} html\n")[1].split("```")[0]
    (folder / "page.html").write_text(f"<!doctype html><meta charset=utf-8><body>{html}</body>", encoding="utf-8")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto((folder / "page.html").as_uri())
        yield page
        assert not errors
        browser.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with opened(tmp_path_factory.mktemp("page"), "interactive.md", {"registry.js": registry_script()}) as page:
        yield page


@pytest.mark.full
def test_controls(page: Any) -> None:
    def table() -> dict[str, list[str]]:
        rows = page.query_selector_all("#paths-table tbody tr")
        return {
            row.get_attribute("data-rule"): [cell.inner_text() for cell in row.query_selector_all("td")] for row in rows
        }

    assert set(table()) == {"sgd", "momentum", "rmsprop", "adam"}
    before = page.locator("#paths-surface").screenshot()
    page.check("input[name=adan]")
    assert "adan" in table()
    assert "adan:" in page.evaluate("decodeURIComponent(location.hash)")
    page.uncheck("input[name=sgd]")
    assert "sgd" not in table()
    assert page.locator("#paths-surface").screenshot() != before

    page.select_option("#paths-kind", "rosenbrock")
    assert "100" in page.inner_text("#paths-formula")
    best = float(table()["adam"][2])
    slider = page.locator("input[name=adam-lr]")
    slider.evaluate(
        "(e) => { e.value = -5; e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change')); }"
    )
    assert table()["adam"][1] == "0.000010"
    assert float(table()["adam"][2]) > best
    page.click("#paths-best")
    assert float(table()["adam"][2]) == best

    page.fill("#paths-steps", "40")
    page.press("#paths-steps", "Enter")
    assert page.inner_text("#paths-step") == "step 40 of 40"
    page.click("#paths-play")
    page.wait_for_function("document.getElementById('paths-step').textContent !== 'step 40 of 40'")
    page.wait_for_function("document.getElementById('paths-app').dataset.shown === '40'")
    page.click("#paths-surface", position={"x": 100, "y": 100})
    assert "start=" in page.url

    # The address restores the view.
    here = table()
    page.reload()
    assert {rule: row[2] for rule, row in table().items()}.keys() == {rule: row[2] for rule, row in here.items()}.keys()
    assert page.input_value("#paths-kind") == "rosenbrock"
