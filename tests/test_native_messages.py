"""Messages of the native code: which argument, what is wrong with it, and what to do about it."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import ops


def zeros(*shape: int, dtype: Any = np.float32) -> Any:
    return np.zeros(shape, dtype)


def refused(error: type[Exception], text: str, run: Callable[[], Any]) -> None:
    with pytest.raises(error, match="^" + re.escape(text)):
        run()


# Gradients and params of other types and layouts


@pytest.mark.parametrize("run", ["optimizer", "function"])
def test_the_remedy_for_a_gradient(run: str) -> None:
    def give(param: Any, grad: Any) -> Callable[[], Any]:
        if run == "optimizer":
            opt = adaptk.SGD([param])
            return lambda: opt.step([grad])
        return lambda: ops.sgd([param], [grad], step=1)

    name = "grads[0]" if run == "optimizer" else "grad[0]"
    refused(
        TypeError,
        f"{name}: dtype int64, expected float32, float64, bfloat16, float16, float8_e4m3fn or float8_e5m2",
        give(zeros(3), zeros(3, dtype=np.int64)),
    )
    refused(
        ValueError,
        f"{name}: strides (4, 8) in bytes, expected the layout of its param ((12, 4) in bytes); "
        "pass np.ascontiguousarray(...) of it",
        give(zeros(2, 3), np.asfortranarray(zeros(2, 3))),
    )
    refused(
        ValueError,
        f"{name}: strides (12, 4) in bytes, expected the layout of its param ((4, 8) in bytes); "
        "pass np.asfortranarray(...) of it",
        give(np.asfortranarray(zeros(2, 3)), zeros(2, 3)),
    )
    mixed = zeros(2, 3, 4).transpose(1, 0, 2)
    refused(
        ValueError,
        f"{name}: strides (32, 16, 4) in bytes, expected the layout of its param ((16, 48, 4) in bytes); "
        "copy it into np.empty_like(param)",
        give(mixed, zeros(3, 2, 4)),
    )


def test_the_remedies_work() -> None:
    p, g = zeros(2, 3), np.asfortranarray(np.ones((2, 3)))
    adaptk.SGD([p], lr=1.0).step([np.ascontiguousarray(g.astype(np.float32))])
    assert (p == -1).all()
    q = zeros(2, 3, 4).transpose(1, 0, 2)
    like = np.empty_like(q)
    like[...] = 1
    adaptk.SGD([q], lr=1.0).step([like])
    assert (q == -1).all()


def test_a_param_with_gaps() -> None:
    refused(
        ValueError,
        "params[0]: not contiguous: shape (3,) with strides (8,) in bytes does not fill one block of memory; "
        "make it with np.ascontiguousarray(...) and use the result from then on",
        lambda: adaptk.SGD([zeros(6)[::2]]),
    )


def test_tensors_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    opt = adaptk.SGD([torch.zeros(2, 3)])
    refused(
        ValueError,
        "grads[0]: strides (4, 8) in bytes, expected the layout of its param ((12, 4) in bytes); "
        "pass it in C order, in PyTorch its contiguous()",
        lambda: opt.step([torch.zeros(3, 2).t()]),
    )
    refused(
        BufferError,
        "grads[0]: a sparse tensor, expected a dense one; pass its to_dense()",
        lambda: opt.step([torch.zeros(2, 3).to_sparse()]),
    )
    for name in ("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"):
        refused(
            TypeError,
            f"params[0]: dtype {name}, expected float32, float64, bfloat16, float16, float8_e4m3fn or float8_e5m2",
            lambda name=name: adaptk.SGD([torch.zeros(3).to(getattr(torch, name))]),
        )


def test_a_sparse_matrix_of_scipy() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"^params\[0\]: .* is not a buffer; .*; pass its toarray\(\)$"):
        adaptk.SGD([sparse.csr_array(zeros(2, 3))])


# Numbers


@pytest.mark.parametrize("bad", ["1", [1.0], b"1", object()])
def test_wrong_types_of_numbers(bad: Any) -> None:
    opt = adaptk.SGD([zeros(3)])
    kind = type(bad).__name__
    refused(TypeError, f"clip_norm: expected a number or None, got {kind}", lambda: opt.step([zeros(3)], clip_norm=bad))
    refused(TypeError, f"grad_scale: expected a number, got {kind}", lambda: opt.step([zeros(3)], grad_scale=bad))
    refused(
        TypeError, f"clip_norm: expected a number or None, got {kind}", lambda: adaptk.SGD([zeros(3)], clip_norm=bad)
    )
    refused(TypeError, f"grad_scale: expected a number, got {kind}", lambda: adaptk.global_norm([zeros(3)], bad))


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), 0, np.float32(-2)])
def test_a_clip_norm_out_of_range(bad: Any) -> None:
    opt = adaptk.SGD([zeros(3)])
    for run in (lambda: opt.step([zeros(3)], clip_norm=bad), lambda: adaptk.SGD([zeros(3)], clip_norm=bad)):
        refused(ValueError, f"clip_norm: {bad!r} is not in (0, inf]", run)
    torch = pytest.importorskip("torch")
    import adaptk.torch as at

    p = torch.nn.Parameter(torch.zeros(3))
    p.grad = torch.ones(3)
    refused(ValueError, f"clip_norm: {bad!r} is not in (0, inf]", lambda: at.SGD([p]).step(clip_norm=bad))
    refused(TypeError, "clip_norm: expected a number or None, got str", lambda: at.SGD([p]).step(clip_norm="1"))


def test_a_number_that_is_too_large() -> None:
    opt = adaptk.SGD([zeros(3)])
    refused(ValueError, "clip_norm: a number too large", lambda: opt.step([zeros(3)], clip_norm=10**400))
    refused(ValueError, "grad_scale: inf is not in (-inf, inf)", lambda: opt.step([zeros(3)], grad_scale=float("inf")))
    refused(ValueError, "step: too large, expected at most 2**63 - 1", lambda: ops.sgd(zeros(3), zeros(3), step=2**63))


@pytest.mark.parametrize("name", ["state.0.step", "step"])
@pytest.mark.parametrize("count", [2**63, 2**64 - 1])
def test_a_saved_count_of_steps_that_is_too_large(name: str, count: int) -> None:
    opt = adaptk.Adam([zeros(3)])
    saved = opt.state_dict()
    saved[name] = np.array(count, np.uint64)
    with pytest.raises(ValueError, match=r"(steps|step'?\])[^(]*: .*2\*\*63"):
        opt.load_state_dict(saved)
    assert opt.step_count == 0


# Objects with an invalid device


class Broken:
    def __init__(self, device: Any) -> None:
        self.device = device

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError

    def __dlpack_device__(self) -> Any:
        return self.device


@pytest.mark.parametrize("device", ["cpu", ("cpu", 0), 1, (1,), (2**70, 0), None])
def test_a_broken_device(device: Any) -> None:
    def text(name: str) -> str:
        return f"{name}: __dlpack_device__ returned {device!r}, expected (device type, device id)"

    bad = Broken(device)
    refused(BufferError, text("lr"), lambda: ops.sgd(zeros(3), zeros(3), step=1, lr=bad))
    refused(BufferError, text("step"), lambda: ops.sgd(zeros(3), zeros(3), step=bad))
    refused(BufferError, text("lr"), lambda: adaptk.SGD([zeros(3)], lr=bad))
    refused(BufferError, text("beta1"), lambda: adaptk.Adam([zeros(3)], beta1=bad))
    refused(BufferError, text("param"), lambda: ops.sgd(bad, zeros(3), step=1))


# Memory


class Offset:
    """An array whose capsule has this byte_offset."""

    def __init__(self, array: Any, offset: int) -> None:
        self.array, self.offset = array, offset

    def __dlpack__(self) -> Any:
        capsule = self.array.__dlpack__()
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        ctypes.c_uint64.from_address(get(capsule, b"dltensor") + 40).value = self.offset
        return capsule


def test_an_offset_that_overflows() -> None:
    array, grad = zeros(6), np.ones(4, np.float32)
    for offset in (2**64 - 8, 2**63):
        export = Offset(array[:4], offset)
        refused(ValueError, f"param: impossible byte_offset {offset}", lambda e=export: ops.sgd(e, grad, step=1))
    ops.sgd(Offset(array[:4], 8), grad, step=1, lr=1.0)
    assert array.tolist() == [0, 0, -1, -1, -1, -1]


def test_a_param_that_is_given_twice() -> None:
    p, g = zeros(3), np.ones(3, np.float32)
    text = "{}[{}] and {}[{}] are the same buffer: give each param once"
    refused(ValueError, text.format("params", 0, "params", 1), lambda: adaptk.Adam([p, p]))
    refused(ValueError, text.format("params", 0, "params", 2), lambda: adaptk.Adam([{"params": [p, g]}, {"params": p}]))
    refused(ValueError, text.format("params", "'a'", "params", "'b'"), lambda: adaptk.SGD({"a": p, "b": p[:]}))
    refused(ValueError, text.format("param", 0, "param", 1), lambda: ops.sgd([p, p], [g, g], step=1))
    refused(ValueError, "params[0] and params[1] overlap in memory", lambda: adaptk.Adam([p, p[1:]]))


@pytest.mark.filterwarnings("ignore:.*duplicate parameters")
def test_a_param_of_pytorch_that_is_given_twice() -> None:
    torch = pytest.importorskip("torch")
    import adaptk.torch as at

    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    opt = at.SGD([p, p])
    refused(ValueError, "params[0] and params[1] are the same buffer: give each param once", opt.step)
    assert (p == 1).all()


# Calls within a step, and steps without gradients


def test_a_step_within_a_step() -> None:
    p, g = zeros(3), np.ones(3, np.float32)
    opt: Any = adaptk.SGD([p], lr=lambda t: 0.1 if t == 1 else opt.step([g]))
    opt.step([g])
    before = p.copy()
    with pytest.raises(
        RuntimeError, match=r"^this optimizer was called within its own step, .*; call it after the step"
    ):
        opt.step([g])
    assert (p == before).all()
    assert opt.step_count == 1


def test_no_gradients_at_all() -> None:
    p = zeros(3)
    opt = adaptk.Adam([p])
    with pytest.warns(UserWarning, match="^grads: all gradients are None") as caught:
        assert opt.step([None]).grad_norm is None
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="^grads: all gradients are None"):
        assert opt.step([None], clip_norm=1.0).grad_norm == 0.0
    with pytest.warns(UserWarning, match="^grads: all gradients are None"):
        assert tuple(opt.step([None], skip_nonfinite=True)) == (0.0, False)
    assert (p == 0).all()
    assert opt.state[0]["exp_avg"].tolist() == [0, 0, 0]


def test_no_gradients_at_all_in_pytorch() -> None:
    torch = pytest.importorskip("torch")
    import adaptk.torch as at

    p = torch.nn.Parameter(torch.ones(3))
    assert torch.nn.utils.clip_grad_norm_([p], 1.0) == 0.0
    opt = at.Adam([p])
    opt.step(clip_norm=1.0)
    assert tuple(opt.last_step) == (0.0, False)
    opt.step(skip_nonfinite=True)
    assert tuple(opt.last_step) == (0.0, False)
    opt.step()
    assert tuple(opt.last_step) == (None, False)


def test_a_list_for_named_params() -> None:
    opt = adaptk.SGD({name: zeros(2) for name in "wxyz"})
    text = "grads: a {}, but the params have names; give a dict by name: 'w', 'x', 'y', ..."
    refused(TypeError, text.format("list"), lambda: opt.step([zeros(2)] * 4))
    refused(TypeError, text.format("tuple"), lambda: opt.step((zeros(2),) * 4))
    refused(TypeError, text.format("generator"), lambda: opt.step(zeros(2) for _ in range(4)))
