"""The program for ncu: steps of one large tensor, with the gradient's norm. ``--cpu``: a trial run, without ncu."""

from __future__ import annotations

import sys
from collections.abc import Sequence

# The kernels of a step that clips: the leaves of the norm, the rest of its tree, and the update. Without clipping there
# is only the last.
RUNS = (("Adam", "float32", 1.0), ("Adam", "bfloat16", 1.0), ("SGD", "float32", None), ("Adan", "float32", None))
KERNELS = "regex:.*(step|norm|finish).*kernel.*"
LAUNCHES = sum(3 if clip else 1 for _, _, clip in RUNS)


def main(argv: Sequence[str] | None = None) -> int:
    """Take the steps."""
    import adaptk
    import torch

    trial = "--cpu" in (sys.argv[1:] if argv is None else argv)
    size, device = (1 << 12, "cpu") if trial else (1 << 26, "cuda")
    for name, dtype, clip in RUNS:
        param, grad = (torch.linspace(a, b, size, device=device).to(getattr(torch, dtype)) for a, b in ((1, 2), (2, 3)))
        getattr(adaptk, name)([param]).step([grad], clip_norm=clip)
        if not trial:
            torch.cuda.synchronize()
        print(name, dtype, f"clip_norm={clip}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
