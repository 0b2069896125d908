"""Rules with values per tensor, row and column: values, bits, states, and errors."""

from __future__ import annotations

import math
import pickle
from types import SimpleNamespace
from typing import Any

import adaptk
import numpy as np
import pytest
from catalogue_oracles import STEPS
from helpers import same_bits
from test_rule_reductions import numbers, registered, tree

NAMES = ("novograd", "adafactor", "came", "sm3", "adam_mini")
OF_ROWS = (*NAMES, "adafactor_momentum", "sm3_momentum", "adam_mini_tensor")
SHAPES = ((7,), (), (5, 4), (1, 9), (9, 1), (3, 2, 4), (2, 3, 3, 3), (257, 3), (3, 300), (40, 9000), (2, 70_000))


def as_matrices(x: np.ndarray) -> np.ndarray:
    if x.ndim < 2:
        return x.reshape(1, 1, -1)
    return x.reshape(-1, *x.shape[-2:])


def columns_sum(matrix: np.ndarray) -> np.ndarray:
    """The library's order: blocks of rows, row by row, then the blocks pairwise."""
    rows, columns = matrix.shape
    width = min(columns, 65536)
    block = min(rows, max(-(-rows // 64), -(-(2**18) // width)))
    sums = []
    for at in range(0, rows, block):
        total = np.zeros(columns)
        for row in matrix[at : at + block].astype(np.float64):
            total = total + row
        sums.append(total)
    while len(sums) > 1:
        sums = [sums[i] + sums[i + 1] if i + 1 < len(sums) else sums[i] for i in range(0, len(sums), 2)]
    return sums[0]


def reductions_of(p: Any, g: Any, h: Any, t: Any) -> Any:
    """The value of each reduction, written to the params."""
    x = p * g
    value: Any = 0 * p
    number = 0
    for reduce in (adaptk.norm, adaptk.sum, adaptk.mean, adaptk.max):
        for over in ("rows", "columns"):
            value = value + adaptk.where(h.which == number, reduce(x, over), 0.0)
            number += 1
    return value


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_match_the_summation_order(shape: tuple[int, ...], dtype: str) -> None:
    size = math.prod(shape)
    p = numbers(size, dtype).reshape(shape)
    g = np.array(2 * p)
    x = as_matrices(p * g)
    squares = x.astype(np.float64) ** 2
    rows, columns = x.shape[1:]

    def of_rows(terms: np.ndarray) -> np.ndarray:
        return np.array([[[tree(row)] for row in matrix] for matrix in terms])

    def of_columns(terms: np.ndarray) -> np.ndarray:
        return np.array([[columns_sum(matrix)] for matrix in terms])

    want = [
        np.sqrt(of_rows(squares)),
        np.abs(x) if rows == 1 else np.sqrt(of_columns(squares)),
        of_rows(x),
        of_columns(x),
        of_rows(x) / columns,
        of_columns(x) / rows,
        x.max(axis=2, keepdims=True),
        x.max(axis=1, keepdims=True),
    ]
    with registered(reductions_of, lr=1.0, which=0.0) as made:
        for which, value in enumerate(want):
            q = p.copy()
            made(q, g, step=1, which=float(which))
            expected = np.broadcast_to(value, x.shape).astype(dtype).reshape(shape)
            assert (q == expected).all(), (which, np.abs(q - expected).max())


def test_row_and_column_values_in_element_formulas() -> None:
    """Chains of them, the matrix's mean, and states that are written after the step."""

    def chain(p: Any, g: Any, sign: Any, total: Any, row: Any, col: Any, h: Any, t: Any) -> Any:
        row = 0.5 * row + adaptk.sum(g * g, over="rows")
        col = col + adaptk.mean(p * g, over="columns")
        share = row / adaptk.mean(row, over="matrix")
        u = g * share + col
        total = total + adaptk.norm(u - share)
        return p - h.lr * u / total, adaptk.sign(u) * share, total, row, col

    states = {"sign": 0.0, "total": 1.0, "row": 2.0, "col": 0.0}
    with registered(chain, states=states, per={"total": "tensor", "row": "row", "col": "column"}, lr=0.1) as made:
        assert [s.per for s in made.rule.states] == ["element", "tensor", "row", "column"]
        for shape in ((6,), (5, 4), (2, 3, 4), ()):
            p = numbers(math.prod(shape), "float64").reshape(shape)
            x = as_matrices(p).copy()
            row, col, total = np.full((len(x), x.shape[1], 1), 2.0), 0.0, 1.0
            opt = made.Optimizer([p])
            for t in range(1, 4):
                g = np.array(np.cos(p + t))
                opt.step([g])
                y = as_matrices(g)
                row = 0.5 * row + (y * y).sum(axis=2, keepdims=True)
                col = col + (x * y).mean(axis=1, keepdims=True)
                share = row / row.mean(axis=1, keepdims=True)
                u = y * share + col
                total += np.linalg.norm(u - share)
                x = x - 0.1 * u / total
                state = opt.state[0]
                np.testing.assert_allclose(as_matrices(p), x, rtol=1e-12)
                np.testing.assert_allclose(as_matrices(state["sign"]), np.sign(u) * share, rtol=1e-12)
                np.testing.assert_allclose(state["total"], total, rtol=1e-12)
                np.testing.assert_allclose(state["row"].ravel(), row.ravel(), rtol=1e-12)
                np.testing.assert_allclose(state["col"].ravel(), np.ravel(col), rtol=1e-12)
            assert state["total"].shape == ()
            assert state["row"].shape == ((*shape[:-1], 1) if shape else ())
            assert state["col"].shape == ((*shape[:-2], 1, shape[-1]) if len(shape) > 1 else shape)


def some(dtype: Any = np.float32) -> tuple[list[np.ndarray], list[np.ndarray]]:
    shapes = ((300, 200), (7,), (2, 5, 3, 3), (70_000,), (3, 70_001), (2001, 40))
    params = [numbers(math.prod(s), dtype).reshape(s) for s in shapes]
    return params, [numbers(math.prod(s), dtype, 7).reshape(s) for s in shapes]


def run(name: str, params: list[np.ndarray], grads: list[np.ndarray], **options: Any) -> Any:
    opt = adaptk.optimizer_for(name, params, lr=0.1, weight_decay=0.1, **options)
    for k in range(3):
        opt.step([g * g.dtype.type(1 + k) for g in grads], clip_norm=2.0)
    return opt


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.full)])
@pytest.mark.parametrize("name", NAMES)
def test_threads_and_instruction_sets_have_the_same_bits(name: str, dtype: str) -> None:
    before = adaptk.get_num_threads(), adaptk.get_isa()
    try:
        want = None
        for isa in adaptk.available_isas():
            adaptk.set_isa(isa)
            for threads in (1, 5):
                adaptk.set_num_threads(threads)
                params, grads = some(dtype)
                opt = run(name, params, grads)
                found = [*params, *(s for of in opt.state.values() for s in of.values())]
                want = want or found
                for p, q in zip(found, want, strict=True):
                    assert same_bits(p, q), (isa, threads)
    finally:
        adaptk.set_num_threads(before[0])
        adaptk.set_isa(before[1])


