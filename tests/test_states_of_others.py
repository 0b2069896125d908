"""Conversions of states between bitsandbytes, torchao and adaptk."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from adaptk import formats
from helpers import Array

F32 = np.float32
CODES = np.arange(256).astype(np.uint8)
MAPS = {name: formats.dequantize((CODES, np.ones(1, F32), name)) for name in ("dynamic_signed", "dynamic_unsigned")}
SIZES = {"dynamic_signed": 300, "dynamic_unsigned": 300}


def numbers(size: int, nonnegative: bool, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(size) * 10.0 ** rng.uniform(-4, 1, size)).astype(F32)
    return np.abs(x) if nonnegative else x


def of_bitsandbytes(size: int = 700) -> dict[str, Any]:
    m = formats.quantize(numbers(size, False), "dynamic_signed")
    v = formats.quantize(numbers(size, True), "dynamic_unsigned")
    return {
        "step": 5,
        "state1": m.data,
        "absmax1": m.scales,
        "qmap1": MAPS["dynamic_signed"].copy(),
        "state2": v.data,
        "absmax2": v.scales,
        "qmap2": MAPS["dynamic_unsigned"].copy(),
    }


def assert_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert list(a) == list(b)
    for key in a:
        np.testing.assert_array_equal(np.asarray(a[key]), np.asarray(b[key]))


def test_bitsandbytes_round_trip() -> None:
    theirs = of_bitsandbytes()
    ours = formats.from_bitsandbytes(theirs)
    assert list(ours) == ["step", "exp_avg", "exp_avg_absmax", "exp_avg_sq", "exp_avg_sq_absmax"]
    assert ours["exp_avg"] is theirs["state1"]
    assert_equal(formats.to_bitsandbytes(ours), theirs)


def test_nested_dict_of_bitsandbytes() -> None:
    theirs = of_bitsandbytes()
    saved = {"step": theirs["step"], "__bnb": {k: v for k, v in theirs.items() if k != "step"}}
    assert_equal(formats.from_bitsandbytes(saved), formats.from_bitsandbytes(theirs))


def test_small_states_are_kept() -> None:
    theirs = {"step": 1, "state1": numbers(9, False), "state2": numbers(9, True)}
    ours = formats.from_bitsandbytes(theirs)
    assert_equal(ours, {"step": 1, "exp_avg": theirs["state1"], "exp_avg_sq": theirs["state2"]})
    assert_equal(formats.to_bitsandbytes(ours), theirs)


@pytest.mark.parametrize("block", [512, 1024, 2048, 4096])
@pytest.mark.parametrize("size", [1, 256, 2048, 5000, 8192])
def test_longer_blocks(size: int, block: int) -> None:
    """A scale shared by several of adaptk's blocks."""
    count = -(-size // block)
    codes = np.random.default_rng(1).integers(0, 256, size).astype(np.uint8)
    scales = np.arange(1, count + 1, dtype=F32)
    ours = formats.from_bitsandbytes(
        {"state1": codes, "absmax1": scales, "qmap1": MAPS["dynamic_signed"]}, names=["exp_avg"]
    )
    got = formats.dequantize((ours["exp_avg"], ours["exp_avg_absmax"], "dynamic_signed"))
    np.testing.assert_array_equal(got, MAPS["dynamic_signed"][codes] * np.repeat(scales, block)[:size])


def test_a_signed_map_for_nonnegative_states() -> None:
    """Like RMSprop in bitsandbytes: converted to float32, and back to that map."""
    stored = formats.quantize(numbers(5000, True), "dynamic_signed")
    theirs = {"state1": stored.data, "absmax1": stored.scales, "qmap1": MAPS["dynamic_signed"]}
    ours = formats.from_bitsandbytes(theirs, names=["square_avg"])
    np.testing.assert_array_equal(ours["square_avg"], formats.dequantize(stored))
    other = formats.quantize(ours["square_avg"], "dynamic_unsigned")
    back = formats.to_bitsandbytes({"square_avg": other.data, "square_avg_absmax": other.scales}, names=["square_avg"])
    want = formats.quantize(formats.dequantize(other), "dynamic_signed")
    assert_equal(back, {"state1": want.data, "absmax1": want.scales, "qmap1": MAPS["dynamic_signed"]})


def test_a_map_of_another_processor() -> None:
    theirs = of_bitsandbytes()
    theirs["qmap1"] = np.nextafter(theirs["qmap1"], F32(1))
    assert formats.from_bitsandbytes(theirs)["exp_avg"] is theirs["state1"]


def test_torchao_round_trip() -> None:
    m = formats.quantize(numbers(512, False), "dynamic_signed")
    v = formats.quantize(numbers(512, True), "dynamic_unsigned")
    theirs = {
        "step": F32(3),
        "exp_avg": {"codes": m.data, "scale": m.scales, "qmap": MAPS["dynamic_signed"], "signed": True},
        "exp_avg_sq": {"codes": v.data, "scale": v.scales, "qmap": MAPS["dynamic_unsigned"], "signed": False},
    }
    ours = formats.from_torchao(theirs)
    assert list(ours) == ["step", "exp_avg", "exp_avg_absmax", "exp_avg_sq", "exp_avg_sq_absmax"]
    back = formats.to_torchao(ours)
    assert list(back) == list(theirs)
    assert back["step"] == 3
    for name in ("exp_avg", "exp_avg_sq"):
        assert_equal(back[name], theirs[name])


def test_fp8_of_torchao_round_trip() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    stored = formats.quantize(numbers(512, False), "fp8_e4m3")
    theirs = {"exp_avg": {"codes": stored.data.view(ml_dtypes.float8_e4m3fn), "scale": stored.scales}}
    ours = formats.from_torchao(theirs)
    assert_equal(ours, {"exp_avg": stored.data, "exp_avg_fp8_scales": stored.scales})
    back = formats.to_torchao(ours)["exp_avg"]
    assert back["codes"].dtype == ml_dtypes.float8_e4m3fn
    assert_equal(
        {k: v.view(np.uint8) if k == "codes" else v for k, v in back.items()},
        {"codes": stored.data, "scale": stored.scales},
    )


@pytest.mark.parametrize("format", ["int8", "fp8_e4m3"])
def test_other_formats_are_re_encoded(format: str) -> None:
    stored = formats.quantize(numbers(512, False), format)
    ours = {"exp_avg": stored.data, f"exp_avg_{formats.scales_name(format)}": stored.scales}
    want = formats.quantize(formats.dequantize(stored), "dynamic_signed")
    for theirs in (formats.to_bitsandbytes(ours, ["exp_avg"]), formats.to_torchao(ours).get("exp_avg", {})):
        codes, scales = (theirs.get(a, theirs.get(b)) for a, b in (("state1", "codes"), ("absmax1", "scale")))
        if format == "fp8_e4m3" and "codes" in theirs:
            np.testing.assert_array_equal(codes.view(np.uint8), stored.data)
        else:
            np.testing.assert_array_equal(codes, want.data)
            np.testing.assert_array_equal(scales, want.scales)


def test_states_that_torchao_keeps_in_float32() -> None:
    stored = formats.quantize(numbers(700, False), "dynamic_signed")
    theirs = formats.to_torchao({"exp_avg": stored.data, "exp_avg_absmax": stored.scales})
    np.testing.assert_array_equal(theirs["exp_avg"], formats.dequantize(stored))


def test_4bit_states_of_torchao_are_decoded() -> None:
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 256, 512).astype(np.uint8)
    scales, qmap = rng.uniform(0.5, 2, 8).astype(F32), np.linspace(-1, 1, 16, dtype=F32)
    want = np.empty(1024, F32)
    for i in range(1024):
        byte = int(codes[i // 2])
        want[i] = qmap[byte // 16 if i % 2 == 0 else byte % 16] * scales[i // 128]
    theirs = {"codes": codes, "scale": scales, "qmap": qmap, "signed": True}
    np.testing.assert_array_equal(formats.from_torchao({"exp_avg": theirs})["exp_avg"], want)
    shaped = formats.from_torchao({"exp_avg": {**theirs, "shape": (32, 32)}})["exp_avg"]
    np.testing.assert_array_equal(shaped, want.reshape(32, 32))
    with pytest.raises(ValueError, match=r"state\['exp_avg'\]: 1024 elements, expected those of the shape \(3, 4\)"):
        formats.from_torchao({"exp_avg": {**theirs, "shape": (3, 4)}})
    with pytest.raises(ValueError, match=r"state\['exp_avg'\], scale: 3 beside 1024 elements"):
        formats.from_torchao({"exp_avg": {**theirs, "scale": scales[:3]}})


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"qmap1": np.zeros(16, F32)}, r"state\['qmap1'\]: 16 numbers, expected the 256"),
    ({"qmap1": np.linspace(-1, 1, 256, dtype=F32)}, r"state\['qmap1'\]: not the dynamic map"),
    ({"absmax1": np.zeros(2, F32)}, r"state\['absmax1'\]: 2 beside 700 elements, expected one for each 256"),
    ({"absmax1": np.zeros((2, 3), F32)}, r"state\['absmax1'\]: shape \(2, 3\), expected one number for each block"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[m for _, m in CHANGES])
def test_errors(change: dict[str, Any], message: str) -> None:
    if "2 beside" in message:
        change = {"absmax1": np.zeros(4, F32)}
        message = message.replace("2 beside", "4 beside")
    with pytest.raises(ValueError, match=message):
        formats.from_bitsandbytes({**of_bitsandbytes(), **change})


def test_missing_entries() -> None:
    theirs = of_bitsandbytes()
    with pytest.raises(ValueError, match="no 'state3' for 'max_exp_avg_sq' beside 'step', 'state1'"):
        formats.from_bitsandbytes(theirs, ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"])
    with pytest.raises(ValueError, match="no 'qmap2' beside 'absmax2'"):
        formats.from_bitsandbytes({k: v for k, v in theirs.items() if k != "qmap2"})
    with pytest.raises(ValueError, match="names: no rule has a state 'm'; there are"):
        formats.from_bitsandbytes(theirs, ["m"])
    with pytest.raises(ValueError, match="no 'exp_avg_sq' beside 'exp_avg'"):
        formats.to_bitsandbytes({"exp_avg": theirs["state1"]})
    for convert in (
        formats.from_bitsandbytes,
        formats.to_bitsandbytes,
        formats.from_torchao,
        formats.to_torchao,
    ):
        with pytest.raises(TypeError, match="state: list, expected the dict of one param's states"):
            convert([theirs])  # type: ignore[operator]


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch
# ---------------------------------------------------------------------------------------------------------------------


def params_and_gradients(torch: Any) -> tuple[list[Any], list[list[Any]]]:
    g = torch.Generator().manual_seed(0)
    shapes = [(64, 80), (100,), (3, 5000)]
    params = [torch.nn.Parameter(torch.randn(s, generator=g)) for s in shapes]
    return params, [[torch.randn(s, generator=g) for s in shapes] for _ in range(4)]


def step(opt: Any, params: list[Any], grads: list[Any]) -> None:
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()
    opt.step()


@pytest.mark.parametrize("way", ["state", "state_dict"])
def test_bitsandbytes_in_torch(torch: Any, way: str) -> None:
    """A run resumes from bitsandbytes' format after conversion to it and back."""
    import adaptk.torch as at

    params, grads = params_and_gradients(torch)
    ours = at.AdamW(params, lr=0.01, state_dtype="8bit_dynamic")
    for g in grads[:2]:
        step(ours, params, g)
    theirs = {i: formats.to_bitsandbytes(ours.state[p]) for i, p in enumerate(params)}
    assert theirs[0]["state1"].dtype == torch.uint8
    assert theirs[1]["state1"].dtype == torch.float32
    assert theirs[0]["qmap2"].shape == (256,)
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    later = at.AdamW(twins, lr=0.01, state_dtype="8bit_dynamic")
    states = {i: formats.from_bitsandbytes(s) for i, s in theirs.items()}
    if way == "state":
        for i, p in enumerate(twins):
            later.state[p] = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in states[i].items()}
    else:
        later.load_state_dict({"state": states, "param_groups": later.state_dict()["param_groups"]})
    for g in grads[2:]:
        step(ours, params, g)
        step(later, twins, g)
    for p, q in zip(params, twins, strict=True):
        assert torch.equal(p, q)
        for name, value in ours.state[p].items():
            assert torch.equal(value, later.state[q][name])


def test_bitsandbytes_itself(torch: Any) -> None:
    """The state of its own optimizer: the numbers that bitsandbytes decodes; it resumes from the converted state."""
    bnb = pytest.importorskip("bitsandbytes", exc_type=ImportError)
    import adaptk.torch as at

    params, grads = params_and_gradients(torch)
    theirs = bnb.optim.AdamW8bit(params, lr=0.01)
    try:
        step(theirs, params, grads[0])
    except (RuntimeError, NotImplementedError, AttributeError) as e:
        pytest.skip(f"bitsandbytes takes no step on this processor: {e}")
    saved = theirs.state_dict()
    for i, p in enumerate(params):
        state = theirs.state[p]
        ours = formats.from_bitsandbytes(state)
        from_dict = formats.from_bitsandbytes(saved["state"][i])
        assert all(torch.equal(torch.as_tensor(from_dict[k]), torch.as_tensor(v)) for k, v in ours.items())
        for k, name in ((1, "exp_avg"), (2, "exp_avg_sq")):
            if f"absmax{k}" not in state:
                assert ours[name].dtype == torch.float32
                continue
            qmap, codes, scales = (state[f"{x}{k}"] for x in ("qmap", "state", "absmax"))
            want = qmap[codes.int()].reshape(-1) * scales.repeat_interleave(256)[: codes.numel()]
            kind = "dynamic_signed" if k == 1 else "dynamic_unsigned"
            got = formats.dequantize((ours[name].reshape(-1), ours[f"{name}_absmax"], kind))
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=0)
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    later = at.AdamW(twins, lr=0.01, weight_decay=0.01, state_dtype="8bit_dynamic")
    states = {i: formats.from_bitsandbytes(s) for i, s in saved["state"].items()}
    later.load_state_dict({"state": states, "param_groups": later.state_dict()["param_groups"]})
    step(later, twins, grads[1])
    for p, q in zip(params, twins, strict=True):
        given = formats.to_bitsandbytes(later.state[q])
        theirs.state[p].update({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in given.items()})
        p.data.copy_(q)
    step(theirs, params, grads[2])
    step(later, twins, grads[2])
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["8bit", "Fp8"])
def test_torchao_itself(torch: Any, kind: str) -> None:
    low_bit = pytest.importorskip("torchao.optim", exc_type=ImportError)
    import adaptk.torch as at
    from torchao.optim.subclass_8bit import OptimState8bit
    from torchao.optim.subclass_fp8 import OptimStateFp8

    params, grads = params_and_gradients(torch)
    options = {"lr": 0.01, "weight_decay": 0.01}
    ours = at.AdamW(params, **options, state_dtype="8bit_dynamic" if kind == "8bit" else "fp8_e4m3")
    for g in grads[:2]:
        step(ours, params, g)
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    theirs = getattr(low_bit, f"AdamW{kind}")(twins, **options)
    make = OptimState8bit if kind == "8bit" else OptimStateFp8
    for p, q in zip(params, twins, strict=True):
        state = formats.to_torchao(ours.state[p])
        theirs.state[q] = {k: make(**v) if isinstance(v, dict) else v.clone() for k, v in state.items()}
        for name in ("exp_avg", "exp_avg_sq"):
            was, made = formats._saved(ours.state[p], name), theirs.state[q][name]
            want = formats._float32(was) if isinstance(was, formats.Stored) else was
            got = made.dequantize() if hasattr(made, "codes") else made
            torch.testing.assert_close(got, want, rtol=1e-6 if kind == "8bit" else 0, atol=0)
        back = formats.from_torchao(theirs.state[q])
        if p.numel() % 256 == 0:
            assert ("exp_avg_sq_absmax" if kind == "8bit" else "exp_avg_sq_fp8_scales") in back
        for name, value in ours.state[p].items():
            if p.numel() % 256 == 0 or p.numel() < 4096:
                assert torch.equal(back[name], value)


def test_4bit_states_of_torchao_itself(torch: Any) -> None:
    four = pytest.importorskip("torchao.optim.subclass_4bit", exc_type=ImportError)
    g = torch.Generator().manual_seed(3)
    for signed in (True, False):
        state = four.OptimState4bit.zeros((64, 128), signed=signed)
        x = torch.randn(64, 128, generator=g)
        state.copy_(x if signed else x.abs())
        want = state.dequantize()
        assert want.abs().max() > 1
        fitting, other = ("exp_avg", "exp_avg_sq") if signed else ("exp_avg_sq", "exp_avg")
        got = formats.from_torchao({fitting: state})
        assert torch.equal(got[fitting], state.codes)
        assert torch.equal(got[f"{fitting}_4bit_scales"], state.scale)
        decoded = formats._float32(formats._saved(got, fitting, x.shape), x.shape)
        torch.testing.assert_close(decoded, want, rtol=3e-7, atol=0)
        # A state that has the other map is decoded.
        torch.testing.assert_close(formats.from_torchao({other: state})[other], want, rtol=3e-7, atol=0)
