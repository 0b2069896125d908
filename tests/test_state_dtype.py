"""States of lower precision: the step of the decoded states, rounded, for every rule and interface."""

from __future__ import annotations

import io
import pickle
from typing import Any

import adaptk
import numpy as np
import pytest
from helpers import FLOATS, RULES, call, make, same_bits

NARROW = [name for name in ("bfloat16", "float16") if name in FLOATS]
HAS_BFLOAT16 = "bfloat16" in FLOATS
STEPS = 4


def narrowed(buffers: dict[str, Any], rule: str, dtype: str) -> dict[str, Any]:
    states = [s.name for s in RULES[rule].states]
    return {n: b.astype(FLOATS[dtype]) if n in states else b for n, b in buffers.items()}


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("rule", RULES)
def test_functions_round_the_step_of_decoded_states(rule: str, dtype: str) -> None:
    stored = narrowed(make(rule, 1000), rule, dtype)
    states = [s.name for s in RULES[rule].states]
    for step in range(1, STEPS + 1):
        decoded = {n: b.astype(np.float32) if n in states else b.copy() for n, b in stored.items()}
        call(rule, stored, step=step)
        call(rule, decoded, step=step)
        assert same_bits(stored["param"], decoded["param"])
        for name in states:
            with np.errstate(over="ignore"):
                assert same_bits(stored[name], decoded[name].astype(FLOATS[dtype])), name


@pytest.mark.parametrize("param", [n for n in ("float32", "bfloat16", "float16") if n in FLOATS])
def test_every_instruction_set_thread_and_offset(param: str) -> None:
    n = 100_003
    want = None
    isas, threads = adaptk.available_isas(), adaptk.get_num_threads()
    try:
        for isa in isas:
            adaptk.set_isa(isa)
            for count, offset in ((1, 0), (3, 1)):
                adaptk.set_num_threads(count)
                buffers = narrowed(make("adam", n + offset, param), "adam", "float16")
                buffers = {name: b[offset:] for name, b in buffers.items()}
                rng = np.random.default_rng(3)
                for b in buffers.values():
                    b[...] = np.abs(rng.normal(size=n)).astype(b.dtype)
                call("adam", buffers, step=3)
                got = [b.tobytes() for b in buffers.values()]
                want = want or got
                assert got == want, (isa, count, offset)
    finally:
        adaptk.set_isa(isas[-1])
        adaptk.set_num_threads(threads)


def test_states_may_differ() -> None:
    stored = make("adam", 50)
    stored["exp_avg"] = stored["exp_avg"].astype(np.float16)
    decoded = {n: b.copy() for n, b in stored.items()}
    decoded["exp_avg"] = decoded["exp_avg"].astype(np.float32)
    call("adam", stored, step=1)
    call("adam", decoded, step=1)
    assert same_bits(stored["param"], decoded["param"])
    assert same_bits(stored["exp_avg_sq"], decoded["exp_avg_sq"])
    assert same_bits(stored["exp_avg"], decoded["exp_avg"].astype(np.float16))


def test_errors_with_float64_params() -> None:
    buffers = make("adam", 5, "float64")
    buffers["exp_avg"] = buffers["exp_avg"].astype(np.float16)
    with pytest.raises(TypeError, match="exp_avg: dtype float16, expected float64 beside a float64 param"):
        call("adam", buffers, step=1)
    buffers = make("adam", 5, "float32")
    buffers["exp_avg"] = buffers["exp_avg"].astype(np.float64)
    with pytest.raises(TypeError, match="expected float32 beside a float32 param, or bfloat16, or float16"):
        call("adam", buffers, step=1)


def optimizers(state_dtype: Any, **options: Any) -> tuple[np.ndarray, adaptk.Optimizer]:
    w = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    return w, adaptk.Adam([w], lr=0.1, state_dtype=state_dtype, **options)


def train(w: np.ndarray, opt: adaptk.Optimizer, steps: int = STEPS) -> None:
    for k in range(steps):
        opt.step([w * (1 + k)], clip_norm=1.0)


@pytest.mark.parametrize("dtype", NARROW)
def test_optimizer_objects(dtype: str) -> None:
    w, opt = optimizers(dtype)
    assert {a.dtype for a in opt.state[0].values()} == {np.dtype(FLOATS[dtype])}
    train(w, opt)
    buffers = {"param": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)}
    buffers |= {n: np.zeros((3, 4), FLOATS[dtype]) for n in ("exp_avg", "exp_avg_sq")}
    for k in range(STEPS):
        grad = buffers["param"] * np.float32(1 + k)
        scale = min(1.0, 1.0 / adaptk.global_norm([grad]))
        call("adam", {**buffers, "grad": grad}, step=k + 1, lr=0.1, grad_scale=scale)
    assert same_bits(w, buffers["param"])
    assert all(same_bits(opt.state[0][n], buffers[n]) for n in ("exp_avg", "exp_avg_sq"))