@pytest.mark.parametrize("name", NAMES)
def test_storage_has_the_same_bits(name: str) -> None:
    """Misaligned and encoded buffers have other code paths."""
    params, grads = some()
    odd = []
    for p in params:
        memory = np.zeros(p.nbytes + 1, np.uint8)[1:]
        memory[:] = p.reshape(-1).view(np.uint8)
        odd.append(memory.view(np.float32).reshape(p.shape))
    run(name, params, grads)
    run(name, odd, grads)
    for p, q in zip(params, odd, strict=True):
        assert same_bits(p, q)
    halves = [g.astype(np.float16) for g in grads]
    one, two = ([p.copy() for p in params] for _ in range(2))
    a, b = (adaptk.optimizer_for(name, x, lr=0.1) for x in (one, two))
    a.step(halves)
    b.step([g.astype(np.float32) for g in halves])
    for p, q in zip(one, two, strict=True):
        assert same_bits(p, q)


@pytest.mark.parametrize("size", [1, 7, 300, 9000, 70_001])
def test_vectors_have_the_bits_of_matrices_of_one_row(size: int) -> None:
    """They use another form of the program, in which columns are elements."""

    def chain(p: Any, g: Any, m: Any, row: Any, col: Any, total: Any, other: Any, h: Any, t: Any) -> Any:
        square = g * g
        row = 0.5 * row + adaptk.mean(square, over="rows")
        col = 0.5 * col + adaptk.norm(g - col, over="columns")
        other = adaptk.maximum(other, adaptk.max(-square, over="columns")) + adaptk.sum(p, over="columns")
        share = adaptk.sqrt(col) / adaptk.mean(col, over="matrix") + row / adaptk.norm(row, over="matrix")
        u = share * g / (1 + adaptk.abs(other)) + adaptk.max(other * other, over="matrix")
        total = 0.5 * total + adaptk.norm(u)
        m = 0.9 * m + u
        return p - h.lr / total * m, m, row, col, total, other

    states = {"m": 0.0, "row": 1.0, "col": 2.0, "total": 0.5, "other": 0.0}
    per = {"row": "row", "col": "column", "total": "tensor", "other": "column"}
    with registered(chain, states=states, per=per, lr=0.1) as made:
        for dtype in ("float32", "float64"):
            for misaligned in (False, True):
                vector = numbers(size, dtype)
                if misaligned:
                    memory = np.zeros(vector.nbytes + 1, np.uint8)[1:]
                    memory[:] = vector.view(np.uint8)
                    vector = memory.view(dtype)
                matrix = numbers(size, dtype)[None]
                one, two = made.Optimizer([vector]), made.Optimizer([matrix])
                for t in range(3):
                    g = numbers(size, dtype, t)
                    one.step([g], clip_norm=3.0)
                    two.step([g[None].copy()], clip_norm=3.0)
                assert np.isfinite(vector).all()
                assert same_bits(vector, matrix[0])
                for a, b in zip(one.state[0].values(), two.state[0].values(), strict=True):
                    assert same_bits(a, b.reshape(a.shape))


