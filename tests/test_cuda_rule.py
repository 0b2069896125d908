"""Rules that were made at run time run on the CPU: on a CUDA device they are refused, before anything is done there."""

from __future__ import annotations

import adaptk
import numpy as np
import pytest
from device_arrays import Exchange, Machine
from test_cuda_errors import refused
from traced_rules import traced

pytestmark = pytest.mark.cuda

ONES = np.ones(5, np.float32)


def test_functions_and_optimizers(machine: Machine) -> None:
    with traced("lion") as made:
        param, grad, state = (Exchange.put(ONES) for _ in range(3))
        what = ("params: on a CUDA device", "traced_lion", "runs on the CPU only", "move the params")
        with refused(NotImplementedError, *what, unchanged=[param, grad, state], machine=machine):
            made(param, grad, state, step=1)
        with refused(NotImplementedError, *what, unchanged=[param, grad, state], machine=machine):
            made([param], [grad], [state], step=1)
        with refused(NotImplementedError, *what, unchanged=[param]):
            made.Optimizer([param])
        adaptk.ops.lion(param, grad, state, step=1)
