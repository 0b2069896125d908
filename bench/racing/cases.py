"""The tensors to step: of one size, the params of models, and networks that are trained."""

from __future__ import annotations

import gzip
import importlib
import importlib.resources
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from adaptk._bench import _size, size_text

Shape: TypeAlias = tuple[int, ...]
Record: TypeAlias = dict[str, Any]

# ---------------------------------------------------------------------------------------------------------------------
# Models whose params are stepped
# ---------------------------------------------------------------------------------------------------------------------


def resnet50() -> list[Shape]:
    """The params of ResNet-50 (He et al. 2015, table 1), stride in the 3x3 convolutions, 1000 classes."""
    shapes: list[Shape] = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            for out, into, kernel in ((width, channels, 1), (width, width, 3), (4 * width, width, 1)):
                shapes += [(out, into, kernel, kernel), (out,), (out,)]
            if block == 0:
                shapes += [(4 * width, channels, 1, 1), (4 * width,), (4 * width,)]
            channels = 4 * width
    return [*shapes, (1000, channels), (1000,)]


def gpt2() -> list[Shape]:
    """The params of GPT-2 with 12 layers (Radford et al. 2019); the output shares the embedding's weights."""
    vocabulary, positions, width = 50257, 1024, 768
    shapes: list[Shape] = [(vocabulary, width), (positions, width)]
    for _ in range(12):
        shapes += [(width,), (width,)]
        shapes += [(width, 3 * width), (3 * width,), (width, width), (width,)]
        shapes += [(width,), (width,)]
        shapes += [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [*shapes, (width,), (width,)]


def bert_base() -> list[Shape]:
    """The params of BERT-base, uncased (Devlin et al. 2018): embeddings, 12 layers and the pooler."""
    vocabulary, positions, segments, width = 30522, 512, 2, 768
    shapes: list[Shape] = [(vocabulary, width), (positions, width), (segments, width), (width,), (width,)]
    for _ in range(12):
        shapes += [(width, width), (width,)] * 4
        shapes += [(width,), (width,)]
        shapes += [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
        shapes += [(width,), (width,)]
    return [*shapes, (width, width), (width,)]


@dataclass(frozen=True)
class Model:
    """Params of a published model."""

    title: str
    shapes: Callable[[], list[Shape]]
    usual: bool  # whether only a few rules are measured


MODELS: dict[str, Model] = {
    "resnet50": Model("ResNet-50", resnet50, usual=False),
    "gpt2": Model("GPT-2 (124M)", gpt2, usual=True),
    "bert": Model("BERT-base", bert_base, usual=True),
}


# ---------------------------------------------------------------------------------------------------------------------
# Networks that are trained
# ---------------------------------------------------------------------------------------------------------------------


def digits() -> tuple[Any, Any]:
    """The digits that come with the package: pixels in [0, 1], and labels."""
    import torch

    packed = importlib.resources.files("adaptk") / "data" / "digits.csv.gz"
    with packed.open("rb") as file, gzip.open(file, "rt") as text:
        table = np.loadtxt(text, delimiter=",", dtype=np.int64)
    table = np.random.default_rng(0).permutation(table)
    return torch.from_numpy((table[:, :-1] / 16).astype(np.float32)), torch.from_numpy(table[:, -1].copy())


def digits_network() -> tuple[list[Any], Callable[[int], Any]]:
    """The demo's network and batches; returns the loss as a function of the step number."""
    import torch

    x, y = digits()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Tanh(), torch.nn.Linear(128, 10))
    batches = list(zip(x.split(32), y.split(32), strict=True))

    def loss(step: int) -> Any:
        inputs, labels = batches[step % len(batches)]
        return torch.nn.functional.cross_entropy(model(inputs), labels)

    return list(model.parameters()), loss


def source_text() -> str:
    """Text that every Python installation has: the source of some modules."""
    names = ("argparse", "ast", "difflib", "inspect", "textwrap", "typing")
    text = "".join(inspect.getsource(importlib.import_module(name)) for name in names)
    return "".join(c for c in text if c in "\n" or " " <= c <= "~")


def transformer() -> tuple[list[Any], Callable[[int], Any]]:
    """A small transformer that predicts the next character of the source text."""
    import torch
    from torch import nn

    width, heads, layers, context, batch = 64, 4, 2, 64, 8
    letters = {c: i for i, c in enumerate(["\n", *map(chr, range(32, 127))])}
    text = torch.tensor([letters[c] for c in source_text()])

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:
            b, t, _ = x.shape
            q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(b, t, width))
            return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))

    torch.manual_seed(0)
    token, place = nn.Embedding(len(letters), width), nn.Embedding(context, width)
    blocks = nn.Sequential(*(Block() for _ in range(layers)), nn.LayerNorm(width), nn.Linear(width, len(letters)))
    positions = torch.arange(context)
    starts = np.random.default_rng(0).integers(0, len(text) - context - 1, size=(256, batch))

    def loss(step: int) -> Any:
        rows = torch.stack([text[s : s + context + 1] for s in starts[step % len(starts)]])
        logits = blocks(token(rows[:, :-1]) + place(positions))
        return nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    return [*token.parameters(), *place.parameters(), *blocks.parameters()], loss


@dataclass(frozen=True)
class Loop:
    """A network trained by Adam: its params, and the loss as a function of the step number."""

    title: str
    network: Callable[[], tuple[list[Any], Callable[[int], Any]]]
    steps: int  # per round


LOOPS: dict[str, Loop] = {
    "digits": Loop("digits network", digits_network, 100),
    "transformer": Loop("character transformer", transformer, 12),
}
# The parts of a training step that are timed.
PARTS = ("total", "optimizer", "forward_backward")


# ---------------------------------------------------------------------------------------------------------------------
# Cases
# ---------------------------------------------------------------------------------------------------------------------

SIZES = ("64", "4K", "64K", "1M", "16M", "64M")
CASES = ("1000x64", "200x4096", *MODELS, *LOOPS)


def case_shapes(case: str, shrink: bool = False) -> list[Shape]:
    """The shapes of the params of a case: a size, a count of tensors times a size, or a model."""
    if case in MODELS:
        shapes = MODELS[case].shapes()
        return [tuple(max(1, n // 16) for n in s) for s in shapes] if shrink else shapes
    count, _, size = case.rpartition("x")
    return [(_size(size),)] * (int(count) if count else 1)


def case_title(case: str, shapes: Sequence[Shape]) -> str:
    """The title of a case."""
    total = sum(math.prod(s) for s in shapes)
    if case in MODELS:
        return f"{MODELS[case].title}: {len(shapes)} tensors, {total:,} elements"
    if len(shapes) == 1:
        return f"one tensor of {size_text(total)} elements"
    return f"{len(shapes)} tensors of {size_text(math.prod(shapes[0]))} elements"