@pytest.mark.parametrize("name", OF_ROWS)
def test_a_list_has_the_bits_of_its_tensors(name: str) -> None:
    """Vectors and small tensors are stepped separately from the others, with copies and averages."""
    shapes = ((5,), (300, 200), (3, 4), (70_000,), (0,), (400, 300), (), (2, 3, 4))
    together, alone = ([numbers(math.prod(s), "float32").reshape(s) for s in shapes] for _ in range(2))
    grads = [numbers(p.size, "float32", 3).reshape(p.shape) for p in together]
    one = adaptk.optimizer_for(name, together)
    each = [adaptk.optimizer_for(name, [p]) for p in alone]
    averages, others = ([np.array(0.5 * p) for p in together] for _ in range(2))
    copies, low = ([np.zeros(p.shape, np.float16) for p in together] for _ in range(2))
    for _ in range(2):
        one.step(grads, ema=(averages, 0.5), copy_out=copies)
        for opt, g, average, copied in zip(each, grads, others, low, strict=True):
            opt.step([g], ema=([average], 0.5), copy_out=[copied])
    pairs = [*zip(together, alone, strict=True), *zip(averages, others, strict=True), *zip(copies, low, strict=True)]
    pairs += [(s, each[k].state[0][n]) for k, of in one.state.items() for n, s in of.items()]
    for a, b in pairs:
        assert same_bits(a, b)


@pytest.mark.parametrize("over", ["rows", "columns", "tensor", "all"])
def test_maxima_of_zeros_and_nan(over: str) -> None:
    def most(p: Any, g: Any, h: Any, t: Any) -> Any:
        found = adaptk.max(g, over=over)
        return adaptk.where(p == p, found, found)

    with registered(most, lr=1.0) as made:
        for dtype in (np.float32, np.float64):
            p = np.ones((3, 300), dtype)
            for at in (0, 31, 299):
                g = np.full((3, 300), -0.0, dtype)
                g[:, at] = 0.0
                made(p, g, step=1)
                assert not np.signbit(p).any()
                made(p, np.full_like(p, -0.0), step=1)
                assert (p == 0).all()
                g[1, at] = np.nan
                made(p, g, step=1)
                want = np.zeros((3, 300), bool)
                want[1 if over == "rows" else slice(None), at if over == "columns" else slice(None)] = True
                assert (np.isnan(p) == want).all()
                made(p, np.full_like(p, -np.inf), step=1)
                assert (p == -np.inf).all()


@pytest.mark.parametrize("name", OF_ROWS)
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "decoupled": False}])
def test_matrices_match_the_papers(name: str, options: dict[str, Any]) -> None:
    for shape in ((6, 5), (2, 3, 4), (5, 1), (1, 4)):
        start = numbers(math.prod(shape), "float64").reshape(shape)
        h = SimpleNamespace(**{**adaptk.rules()[name].defaults(), **options})
        step, x, p = STEPS[name](h, start), start, start.copy()
        opt = adaptk.optimizer_for(name, [p], **options)
        for t in range(1, 8):
            g = np.sin(np.arange(p.size).reshape(shape) + t) + 0.3 * x
            x = step(x, g + (0.0 if h.decoupled else h.weight_decay) * x, t)
            opt.step([np.sin(np.arange(p.size).reshape(shape) + t) + 0.3 * p])
        np.testing.assert_allclose(p, x, rtol=1e-10)