@pytest.mark.parametrize("dtype", NARROW)
def test_saved_states(dtype: str) -> None:
    w, opt = optimizers(dtype)
    train(w, opt)
    file = io.BytesIO()
    np.savez(file, **opt.state_dict())
    file.seek(0)
    for saved in (opt.state_dict(), np.load(file), pickle.loads(pickle.dumps(opt.state_dict()))):
        v, later = optimizers(dtype)
        v[...] = w
        later.load_state_dict(saved)
        assert all(same_bits(later.state[0][n], opt.state[0][n]) for n in opt.state[0])
    # From float32 they are rounded, and to float32 nothing is lost.
    v, wide = optimizers(None)
    wide.load_state_dict(opt.state_dict())
    assert all(same_bits(wide.state[0][n], opt.state[0][n].astype(np.float32)) for n in opt.state[0])
    train(v, wide)
    later.load_state_dict(wide.state_dict())
    assert all(same_bits(later.state[0][n], wide.state[0][n].astype(FLOATS[dtype])) for n in opt.state[0])


def test_a_dict_of_dtypes_and_groups() -> None:
    w, opt = optimizers({"exp_avg": "float16"})
    assert [a.dtype.name for a in opt.state[0].values()] == ["float16", "float32"]
    opt.add_param_group({"params": [np.zeros(3)], "state_dtype": None})
    opt.add_param_group({"params": [np.zeros(3, np.float32)], "state_dtype": "float32"})
    assert [a.dtype.name for a in opt.state[1].values()] == ["float64", "float64"]
    assert [a.dtype.name for a in opt.state[2].values()] == ["float32", "float32"]
    opt.step([w.copy(), np.ones(3), np.ones(3, np.float32)])
    made = adaptk.optimizer_for("rmsprop_centered", [w], state_dtype="float16")
    assert {a.dtype.name for a in made.state[0].values()} == {"float16"}
    again = pickle.loads(pickle.dumps(opt))
    assert [a.dtype.name for a in again.state[0].values()] == ["float16", "float32"]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("float8", ValueError, "state_dtype: 'float8', expected 'float32', 'bfloat16', 'float16'"),
        (np.float16, TypeError, "state_dtype: expected a dtype's name such as 'bfloat16', or a dict from .*, got <cl"),
        ({"momentum": "float16"}, ValueError, "state_dtype: no state 'momentum'; there are exp_avg, exp_avg_sq"),
        ({"exp_avg": 16}, TypeError, "state_dtype: expected a dtype's name .*, got 16"),
    ],
)
def test_invalid_state_dtypes(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        optimizers(value)


def test_bfloat16_without_ml_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    with pytest.raises(ImportError, match="pip install ml_dtypes"):
        optimizers("bfloat16")


def test_torch() -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    import adaptk.torch as at

    def model() -> Any:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3))

    x = torch.linspace(-1, 1, 10).reshape(2, 5)
    for dtype in ("bfloat16", "float16"):
        net = model()
        opt = at.AdamW(net.parameters(), lr=0.01, state_dtype=dtype)
        flat = [p.detach().clone() for p in net.parameters()]
        twin = adaptk.AdamW(flat, lr=0.01, convention="torch", state_dtype=dtype)
        for _ in range(STEPS):
            opt.zero_grad()
            net(x).square().sum().backward()
            opt.step(clip_norm=1.0)
            twin.step([p.grad for p in net.parameters()], clip_norm=1.0)
        for i, (p, q) in enumerate(zip(net.parameters(), flat, strict=True)):
            assert torch.equal(p, q)
            assert opt.state[p]["exp_avg"].dtype == getattr(torch, dtype)
            assert all(torch.equal(opt.state[p][n], twin.state[i][n]) for n in ("exp_avg", "exp_avg_sq"))
        later = at.AdamW(model().parameters(), lr=0.01, state_dtype=dtype)
        later.load_state_dict(opt.state_dict())
        for group in later.param_groups:
            for p, q in zip(group["params"], net.parameters(), strict=True):
                p.grad = torch.ones_like(p)
                q.grad = torch.ones_like(q)
        with torch.no_grad():
            for p, q in zip(later.param_groups[0]["params"], net.parameters(), strict=True):
                p.copy_(q)
        later.step()
        opt.step()
        assert all(map(torch.equal, later.param_groups[0]["params"], net.parameters()))
        # torch's own states do not have it: they are loaded into this optimizer's dtype.
        torchs = torch.optim.AdamW(net.parameters(), lr=0.01)
        torchs.step()
        opt.load_state_dict(torchs.state_dict())
        opt.step()
        assert all(opt.state[p]["exp_avg"].dtype == getattr(torch, dtype) for p in net.parameters())
    with pytest.raises(ValueError, match="state_dtype: 'int8'"):
        at.Adam(net.parameters(), state_dtype="int8")
    with pytest.raises(ValueError, match="no state 'momentum'"):
        at.Adam([{"params": list(net.parameters()), "state_dtype": {"momentum": "float16"}}])
