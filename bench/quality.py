"""The effect of storage formats on training: the loss of two models after the same steps, for several seeds.

``python bench/quality.py [--models digits,characters] [--variants NAMES] [--seeds N] [--steps N] [--json FILE]
[--plot FILE] [--from FILES]``

The models are a network on the handwritten digits and a small transformer on the characters of the language reference
that comes with Python, both trained by AdamW. Each seed fixes the initial weights and the order of the batches, so that
variants differ only in what is stored. The difference of a variant is that between its loss and float32's with the same
seed: mean and standard deviation. ``--from`` trains nothing and uses the rows of earlier runs.
"""

from __future__ import annotations

import argparse
import json
import math
import pydoc_data.topics
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import adaptk.torch
import numpy as np
import torch
from adaptk._bench import machine
from adaptk._cli._parser import whole
from adaptk._demo import load_digits
from torch import Tensor, nn
from torch.nn import functional

CONTEXT = 64


@dataclass(frozen=True)
class Variant:
    """A way to store training state: the dtype of the params and the options of AdamW."""

    name: str
    params: torch.dtype = torch.float32
    options: dict[str, Any] = field(default_factory=dict)


def _variants() -> list[Variant]:
    states = ["bfloat16", "bfloat16_sr", "8bit", "8bit_nearest", "8bit_dynamic", "fp8_e4m3", "4bit"]
    found = [Variant("float32")]
    found += [Variant(f"states: {s}", options={"state_dtype": s, "min_8bit_size": 0}) for s in states]
    found.append(Variant("params: bfloat16", torch.bfloat16, {"state_dtype": "float32"}))
    found += [
        Variant(f"params: {p}", torch.bfloat16, {"state_dtype": "float32", "param_format": p})
        for p in ("sr", "kahan", "remainder8", "remainder16")
    ]
    return found


VARIANTS = {v.name: v for v in _variants()}


