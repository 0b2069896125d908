"""adaptk.Muon against the formula, against adaptk.torch.Muon, and as an optimizer object."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import adaptk
import numpy as np
import pytest
from muon_cases import OPTIONS, oracle

Array = np.ndarray[Any, Any]
SHAPES = ((6, 4), (4, 7), (5, 5), (1, 3), (3, 1))


def arrays(shapes: Any, seed: int, dtype: Any = np.float32) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s).astype(dtype) for s in shapes]


def train(opt: Any, shapes: Any, steps: int = 4, first: int = 0, dtype: Any = np.float32) -> None:
    for t in range(first, first + steps):
        opt.step(arrays(shapes, 100 + t, dtype))


def assert_equal(a: list[Array], b: list[Array]) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_steps_match_the_formula(dtype: str, options: dict[str, Any]) -> None:
    shapes = (*SHAPES, (3, 2, 2))
    params = arrays(shapes, 0, dtype)
    starts = [p.copy() for p in params]
    train(adaptk.Muon([{"params": params, "use_muon": True}], **options), shapes, dtype=dtype)
    tolerance = 1e-9 if dtype == "float64" else 2e-4
    for i, (p, start) in enumerate(zip(params, starts, strict=True)):
        wanted = oracle(start, [arrays(shapes, 100 + t, dtype)[i] for t in range(4)], options)
        np.testing.assert_allclose(p, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_steps_match_torch(options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    import adaptk.torch

    shapes = ((6, 4), (3,), (3, 5), (2,))
    ours = arrays(shapes, 0)
    theirs = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in ours]
    rest: dict[str, Any] = {"rest": "Lion", "rest_options": {"lr": 0.01}}
    a = adaptk.Muon(ours, **options, **rest)
    b = adaptk.torch.Muon(theirs, ns_dtype="float32", **options, **rest)
    for t in range(3):
        grads = arrays(shapes, 100 + t)
        a.step(grads)
        for p, g in zip(theirs, grads, strict=True):
            p.grad = torch.from_numpy(g)
        b.step()
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p, q.detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rest", ["AdamW", "SGD", adaptk.Lion, "QHAdam"])
def test_other_params_use_the_rest_optimizer(rest: Any) -> None:
    shapes = ((4, 3), (3,), (3, 5), (5, 2, 2))
    ours, twins = arrays(shapes, 0), arrays(shapes, 0)
    opt = adaptk.Muon(ours, lr=0.1, rest=rest, rest_options={"lr": 0.05})
    cls = getattr(adaptk, rest) if isinstance(rest, str) else rest
    alone = cls([twins[1], twins[3]], lr=0.05)
    matrices = adaptk.Muon([twins[0], twins[2]], lr=0.1)
    assert [(g["use_muon"], g["lr"], len(g["params"])) for g in opt.param_groups] == [(True, 0.1, 2), (False, 0.05, 2)]
    for t in range(3):
        # In the order of the params, regardless of groups.
        grads = arrays(shapes, 100 + t)
        opt.step(grads)
        alone.step([grads[1], grads[3]])
        matrices.step([grads[0], grads[2]])
        for group in (opt.param_groups[1], alone.param_groups[0]):
            group["lr"] = 0.02
    assert_equal(ours, twins)
    assert list(opt.state) == [0, 2, 1, 3]
    assert opt.state[2]["momentum_buffer"].shape == (3, 5)
    assert opt.step_count == 3
    assert opt.rules[0] == "muon"
    assert "muon: 2 params" in repr(opt)


def test_names_schedules_and_groups() -> None:
    ours, twins = arrays(((4, 3), (3,)), 0), arrays(((4, 3), (3,)), 0)
    named = adaptk.Muon({"w": ours[0], "b": ours[1]}, lr=lambda t: 0.1 / t)
    plain = adaptk.Muon(twins)
    for t in range(3):
        w, b = arrays(((4, 3), (3,)), 100 + t)
        named.step({"b": b, "w": w})
        plain.param_groups[0]["lr"] = 0.1 / (t + 1)
        plain.step([w, b])
    assert_equal(ours, twins)
    assert set(named.state) == {"w", "b"}
    table, weight, bias = arrays(((5, 3), (3, 2), (3,)), 0)
    groups = [{"params": [table], "use_muon": False, "lr": 0.5}, {"params": [weight], "lr": 0.2}, {"params": bias}]
    opt = adaptk.Muon(groups, rest_options={"beta1": 0.5})
    assert [(g["use_muon"], g["lr"]) for g in opt.param_groups] == [(False, 0.5), (True, 0.2), (False, 1e-3)]
    before = table.copy(), bias.copy()
    opt.step([None, np.ones_like(weight), None])
    assert_equal([table, bias], list(before))
    # Rows of a table that Muon does not treat as a matrix.
    opt.step([(np.array([2]), np.ones((1, 3), np.float32)), None, None])
    assert (np.flatnonzero((table != before[0]).any(axis=1)) == [2]).all()


def test_the_form_of_the_momentum_may_change() -> None:
    (ours,), (twin,) = arrays(((4, 3),), 0), arrays(((4, 3),), 0)
    opt, other = adaptk.Muon([ours], lr=0.1), adaptk.Muon([twin], lr=0.1, nesterov=False)
    train(opt, ((4, 3),), 2)
    train(other, ((4, 3),), 2)
    np.testing.assert_array_equal(opt.state[0]["momentum_buffer"], other.state[0]["momentum_buffer"])
    twin[:] = ours
    opt.param_groups[0]["nesterov"] = False
    train(opt, ((4, 3),), 2, 2)
    train(other, ((4, 3),), 2, 2)
    assert_equal([ours], [twin])
    assert opt.step_count == 4


@pytest.mark.parametrize("how", ["state_dict", "npz", "pickle", "deepcopy"])
def test_resuming_is_bit_exact(how: str, tmp_path: Any) -> None:
    shapes = ((4, 3), (3, 5), (3,))
    params = arrays(shapes, 0)
    made = {"lr": 0.1, "rest": "Lion", "rest_options": {"lr": 0.01}}
    opt = adaptk.Muon(params, ns_steps=3, adjust_lr_fn="original", ns_coefficients=(2.0, -1.5, 0.5), **made)
    train(opt, shapes)
    if how == "deepcopy":
        others, again = copy.deepcopy((params, opt))
    elif how == "pickle":
        others, again = pickle.loads(pickle.dumps((params, opt)))
    else:
        others = [p.copy() for p in params]
        again = adaptk.Muon(others, rest="Lion")
        saved = opt.state_dict()
        if how == "npz":
            np.savez(tmp_path / "state.npz", **saved)
            saved = dict(np.load(tmp_path / "state.npz"))
        again.load_state_dict(saved)
    for one in (opt, again):
        train(one, shapes, 3, 4)
    assert_equal(params, others)
    assert dict(again.param_groups[0]) == {**opt.param_groups[0], "params": again.param_groups[0]["params"]}
    assert again.step_count == 7


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_layouts(order: Any, ndim: int) -> None:
    shape = (4, 6) if ndim == 2 else (4, 3, 2)
    (plain,) = arrays((shape,), 0)
    other = np.array(plain, order=order)
    for p in (plain, other):
        opt = adaptk.Muon([{"params": [p], "use_muon": True}], lr=0.1)
        for t in range(3):
            opt.step([np.array(arrays((shape,), 100 + t)[0], order="C" if p is plain else order)])
    np.testing.assert_allclose(plain, other, rtol=1e-4, atol=1e-5)


def test_edges() -> None:
    empty, one = np.zeros((0, 3)), np.zeros((1, 1))
    opt = adaptk.Muon([empty, one], lr=0.1, weight_decay=0.0)
    opt.step([np.zeros((0, 3)), np.ones((1, 1))])
    assert one[0, 0] != 0
    assert adaptk.Muon([np.zeros(3)]).rules == ("adamw",)
    zero = np.ones((2, 2))
    adaptk.Muon([zero], lr=0.5, weight_decay=0.5).step([np.zeros((2, 2))])
    assert (zero == 0.75).all()
    half = np.ones((2, 3), np.float16)
    of_half = adaptk.Muon([half], lr=0.1)
    of_half.step([np.ones((2, 3), np.float16)])
    assert of_half.state[0]["momentum_buffer"].dtype == np.float32
    assert half.dtype == np.float16
    assert (half < 1).all()
    # float64 params, the iteration in float32.
    a, b = np.eye(3), np.eye(3)
    adaptk.Muon([a], lr=0.1, ns_dtype="float32").step([np.diag([1.0, 2.0, 3.0])])
    adaptk.Muon([b], lr=0.1).step([np.diag([1.0, 2.0, 3.0])])
    assert (a != b).any()
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_clipping_and_skipping_use_all_gradients() -> None:
    shapes = ((4, 3), (3,))
    ours, twins = arrays(shapes, 0), arrays(shapes, 0)
    a, b = (adaptk.Muon(p, rest="SGD", rest_options={"lr": 1.0}) for p in (ours, twins))
    grads = arrays(shapes, 100)
    norm = float(np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads)))
    info = a.step([g.copy() for g in grads], clip_norm=0.5, grad_scale=2.0)
    b.step([(g * (0.5 / norm)).astype(np.float32) for g in grads])
    assert info.grad_norm == pytest.approx(2 * norm)
    for p, q in zip(ours, twins, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-4, atol=1e-6)
    before = [p.copy() for p in ours]
    grads[1][0] = np.nan
    skipped = a.step(grads, skip_nonfinite=True, zero_grad=True)
    assert skipped.skipped
    assert a.step_count == 1
    assert not any(g.any() for g in grads)
    assert_equal(ours, before)
    grads = arrays(shapes, 101)
    assert not a.step(grads, skip_nonfinite=True, zero_grad=True).skipped
    assert not any(g.any() for g in grads)
    # Nonfinite values propagate without an error.
    with np.errstate(all="raise"):
        a.step([np.full((4, 3), np.inf, np.float32), np.zeros(3, np.float32)])
    assert np.isnan(ours[0]).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda w: adaptk.Muon([w], lr=-1.0), ValueError, r"^lr: -1"),
        (lambda w: adaptk.Muon([w], weight_decay=-1.0), ValueError, r"^weight_decay: -1"),
        (lambda w: adaptk.Muon([w], momentum=1.5), ValueError, r"^momentum: 1.5"),
        (lambda w: adaptk.Muon([w], nesterov=1), TypeError, r"^nesterov: expected a bool"),
        (lambda w: adaptk.Muon([w], ns_coefficients=(1.0, 2.0)), ValueError, r"^ns_coefficients: expected three"),
        (lambda w: adaptk.Muon([w], ns_steps=2.5), TypeError, r"^ns_steps: expected an int"),
        (lambda w: adaptk.Muon([w], adjust_lr_fn="moonlight"), ValueError, r"^adjust_lr_fn: 'moonlight' is not one"),
        (lambda w: adaptk.Muon([w], ns_dtype="bfloat16"), ValueError, r"^ns_dtype: 'bfloat16' is not one of float32"),
        (lambda w: adaptk.Muon([w], rest="AdamX"), ValueError, r"^rest: adaptk has no class 'AdamX'"),
        (lambda w: adaptk.Muon([w], rest=dict), TypeError, r"^rest: <class 'dict'>, expected another class"),
        (lambda w: adaptk.Muon([w], rest="Muon"), TypeError, r"^rest: <class 'adaptk"),
        (lambda w: adaptk.Muon([w], rest="ScheduleFreeAdamW"), ValueError, r"^rest: ScheduleFreeAdamW has other"),
        (lambda w: adaptk.Muon([w], rest_options={"beta": 1}), TypeError, r"^rest_options: AdamW\(\) got an unexp"),
        (lambda w: adaptk.Muon([w], rest_options={"lr": -1}), ValueError, r"^rest_options: .*-1"),
        (lambda w: adaptk.Muon([w], rest_options=3), TypeError, r"^rest_options: expected a dict"),
        (lambda w: adaptk.Muon([w], rest_options={"clip_norm": 1.0}), ValueError, r"^rest_options: clip_norm"),
        (lambda w: adaptk.Muon([]), ValueError, r"^params: an empty list"),
        (lambda w: adaptk.Muon({1, 2}), TypeError, r"^params: expected buffers"),
        (lambda w: adaptk.Muon([[1.0]]), TypeError, r"^params\[0\]: expected a NumPy array, got list"),
        (lambda w: adaptk.Muon([w, w]), ValueError, r"^params\[1\] overlaps params\[0\]|^params\[0\] overlaps"),
        (lambda w: adaptk.Muon([w, w[0]]), ValueError, r"overlaps params\[[01]\]"),
        (lambda w: adaptk.Muon([w.astype(np.int64)]), TypeError, r"^params\[0\]: dtype int64"),
        (lambda w: adaptk.Muon([w[:, ::2]]), ValueError, r"^params\[0\]"),
        (lambda w: adaptk.Muon([{"params": [w], "use_muon": 1}]), TypeError, r"^use_muon: expected a bool"),
        (lambda w: adaptk.Muon([{"params": [w[0]], "use_muon": True}]), ValueError, r"^params\[0\]: shape \(4,\) with"),
        (lambda w: adaptk.Muon([{"params": [w], "beta1": 0.5}]), TypeError, r"^Muon\(\) got an unexpected .* 'beta1'"),
        (lambda w: adaptk.Muon([{"params": [w], "state_dtype": "8bit"}]), TypeError, r"^state_dtype: not an option of"),
        (
            lambda w: adaptk.Muon([{"params": [w, np.zeros(3)], "lr": 1.0}]),
            ValueError,
            r"^params: a group with options of its own \(lr\) has matrices and others; make two",
        ),
    ],
)
def test_invalid_arguments(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(np.ones((4, 4)))


def test_a_step_that_fails_changes_nothing() -> None:
    shapes = ((4, 3), (3,))
    params = arrays(shapes, 0)
    opt = adaptk.Muon(params, lr=0.1)
    train(opt, shapes, 2)
    before = [p.copy() for p in params], {k: v.tobytes() for k, v in opt.state_dict().items()}
    good = arrays(shapes, 7)

    def refused(grads: Any, error: type[Exception], message: str, **options: Any) -> None:
        with pytest.raises(error, match=message):
            opt.step(grads, **options)
        assert_equal(params, before[0])
        assert {k: v.tobytes() for k, v in opt.state_dict().items()} == before[1]

    refused(good[:1], ValueError, "^grads: 1 gradients, expected 2")
    refused([good[0], np.zeros(4, np.float32)], ValueError, r"^grads\[1\]")
    refused([np.zeros((3, 4), np.float32), good[1]], ValueError, r"^grads\[0\]")
    refused([params[0], good[1]], ValueError, r"^grads\[0\] overlaps params\[0\]")
    refused(good, ValueError, "clip_norm", clip_norm=-1.0)
    refused([good[0], (np.array([0]), np.ones(1, np.float32))], TypeError, "^clip_norm, skip_non", clip_norm=1.0)
    for group, name, value in ((0, "lr", -1.0), (0, "momentum", 2.0), (1, "lr", -1.0), (0, "use_muon", False)):
        old = opt.param_groups[group][name]
        opt.param_groups[group][name] = value
        with pytest.raises(ValueError, match=name):
            opt.step(good)
        opt.param_groups[group][name] = old
        assert_equal(params, before[0])
    with pytest.raises(KeyError, match="betas"):
        opt.param_groups[0]["betas"] = 1
    assert {k: v.tobytes() for k, v in opt.state_dict().items()} == before[1]
    with pytest.raises(ValueError, match="no interim point"):
        opt.lookahead()


def test_an_invalid_group_changes_nothing() -> None:
    w, b = arrays(((4, 3), (3,)), 0)
    opt = adaptk.Muon([w, b], lr=0.1)
    opt.step(arrays(((4, 3), (3,)), 1))
    state = {k: v.tobytes() for k, v in opt.state_dict().items()}
    for group in ({"params": [np.zeros((2, 2)), w]}, {"params": [np.zeros((2, 2)), b[:1]]}, {"params": []}):
        with pytest.raises(ValueError, match=r"overlap|empty"):
            opt.add_param_group(group)
        assert {k: v.tobytes() for k, v in opt.state_dict().items()} == state
        assert len(opt.param_groups) == 2
    opt.add_param_group({"params": [np.zeros(2, np.float32), np.ones((2, 2), np.float32)]})
    assert list(opt.state) == [0, 1, 3, 2]
    opt.step(arrays(((4, 3), (3,), (2,), (2, 2)), 2))
    assert opt.param_groups[2]["params"][0][0, 0] != 1


def test_invalid_states() -> None:
    w, b = arrays(((4, 3), (3,)), 0)
    opt = adaptk.Muon([w, b])
    saved = opt.state_dict()
    with pytest.raises(ValueError, match="group 0 was saved by the rule 'muon'"):
        adaptk.SGD([w, b]).load_state_dict(saved)
    for name, value in (("adjust_lr_fn", 7), ("ns_dtype", 0.5), ("momentum", 3.0), ("ns_coefficients", [1.0, 2.0])):
        with pytest.raises(ValueError, match=name):
            opt.load_state_dict({**saved, f"param_groups.0.{name}": np.array(value)})
    with pytest.raises(ValueError, match="missing"):
        opt.load_state_dict({k: v for k, v in saved.items() if not k.endswith("ns_dtype")})