def test_interfaces_agree_and_states_are_saved() -> None:
    for name in NAMES:
        params, grads = some()
        whole, apart = ([p.copy() for p in params] for _ in range(2))
        one = adaptk.optimizer_for(name, whole)
        two = adaptk.optimizer_for(name, apart)
        one.step(grads)
        two.step(grads)
        saved = pickle.loads(pickle.dumps(two.state_dict()))
        three = adaptk.optimizer_for(name, apart)
        three.load_state_dict(saved)
        one.step(grads)
        three.step(grads)
        for p, q in zip(whole, apart, strict=True):
            assert same_bits(p, q)
        again = [p.copy() for p in params]
        states = [
            [s.copy() for s in of]
            for of in zip(*(o.values() for o in adaptk.optimizer_for(name, again).state.values()), strict=True)
        ]
        for t in (1, 2):
            getattr(adaptk.ops, name)(again, grads, *states, step=t)
        for p, q in zip(whole, again, strict=True):
            assert same_bits(p, q)
        wrong = {**saved, f"state.0.{two_last(two)}": np.zeros((3, 1), np.float32)}
        with pytest.raises(ValueError, match=r"shape \(3, 1\), expected"):
            three.load_state_dict(wrong)


def two_last(opt: Any) -> str:
    return list(opt.state[0])[-1]


def test_no_elements() -> None:
    for name in NAMES:
        for shape in ((0,), (0, 3), (3, 0), (2, 0, 3)):
            empty, other = np.zeros(shape), np.ones((2, 2))
            opt = adaptk.optimizer_for(name, [empty, other])
            before = [s.copy() for s in opt.state[0].values()]
            for _ in range(2):
                opt.step([np.zeros(shape), np.ones((2, 2))])
            assert np.isfinite(other).all()
            for s, was in zip(opt.state[0].values(), before, strict=True):
                assert same_bits(s, was)


def test_zero_gradients() -> None:
    for options in ({}, {"floor": True, "eps1": 1e-7}):
        for shape in ((3, 4), (5,)):
            p = np.ones(shape)
            opt = adaptk.Adafactor([p], **options)
            opt.step([np.zeros(shape)])
            assert (p == 1).all()
            opt.step([np.ones(shape)])
            assert np.isfinite(p).all()
            assert (p < 1).all()


def test_torch() -> None:
    torch = pytest.importorskip("torch")
    import adaptk.torch

    for name in NAMES:
        params, grads = some()
        mine = [p.copy() for p in params]
        opt = adaptk.optimizer_for(name, mine)
        tensors = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in params]
        cls = getattr(adaptk.torch, adaptk.catalogue.CLASSES[name])
        other = cls(tensors)
        for t in range(3):
            opt.step(grads)
            for w, g in zip(tensors, grads, strict=True):
                w.grad = torch.from_numpy(g.copy())
            if t == 2:
                saved, other = other.state_dict(), cls(tensors)
                other.load_state_dict(saved)
            other.step()
        for p, w in zip(mine, tensors, strict=True):
            assert same_bits(p, w.detach().numpy())
        saved = other.state_dict()
        last = list(saved["state"][0])[-1]
        saved["state"][0][last] = torch.zeros(3, 1)
        with pytest.raises(ValueError, match=r"shape \(3, 1\), expected"):
            other.load_state_dict(saved)
        for bad in (torch.zeros(3, 2, dtype=torch.complex64), torch.zeros(4, 4)[:, ::2]):
            bad = torch.nn.Parameter(bad)
            bad.grad = torch.zeros_like(bad)
            with pytest.raises(TypeError, match="it is for plain dense real params"):
                cls([bad]).step()
    turned = torch.nn.Parameter(torch.zeros(4, 3).t())
    turned.grad = torch.zeros_like(turned)
    with pytest.raises(ValueError, match="expected C order, for the rule looks at rows and columns"):
        adaptk.torch.Adafactor([turned]).step()


