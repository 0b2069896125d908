"""State formats with codes in the optimizer objects and adaptk.torch: the bits of the functions; saved and loaded."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import adaptk
import numpy as np
import pytest
from adaptk import formats
from helpers import FLOATS

FORMATS: list[Any] = ["8bit", "8bit_nearest", "8bit_dynamic", "fp8_e4m3", {"exp_avg": "8bit"}, {"exp_avg_sq": "8bit"}]
if "bfloat16" in FLOATS:  # which NumPy has by ml_dtypes
    FORMATS += ["bfloat16_sr", {"exp_avg": "bfloat16_sr", "exp_avg_sq": "8bit"}]
SIZES = [(100, 50), (300,), (4096,), (0,)]


def gradients(seed: int = 0) -> Iterator[list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    while True:
        yield [rng.standard_normal(s).astype(np.float32) for s in SIZES]


def new_params() -> list[np.ndarray]:
    return [np.ones(s, np.float32) for s in SIZES]


def parts(state: Any) -> list[np.ndarray]:
    found = [x for x in state[:2] if x is not None] if isinstance(state, formats.Stored) else [state]
    return [np.asarray(x).view(np.uint8) if np.asarray(x).size else np.asarray(x) for x in found]


def assert_same_states(a: Any, b: Any) -> None:
    for x, y in zip(parts(a), parts(b), strict=True):
        np.testing.assert_array_equal(x, y)


def wanted(state_dtype: Any, state: str, size: int) -> str:
    name = state_dtype if isinstance(state_dtype, str) else state_dtype.get(state, "float32")
    if name.startswith("8bit"):
        if size < 4096:
            return "float32"
        if name == "8bit_dynamic":
            return "dynamic_signed" if state == "exp_avg" else "dynamic_unsigned"
        return "int8" if state == "exp_avg" else name.replace("8bit", "uint8")
    return "float32" if name == "fp8_e4m3" and size < 4096 else name


@pytest.mark.parametrize("state_dtype", FORMATS, ids=str)
def test_objects_match_functions(state_dtype: Any) -> None:
    params, twins = new_params(), new_params()
    opt = adaptk.Adam(params, lr=0.01, state_dtype=state_dtype, seed=3)
    states = [
        [formats.full_like(p, 0.0, wanted(state_dtype, s, p.size)) for p in twins] for s in ("exp_avg", "exp_avg_sq")
    ]
    for key, state in opt.state.items():
        for name, value in state.items():
            stored = value.format if isinstance(value, formats.Stored) else str(value.dtype)
            assert stored == wanted(state_dtype, name, params[int(key)].size)
    for step, grads in zip(range(1, 6), gradients(), strict=False):
        opt.step(grads)
        adaptk.ops.adam(twins, grads, *states, step=step, lr=0.01, seed=3)
    for i, (p, q) in enumerate(zip(params, twins, strict=True)):
        np.testing.assert_array_equal(p, q)
        assert_same_states(opt.state[i]["exp_avg"], states[0][i])
        assert_same_states(opt.state[i]["exp_avg_sq"], states[1][i])


@pytest.mark.parametrize("way", ["state_dict", "npz", "pickle", "deepcopy"])
@pytest.mark.parametrize("state_dtype", FORMATS, ids=str)
def test_resuming_is_bit_exact(state_dtype: Any, way: str) -> None:
    params = new_params()
    opt = adaptk.Adam(params, lr=0.01, state_dtype=state_dtype, seed=3)
    feed = gradients()
    for _ in range(3):
        opt.step(next(feed))
    if way in ("pickle", "deepcopy"):
        later = pickle.loads(pickle.dumps(opt)) if way == "pickle" else copy.deepcopy(opt)
        twins = list(later.param_groups[0]["params"])
    else:
        twins = [p.copy() for p in params]
        later = adaptk.Adam(twins, state_dtype=state_dtype)
        saved = opt.state_dict()
        if way == "npz":
            file = io.BytesIO()
            np.savez(file, **saved)
            file.seek(0)
            saved = dict(np.load(file))
        later.load_state_dict(saved)
    for _ in range(3):
        grads = next(feed)
        opt.step(grads)
        later.step(grads)
    for p, q in zip(params, twins, strict=True):
        np.testing.assert_array_equal(p, q)


def test_the_seed_matters_and_is_saved() -> None:
    results = []
    for seed in (0, 0, 1):
        params = new_params()
        opt = adaptk.Adam(params, state_dtype="8bit", seed=seed)
        for _, grads in zip(range(5), gradients(), strict=False):
            opt.step(grads)
        results.append(params[0])
        assert opt.state_dict()["seed"] == seed
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])
    assert "seed" not in adaptk.Adam(new_params(), state_dtype="8bit_nearest").state_dict()


@pytest.mark.parametrize("to", ["8bit", "8bit_nearest", "8bit_dynamic", "fp8_e4m3", None])
@pytest.mark.parametrize("of", ["8bit", "8bit_nearest", "8bit_dynamic", "fp8_e4m3", None])
def test_states_of_other_formats_are_loaded(of: str | None, to: str | None) -> None:
    params = new_params()
    opt = adaptk.Adam(params, state_dtype=of)
    for _, grads in zip(range(3), gradients(), strict=False):
        opt.step(grads)
    later = adaptk.Adam(new_params(), state_dtype=to)
    later.load_state_dict(opt.state_dict())
    # Half of the spacing of codes at the largest number of a block.
    bounds = {"8bit": 0.5 / 127, "8bit_nearest": 0.5 / 127, "8bit_dynamic": 0.45 / 64, "fp8_e4m3": 16 / 448, None: 0.0}
    for name, bound in (("exp_avg", bounds[to]), ("exp_avg_sq", 1 / 8)):
        a, b = (o.state[0][name] for o in (opt, later))
        a, b = (formats.dequantize(x) if isinstance(x, formats.Stored) else x for x in (a, b))
        np.testing.assert_allclose(b, a, atol=bound * np.abs(a).max(), rtol=1e-6)


@pytest.mark.parametrize("size", [0, 1, 299, 300, 10**6])
def test_small_params_keep_float32(size: int) -> None:
    opt = adaptk.Adam(new_params(), state_dtype="8bit", min_8bit_size=size)
    for i, p in enumerate(new_params()):
        assert isinstance(opt.state[i]["exp_avg"], formats.Stored) == (p.size >= size)


@pytest.mark.parametrize("order", ["F", "transposed"])
def test_other_layouts(order: str) -> None:
    """Blocks are in memory order."""
    rng = np.random.default_rng(1)
    start, grad = rng.standard_normal((2, 70, 90)).astype(np.float32)
    flat = start.T.ravel().copy()
    param = np.asfortranarray(start) if order == "F" else np.ascontiguousarray(start.T).T
    opt = adaptk.Adam([param], state_dtype="8bit")
    plain = adaptk.Adam([flat], state_dtype="8bit")
    for _ in range(3):
        opt.step([np.asfortranarray(grad)])
        plain.step([grad.T.ravel().copy()])
    np.testing.assert_array_equal(param.T.ravel(), flat)
    assert_same_states(
        plain.state[0]["exp_avg"], opt.state[0]["exp_avg"]._replace(data=opt.state[0]["exp_avg"].data.T.ravel())
    )


def test_float64_params_have_float64_states() -> None:
    opt = adaptk.Adam([np.zeros(5000)], state_dtype="8bit")
    assert opt.state[0]["exp_avg"].dtype == np.float64


def test_moved_scales_are_used() -> None:
    params = [np.ones(5000, np.float32)]
    opt = adaptk.Adam(params, state_dtype="8bit")
    opt.step([np.ones(5000, np.float32)])
    opt.state[0]["exp_avg"].scales.flags.writeable = False
    with pytest.raises(ValueError, match=r"exp_avg.*scales: read-only"):
        opt.step([np.ones(5000, np.float32)])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"seed": -1}, ValueError, r"seed: -1 is not in \[0, 2\*\*63\)"),
        ({"seed": 1 << 63}, ValueError, r"seed: 9223372036854775808 is not in"),
        ({"seed": "a"}, TypeError, "seed: expected an int, got str"),
        ({"min_8bit_size": -1}, ValueError, "min_8bit_size: -1 is below 0"),
        ({"min_8bit_size": 1.5}, TypeError, "min_8bit_size: expected an int, got float"),
        ({"state_dtype": "int8"}, ValueError, "state_dtype: 'int8', expected 'float32', 'bfloat16'"),
    ],
)
def test_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        adaptk.Adam(new_params(), **options)


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch
# ---------------------------------------------------------------------------------------------------------------------


def torch_params(torch: Any) -> list[Any]:
    return [torch.nn.Parameter(torch.ones(s)) for s in SIZES]


def torch_step(torch: Any, opt: Any, params: list[Any], grads: list[np.ndarray]) -> None:
    for p, g in zip(params, grads, strict=True):
        p.grad = torch.from_numpy(g.copy())
    opt.step()


def torch_state(opt: Any, p: Any, name: str) -> Any:
    state = opt.state[p]
    array = state[name]
    for scales, (of_nonnegative, of_other) in formats.SAVED_SCALES.items():
        if f"{name}_{scales}" in state:
            stored = of_other if name == "exp_avg" else of_nonnegative
            return formats.Stored(array.numpy(), state[f"{name}_{scales}"].numpy(), stored)
    return array.view(dtype=__import__("torch").int16).numpy() if array.element_size() == 2 else array.numpy()


@pytest.mark.parametrize("state_dtype", FORMATS, ids=str)
def test_torch_matches_objects(torch: Any, state_dtype: Any) -> None:
    import adaptk.torch as at

    params, twins = torch_params(torch), new_params()
    opt = at.AdamW(params, lr=0.01, weight_decay=0.1, state_dtype=state_dtype, seed=3)
    twin = adaptk.AdamW(twins, lr=0.01, weight_decay=0.1, convention="torch", state_dtype=state_dtype, seed=3)
    for _, grads in zip(range(5), gradients(), strict=False):
        torch_step(torch, opt, params, grads)
        twin.step(grads)
    for i, (p, q) in enumerate(zip(params, twins, strict=True)):
        np.testing.assert_array_equal(p.detach().numpy(), q)
        for name in ("exp_avg", "exp_avg_sq"):
            assert_same_states(torch_state(opt, p, name), twin.state[i][name])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("state_dtype", ["8bit", "bfloat16_sr", "8bit_dynamic", "fp8_e4m3"])
def test_torch_saves_and_loads(torch: Any, state_dtype: str, dtype: str) -> None:
    import adaptk.torch as at

    kind = getattr(torch, dtype)
    params = [torch.nn.Parameter(p.detach().to(kind)) for p in torch_params(torch)]
    opt = at.Adam(params, lr=0.01, state_dtype=state_dtype, seed=3)
    feed = gradients()

    def step(o: Any, ps: list[Any], grads: list[np.ndarray]) -> None:
        for p, g in zip(ps, grads, strict=True):
            p.grad = torch.from_numpy(g.copy()).to(kind)
        o.step()

    for _ in range(3):
        step(opt, params, next(feed))
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    later = at.Adam(twins, lr=0.01, state_dtype=state_dtype)
    later.load_state_dict(torch.load(file))
    for _ in range(3):
        grads = next(feed)
        step(opt, params, grads)
        step(later, twins, grads)
    for p, q in zip(params, twins, strict=True):
        assert torch.equal(p, q)
        for name, value in opt.state[p].items():
            assert value.dtype == later.state[q][name].dtype
            assert torch.equal(value, later.state[q][name])


@pytest.mark.parametrize("to", ["8bit", "bfloat16_sr", "8bit_dynamic", "fp8_e4m3", None])
@pytest.mark.parametrize("of", ["8bit", "bfloat16_sr", "8bit_dynamic", "fp8_e4m3", None])
def test_torch_loads_other_formats(torch: Any, of: str | None, to: str | None) -> None:
    import adaptk.torch as at

    params = torch_params(torch)
    opt = at.Adam(params, state_dtype=of)
    feed = gradients()
    for _ in range(3):
        torch_step(torch, opt, params, next(feed))
    saved = copy.deepcopy(opt.state_dict())
    twins = torch_params(torch)
    later = at.Adam(twins, state_dtype=to)
    later.load_state_dict(saved)
    torch_step(torch, later, twins, [np.zeros(s, np.float32) for s in SIZES])
    for name, beta in (("exp_avg", 0.9), ("exp_avg_sq", 0.999)):
        a, b = torch_state(opt, params[0], name), torch_state(later, twins[0], name)
        a, b = (as_float(x, name) for x in (a, b))
        np.testing.assert_allclose(b, beta * a, atol=np.abs(a).max() / 50, rtol=0.15)


def as_float(x: Any, name: str) -> np.ndarray:
    if isinstance(x, formats.Stored):
        return formats.dequantize(x)
    return (x.astype(np.int32) << 16).view(np.float32) if x.dtype == np.int16 else x


def test_torch_momentum_and_clipping(torch: Any) -> None:
    import adaptk.torch as at

    params, twins = torch_params(torch), new_params()
    opt = at.SGD(params, lr=0.1, momentum=0.9, state_dtype="8bit")
    twin = adaptk.SGD(twins, lr=0.1, momentum=0.9, convention="torch", state_dtype="8bit")
    for _, grads in zip(range(4), gradients(), strict=False):
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.from_numpy(g.copy())
        opt.step(clip_norm=1.0)
        twin.step(grads, clip_norm=1.0)
    for p, q in zip(params, twins, strict=True):
        np.testing.assert_array_equal(p.detach().numpy(), q)
    assert opt.state[params[0]]["momentum_buffer"].dtype == torch.int8


def test_torch_steps_of_one_param(torch: Any) -> None:
    import adaptk.torch as at

    runs = []
    for alone in (False, True):
        params = torch_params(torch)
        opt = at.Adam(params, state_dtype="8bit", seed=8)
        for _, grads in zip(range(3), gradients(), strict=False):
            for p, g in zip(params, grads, strict=True):
                p.grad = torch.from_numpy(g.copy())
            if alone:
                for p in reversed(params):
                    opt.step_param(p)
            else:
                opt.step()
        runs.append(params)
    for p, q in zip(*runs, strict=True):
        assert torch.equal(p, q)


def test_torch_uses_replaced_scales(torch: Any) -> None:
    import adaptk.torch as at

    p = torch.nn.Parameter(torch.ones(5000))
    p.grad = torch.ones(5000)
    opt = at.Adam([p], state_dtype="8bit")
    opt.step()
    state = opt.state[p]
    state["exp_avg_scales"] = state["exp_avg_scales"].double()
    opt.step()
    assert state["exp_avg_scales"].dtype == torch.float32
    state["exp_avg_scales"].resize_(3)
    with pytest.raises(ValueError, match=r"exp_avg.*scales: shape \(3,\), expected \(40,\)"):
        opt.step()


def test_errors_of_torch(torch: Any) -> None:
    import adaptk.torch as at

    wide = torch.nn.Parameter(torch.ones(100, 200)[:, ::2])
    wide.grad = torch.ones(100, 100)
    opt = at.Adam([wide], state_dtype="8bit")
    with pytest.raises(TypeError, match="not dense, and state_dtype='8bit' is for dense tensors"):
        opt.step()
    assert not opt.state[wide]
    with pytest.raises(ValueError, match="seed: -1 is not in"):
        at.Adam([torch.nn.Parameter(torch.ones(3))], seed=-1)
    with pytest.raises(TypeError, match="min_8bit_size: expected an int"):
        at.Adam([torch.nn.Parameter(torch.ones(3))], min_8bit_size="a")
    with pytest.raises(ValueError, match="state_dtype: '9bit', expected 'float32'"):
        at.Adam([torch.nn.Parameter(torch.ones(3))], state_dtype="9bit")
