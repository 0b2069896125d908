"""Gradients of rows are for the CPU: params on a CUDA device refuse them, and stay what they are."""

from __future__ import annotations

import adaptk
import numpy as np
import pytest
from device_arrays import Library

pytestmark = pytest.mark.cuda


def test_rows_are_refused(device: Library) -> None:
    param = device.put(np.ones((5, 3), np.float32))
    values = device.put(np.ones((2, 3), np.float32))
    grad = (np.array([0, 4]), values)
    for mode in ("lazy", "dense"):
        with pytest.raises(NotImplementedError, match="grad: gradients of rows are for params on the CPU"):
            adaptk.ops.sgd(param, grad, step=1, sparse=mode)
    opt = adaptk.SGD([param])
    with pytest.raises(NotImplementedError, match=r"grads\[0\]: gradients of rows are for params on the CPU"):
        opt.step([grad])
    assert (device.get(param) == 1).all()
    assert opt.step_count == 0


def test_values_on_a_device_beside_a_param_on_the_cpu(device: Library) -> None:
    param = np.ones((5, 3), np.float32)
    with pytest.raises(ValueError, match="on cuda:0"):
        adaptk.ops.sgd(param, (np.array([0, 4]), device.put(np.ones((2, 3), np.float32))), step=1)
    assert (param == 1).all()