class Characters(nn.Module):
    """A transformer decoder with two layers."""

    def __init__(self, symbols: int, width: int = 64) -> None:
        super().__init__()
        self.symbol = nn.Embedding(symbols, width)
        self.place = nn.Embedding(CONTEXT, width)
        layer = nn.TransformerEncoderLayer(
            width, nhead=4, dim_feedforward=4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, symbols)
        self.register_buffer("later", torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of the next character at each position."""
        h = self.symbol(x) + self.place(torch.arange(x.shape[1]))
        return self.head(self.norm(self.layers(h, mask=self.later)))


@dataclass(frozen=True)
class Task:
    """A model, batches to train on, and the test loss."""

    steps: int
    lr: float
    model: Callable[[], nn.Module]
    batches: Callable[[int], Iterator[tuple[Tensor, Tensor]]]
    test: Sequence[tuple[Tensor, Tensor]]


def characters() -> Task:
    """The language reference as pydoc prints it: 0.7 MB, its last twentieth for the test."""
    text = "\n".join(pydoc_data.topics.topics.values())
    symbols = sorted(set(text))
    number = {c: i for i, c in enumerate(symbols)}
    codes = torch.tensor([number[c] for c in text])
    cut = len(codes) * 19 // 20

    def batch(part: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.stack([part[i : i + CONTEXT + 1] for i in starts.tolist()])
        return rows[:, :-1], rows[:, 1:]

    def batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        draws = torch.Generator().manual_seed(seed)
        while True:
            yield batch(codes[:cut], torch.randint(cut - CONTEXT - 1, (16,), generator=draws))

    rest = codes[cut:]
    starts = torch.arange(0, len(rest) - CONTEXT - 1, CONTEXT)
    test = [batch(rest, part) for part in starts.split(64)][:8]
    return Task(500, 3e-3, lambda: Characters(len(symbols)), batches, test)


def digits() -> Task:
    """A network with one hidden layer."""
    data = load_digits(0)
    x, y, test_x, test_y = (torch.tensor(np.asarray(a)) for a in (data.train_x, data.train_y, data.test_x, data.test_y))

    def batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        draws = torch.Generator().manual_seed(seed)
        while True:
            rows = torch.randint(len(x), (64,), generator=draws)
            yield x[rows].float(), y[rows].long()

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(x.shape[1], 64), nn.ReLU(), nn.Linear(64, 10))

    return Task(2000, 2e-3, model, batches, [(test_x.float(), test_y.long())])


TASKS = {"digits": digits, "characters": characters}


def loss_of(model: nn.Module, x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """The mean cross-entropy, computed in float32 from the logits."""
    scores = model(x.to(dtype) if x.is_floating_point() else x)
    return functional.cross_entropy(scores.float().flatten(0, -2), y.flatten())


def train(task: Task, variant: Variant, seed: int, steps: int) -> float:
    """The test loss after training with a cosine schedule."""
    torch.manual_seed(seed)
    model = task.model().to(variant.params)
    optimizer = adaptk.torch.AdamW(model.parameters(), lr=task.lr, weight_decay=0.01, **variant.options)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    batches = task.batches(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, *next(batches), variant.params).backward()
        optimizer.step()
        rate.step()
    with torch.no_grad():
        return statistics.fmean(float(loss_of(model, x, y, variant.params)) for x, y in task.test)


@dataclass
class Row:
    """A variant's losses by seed, and their differences from float32's."""

    model: str
    variant: str
    losses: list[float]
    mean: float
    difference: float
    deviation: float


def run(model: str, names: Sequence[str], seeds: int, steps: int | None) -> Iterator[Row]:
    """Train all variants: float32 first, because the others are compared with it."""
    task = TASKS[model]()
    reference: list[float] = []
    for name in names:
        losses = [train(task, VARIANTS[name], seed, steps or task.steps) for seed in range(seeds)]
        reference = reference or losses
        differences = [a - b for a, b in zip(losses, reference, strict=True)]
        deviation = statistics.stdev(differences) if seeds > 1 else math.nan
        yield Row(model, name, losses, statistics.fmean(losses), statistics.fmean(differences), deviation)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Plot the losses of each variant relative to float32, with the spread over seeds."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    # A fixed salt, so that the same rows give the same file.
    mpl.rcParams.update({"svg.hashsalt": "adaptk", "svg.fonttype": "none"})
    models = list(dict.fromkeys(row.model for row in rows))
    figure, axes = plt.subplots(1, len(models), figsize=(5.5 * len(models), 4.2), layout="constrained", squeeze=False)
    for ax, model in zip(axes[0], models, strict=True):
        shown = [row for row in rows if row.model == model]
        # Runs that (nearly) diverge are drawn as arrows at the edge, because a scale that shows them would hide the
        # others.
        most = 2 * shown[0].mean
        spread = statistics.stdev(shown[0].losses) if len(shown[0].losses) > 1 else 0.0
        ax.axvspan(shown[0].mean - spread, shown[0].mean + spread, color="0.9", label="float32: spread over seeds")
        for y, row in enumerate(shown):
            within = [x for x in row.losses if x < most]
            ax.plot(within, [y] * len(within), "o", color="tab:blue", alpha=0.5)
            if beyond := len(row.losses) - len(within):
                ax.plot(most, y, ">", color="tab:red")
                ax.annotate(f"{beyond} of {len(row.losses)} ", (most, y), ha="right", va="center", color="tab:red")
            else:
                ax.plot(row.mean, y, "|", color="black", markersize=14, markeredgewidth=2)
        ax.set_yticks(range(len(shown)), [row.variant for row in shown])
        ax.invert_yaxis()
        ax.set_xlabel("loss on the test")
        ax.set_title(model)
        ax.legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _names(text: str, known: Sequence[str]) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print a table, and write the requested files."""
    parser = argparse.ArgumentParser(prog="bench/quality.py", description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=lambda t: _names(t, list(TASKS)), default=list(TASKS))
    parser.add_argument("--variants", type=lambda t: _names(t, list(VARIANTS)), default=list(VARIANTS))
    parser.add_argument("--seeds", type=whole(1), default=3)
    parser.add_argument("--steps", type=whole(1), default=None, help="default: 2000 for digits, 500 for characters")
    parser.add_argument("--from", dest="earlier", type=lambda t: [Path(name) for name in t.split(",")], default=[])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    a = parser.parse_args(arguments)
    names = ["float32", *(name for name in a.variants if name != "float32")]
    rows = [Row(**row) for path in a.earlier for row in json.loads(path.read_text())["rows"]]
    for model in a.models if not a.earlier else ():
        print(
            f"{model}: median loss, largest, and mean difference to float32 with the same seed (standard deviation), "
            f"{a.seeds} seeds"
        )
        for row in run(model, names, a.seeds, a.steps):
            rows.append(row)
            # Also the median, because one run that diverges dominates a mean.
            print(
                f"  {row.variant:24}{statistics.median(row.losses):8.4f}{max(row.losses):10.4g}"
                f"{row.difference:+10.4g} ({row.deviation:.4g})",
                flush=True,
            )
    if a.json:
        a.json.write_text(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    if a.plot:
        plot(rows, a.plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
