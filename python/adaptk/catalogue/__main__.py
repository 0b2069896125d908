"""Rewrites the files made from the catalogue: ``python -m adaptk.catalogue``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

from adaptk._rule import _Parts, _Texts, build
from adaptk.catalogue import adam_like, by_row, by_tensor, momentum, per_coordinate, schedule_free, signs, step_sizes
from adaptk.catalogue._entry import ENTRIES

HERE = Path(__file__).parent
MODULES = (schedule_free, adam_like, signs, momentum, per_coordinate, by_tensor, by_row, step_sizes)


def files() -> Iterator[tuple[Path, bytes]]:
    """The files with their contents."""
    for e in ENTRIES.values():
        summary = (inspect.getdoc(e.function) or "").splitlines()[0]
        texts = _Texts(e.name, e.class_name or None, summary, e.formula, e.source, e.evaluation)
        parts = _Parts(e.states, e.hyperparameters, e.carried, e.nonnegative, e.ranges, e.meanings, e.per)
        yield HERE / "programs" / f"{e.name}.rule", build(texts, parts, e.function)
    lines = [
        '"""Names of the catalogue\'s rules: made by ``python -m adaptk.catalogue``."""',
        "",
        "# The class of each rule.",
        "CLASSES: dict[str, str] = {",
    ]
    lines += [f'    "{e.name}": "{e.class_name}",' for e in ENTRIES.values() if e.class_name]
    helpers = "".join(f'    "{e.name}",\n' for e in ENTRIES.values() if not e.class_name)
    lines += ["}", "", "# Auxiliary rules, which other rules use.", f"HELPERS: tuple[str, ...] = (\n{helpers})", ""]
    yield HERE / "_index.py", "\n".join(lines).encode()


def main() -> None:
    """Write the files, and delete those of rules that no longer exist."""
    made = dict(files())
    for path in (HERE / "programs").glob("*.rule"):
        if path not in made:
            path.unlink()
    for path, data in made.items():
        path.write_bytes(data)


if __name__ == "__main__":
    main()