def test_errors() -> None:
    p, g = np.ones((3, 2), np.float32), np.ones((3, 2), np.float32)
    row, col = np.zeros((3, 1), np.float32), np.zeros((1, 2), np.float32)
    for bad, why in [
        ((row.T.copy(), col), r"exp_avg_sq_row: shape \(1, 3\), expected \(3, 1\): one number for each row"),
        ((row, col[0]), r"exp_avg_sq_col: shape \(2,\), expected \(1, 2\): one number for each column"),
        ((row, np.zeros((1, 4), np.float32)[:, ::2]), "exp_avg_sq_col: strides .* expected C order"),
    ]:
        with pytest.raises(ValueError, match=why):
            adaptk.ops.adafactor(p, g, *bad, step=1)
    with pytest.raises(TypeError, match="exp_avg_sq_row: dtype float64, expected float32"):
        adaptk.ops.adafactor(p, g, row.astype(np.float64), col, step=1)
    with pytest.raises(TypeError, match="exp_avg_sq_row: a pair, expected an array"):
        adaptk.ops.adafactor(p, g, (row, row), col, step=1)
    with pytest.raises(ValueError, match="overlap in memory"):
        adaptk.ops.adafactor(p, g, row, row.reshape(-1)[:2].reshape(1, 2), step=1)
    with pytest.raises(ValueError, match=r"exp_avg_sq: shape \(1,\), expected \(\)"):
        adaptk.ops.novograd(p, g, np.zeros_like(p), np.zeros(1, np.float32), step=1)
    assert (p == 1).all()
    with pytest.raises(ValueError, match="expected C order, for the rule looks at rows and columns"):
        adaptk.Adafactor([np.asfortranarray(np.ones((3, 2)))])


def test_errors_of_functions() -> None:
    def make(function: Any, **options: Any) -> None:
        adaptk.rule(lr=0.1, name="refused", **options)(function)

    def line(g: Any) -> Any:
        return adaptk.mean(g, over="rows")

    def by_row(p: Any, g: Any, s: Any, h: Any, t: Any) -> Any:
        return p, line(g)

    def by_element(p: Any, g: Any, s: Any, h: Any, t: Any) -> Any:
        return p, g

    with pytest.raises(TypeError, match="mean over columns: expected elements, got one number for each row"):
        make(lambda p, g, h, t: p - adaptk.mean(line(g), over="columns"))
    with pytest.raises(TypeError, match="sum over the matrix: expected one number for each row or each column"):
        make(lambda p, g, h, t: p - adaptk.sum(g, over="matrix"))
    for of, found in (("column", "row"), ("tensor", "row"), ("row", "element")):
        with pytest.raises(TypeError, match=f"one number for each {found} as s, which has one for each {of}"):
            make(by_row if found == "row" else by_element, states={"s": 0.0}, per={"s": of})
    with pytest.raises(ValueError, match="'m' is for each element, and behind one that is not"):
        make(lambda p, g, s, m, h, t: (p, s, m), states={"s": 0.0, "m": 0.0}, per={"s": "tensor"})
    with pytest.raises(ValueError, match=r"per\['s'\]: 'rows' is not one of"):
        make(lambda p, g, s, h, t: (p, s), states={"s": 0.0}, per={"s": "rows"})
    with pytest.raises(ValueError, match="per: 'x' is not a state"):
        make(lambda p, g, s, h, t: (p, s), states={"s": 0.0}, per={"x": "row"})
    with pytest.raises(ValueError, match="starts as the param, and has one number for each row"):
        make(lambda p, g, s, h, t: (p, s), states={"s": "param"}, per={"s": "row"})
    with pytest.raises(TypeError, match="what is carried is the same for all of them"):
        make(lambda p, g, s, h, t: (p, s, s), states={"s": 0.0}, per={"s": "tensor"}, carried={"c": 0.0})


def test_options_of_any_rule() -> None:
    """A rule with rows is traced again; states that options would add come before the others."""
    careful = adaptk.modify("adafactor", cautious=True)
    p, q = (numbers(12, "float64").reshape(3, 4) for _ in range(2))
    g = np.cos(np.arange(12.0)).reshape(3, 4)
    a, b = careful.Optimizer([p]), adaptk.Adafactor([q])
    start = p.copy()
    a.step([g])
    b.step([g])
    moved = (start - q) * g > 0
    assert (p == np.where(moved, q, start)).all()
    with pytest.raises(ValueError, match="no options that add states"):
        adaptk.modify("adafactor", lookahead=True)


def test_invalid_bytes() -> None:
    """The core refuses programs with mismatched kinds."""
    good = adaptk.rules()["adafactor"].program
    assert good is not None
    for at in range(12, len(good), 7):
        bad = bytearray(good)
        bad[at] ^= 0x55
        check = 0x811C9DC5
        for byte in bad[12:]:
            check = ((check ^ byte) * 0x01000193) & 0xFFFFFFFF
        bad[8:12] = check.to_bytes(4, "little")
        try:
            made = adaptk.load_rule(bytes(bad))
        except ValueError:
            continue
        made.unregister()
        w = np.ones((3, 4))
        try:
            made.Optimizer([w]).step([w.copy()])
        except ValueError:
            continue
