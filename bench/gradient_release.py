"""Peak memory of training steps that release each gradient when it arrives, compared with steps that keep all of them.

``python bench/gradient_release.py [--layers 16] [--width 1024] [--steps 3] [--json FILE]``

Each way runs in its own process, from the same model. The peak is the one reported by the operating system, minus the
memory before the first backward pass, when params and states existed. Linux and macOS.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaptk._cli._parser import whole

WAYS = {
    "torch.optim.AdamW": "gradients kept",
    "adaptk.torch.AdamW": "gradients kept",
    "release_gradients": "each step in the backward pass",
    "Offload, grads='step'": "each step in the backward pass",
}


def run(way: str, layers: int, width: int, steps: int) -> dict[str, float]:
    """Run one way in this process. Returns the peak in bytes above the start, and the bytes of all gradients."""
    import resource

    import adaptk.torch
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.Sequential(*(torch.nn.Linear(width, width, bias=False) for _ in range(layers)))
    data = torch.randn(4, width)
    released: Any = None
    if way == "torch.optim.AdamW":
        opt: Any = torch.optim.AdamW(model.parameters(), fused=True)
    elif way == "Offload, grads='step'":
        opt = adaptk.torch.Offload(model.parameters(), adaptk.torch.AdamW, grads="step", threads=1)
    else:
        opt = adaptk.torch.AdamW(model.parameters())
    if way == "release_gradients":
        released = adaptk.torch.release_gradients(model, opt)
    # Make the states first, one param after the other, so that they are not counted.
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
        if released is None:
            opt.step()
        else:
            opt.step_param(p)
        p.grad = None
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    for _ in range(steps):
        model(data).square().mean().backward()
        if released is None:
            opt.step()
            opt.zero_grad()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"bytes": after - before, "gradients": layers * width * width * 4}


def measured(layers: int, width: int, steps: int) -> list[dict[str, Any]]:
    rows = []
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way]
        command += ["--layers", str(layers), "--width", str(width), "--steps", str(steps)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append({"way": way, **json.loads(done.stdout)})
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python bench/gradient_release.py", description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=whole(1), default=16, metavar="N", help="layers of the model; default: 16")
    parser.add_argument("--width", type=whole(1), default=1024, metavar="N", help="width of each layer; default: 1024")
    parser.add_argument("--steps", type=whole(1), default=3, metavar="N", help="training steps; default: 3")
    parser.add_argument("--way", choices=list(WAYS), help="run one way only, in this process, and print JSON")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows of the table")
    options = parser.parse_args(arguments)
    size = (options.layers, options.width, options.steps)
    if options.way:
        print(json.dumps(run(options.way, *size)))
        return 0
    rows = measured(*size)
    whole_model = rows[0]["gradients"]
    print(f"{options.layers} layers of {options.width} x {options.width}, {whole_model / 2**20:.0f} MiB of gradients")
    print(f"{'':<26}{'':<32}{'MiB':>8}{'of gradients':>14}")
    for row in rows:
        share = row["bytes"] / whole_model
        print(f"{row['way']:<26}{WAYS[row['way']]:<32}{row['bytes'] / 2**20:>8.1f}{share:>14.2f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"layers": options.layers, "width": options.width, "rows": rows}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
