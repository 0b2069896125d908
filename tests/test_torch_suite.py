"""The table that PyTorch drives the tests of its own optimizers with, against the classes of adaptk.torch.

PyTorch ships the table (`torch.testing._internal.common_optimizers`) but not the tests; those here have the same
requirements. The table is read when the first test runs, because importing it takes seconds.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch")
at = pytest.importorskip("adaptk.torch")

pytestmark = pytest.mark.full

Tensor = torch.Tensor
NAMES = ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
each = pytest.mark.parametrize("name", NAMES)

# Optimizers of the table that have no class here.
WITHOUT_A_CLASS = {
    "Adafactor": "its states are rows and columns of a matrix, no fused elementwise rule",
    "LBFGS": "evaluates a closure many times a step, no elementwise rule",
    "SparseAdam": "for sparse gradients only",
}

# Features that the classes here refuse. These tests must fail: a test that passes is no exclusion any more.
EXCLUDED = {
    "test_steps_for_autograd": dict.fromkeys(
        NAMES, "a fused step is not recorded by autograd: differentiable=True is refused"
    ),
    "test_a_param_twice_in_a_group": dict.fromkeys(
        NAMES, "both would be updated at once: params that overlap are refused; torch warns and steps twice"
    ),
}

# Tests of torch that do not apply to these classes.
NOT_HERE = {
    "test_optim_infos_do_not_specify_global_cliquey_kwargs": "is about the table itself",
    "test_forloop_goes_right_direction_multigpu": "needs two devices",
    "test_rosenbrock_sparse": "sparse gradients, with weights for SparseAdam",
    "test_foreach_large_tensor": "is about foreach kernels, on CUDA",
    "test_fused_large_tensor": "is about torch's fused kernels, on CUDA",
    "test_peak_memory_foreach": "is about foreach kernels, on CUDA",
    "test_fused_cpu_matches_cuda": "needs CUDA",
    "test_fused_error_on_params_on_meta": "test_torch_failures.py: params without memory are refused",
    "test_cudagraphs": "needs CUDA",
    "test_state_dict_with_cuda_params": "needs CUDA",
    "test_cpu_load_state_dict": "needs CUDA",
    "test_defaults_changed_to_foreach": "is about which of torch's implementations is chosen",
    "test_less_mem_beta1_zero_adam": "is about Adafactor",
}


@pytest.fixture(scope="session")
def table() -> dict[str, Any]:
    """torch's metadata of its optimizers, by name."""
    flags = torch.backends.__dict__.get("__allow_nonbracketed_mutation_flag")
    settings: Any = None
    with contextlib.suppress(ImportError):
        from hypothesis import settings
    profile = getattr(settings, "get_current_profile_name", lambda: "default")()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = importlib.import_module("torch.testing._internal.common_optimizers")
    except ImportError as e:
        pytest.skip(f"torch's table of optimizers cannot be imported: {e}")
    finally:
        # The import changes settings of other libraries for the whole process.
        if settings is not None:
            settings.load_profile(profile)
        if flags is not None:
            setattr(torch.backends, "__allow_nonbracketed_mutation_flag", flags)
    return {info.name: info for info in found.optim_db}


@pytest.fixture(autouse=True)
def _excluded(request: pytest.FixtureRequest) -> None:
    torch.manual_seed(21)
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")
    reason = EXCLUDED.get(request.node.originalname, {}).get(name)
    if reason is not None:
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))


def configurations(info: Any, dtype: Any = None) -> Iterator[dict[str, Any]]:
    """The options that torch tests on the CPU. They are printed, so that a failure shows them."""
    for config in info.optim_inputs_func(device="cpu", dtype=dtype):
        print(config.desc, config.kwargs)
        yield copy.deepcopy(config.kwargs)


def ours(name: str, params: Any, **options: Any) -> Any:
    return getattr(at, name)(params, **options)


def torchs(name: str, params: Any, **options: Any) -> Any:
    return getattr(torch.optim, name)(params, **{"foreach": False, **options})


def model_and_data(dtype: Any = torch.float64) -> tuple[Any, Any, Any]:
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 6), torch.nn.Sigmoid(), torch.nn.Linear(6, 1), torch.nn.Flatten(0)
    ).to(dtype)
    return model, torch.randn(8, 3, dtype=dtype), torch.randn(8, dtype=dtype)


def closure_of(model: Any, x: Any, y: Any, opt: Any) -> Callable[[], Any]:
    def closure() -> Any:
        opt.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    return closure


def trains_alike(name: str, options: dict[str, Any], dtype: Any, steps: int = 7, **ours_only: Any) -> None:
    """Trains a model with torch's single-tensor loop and a copy with ours."""
    model, x, y = model_and_data(dtype)
    other = copy.deepcopy(model)
    a = ours(name, model.parameters(), **{**options, **ours_only})
    b = torchs(name, other.parameters(), **copy.deepcopy(options))
    one, two = closure_of(model, x, y, a), closure_of(other, x, y, b)
    # Gradients are computed from params that differ in their last bits, which signs and roots amplify.
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    for _ in range(steps):
        a.step(one)
        b.step(two)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)
        assert list(a.state[p]) == list(b.state[q])
        for key in b.state[q]:
            torch.testing.assert_close(a.state[p][key], b.state[q][key], rtol=tolerance, atol=tolerance)


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit."""
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def through_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# The table


def test_the_exclusions_match_the_table(table: dict[str, Any]) -> None:
    assert set(table) == {*NAMES, *WITHOUT_A_CLASS, "Muon"}  # which is not element-wise: test_muon.py
    assert not WITHOUT_A_CLASS.keys() & set(at.__all__)
    assert EXCLUDED.keys() <= globals().keys()
    assert not NOT_HERE.keys() & globals().keys()
    assert {n for n in NAMES if "differentiable" in table[n].supported_impls} == EXCLUDED[
        "test_steps_for_autograd"
    ].keys()
    for name in NAMES:
        assert issubclass(getattr(at, name), table[name].optim_cls)
        assert not table[name].step_requires_closure


@each
def test_error_inputs(table: dict[str, Any], name: str) -> None:
    inputs = table[name].optim_error_inputs_func("cpu", torch.float32)
    assert len(inputs) > 5
    for case in inputs:
        given, message = case.optimizer_error_input, case.error_regex
        print(given.desc)
        params = [torch.zeros(1, requires_grad=True)] if given.params is None else given.params
        if isinstance(params, set):
            # PyTorch 2.15 warns.
            with pytest.raises(TypeError, match="the order of a set changes"):
                ours(name, params, **given.kwargs)
        elif issubclass(case.error_type, Warning):
            with pytest.warns(case.error_type, match=message):
                ours(name, params, **given.kwargs)
        else:
            assert case.error_on.name == "CONSTRUCTION_ERROR"
            with pytest.raises(case.error_type, match=message):
                ours(name, params, **given.kwargs)


# Steps


@pytest.mark.parametrize("contiguous", [True, False])
@each
def test_goes_in_the_right_direction(table: dict[str, Any], name: str, contiguous: bool) -> None:
    """Also with each combination of schedulers in the table."""
    info = table[name]
    for schedulers in ([], *info.scheduler_inputs):
        for options in configurations(info):
            torch.manual_seed(1)
            weight = torch.randn(10, 5) if contiguous else torch.randn(10, 5, 2)[..., 0]
            bias = torch.randn(10) if contiguous else torch.randn(10, 2)[..., 0]
            assert weight.is_contiguous() is contiguous
            weight, bias, x = weight.requires_grad_(), bias.requires_grad_(), torch.randn(5)
            opt = ours(name, [weight, bias], **options)
            rates = [make(opt) for make in schedulers]

            def closure(weight: Any = weight, bias: Any = bias, x: Any = x, opt: Any = opt) -> Any:
                opt.zero_grad()
                loss = (weight.mv(x) + bias).square().sum()
                loss.backward()
                return loss

            first = closure().item()
            for _ in range(20):
                loss = opt.step(closure)
                for rate in rates:
                    watches = isinstance(rate, torch.optim.lr_scheduler.ReduceLROnPlateau)
                    rate.step(*([loss.detach()] if watches else []))
            last = closure().item()
            assert (last > first) if options.get("maximize") else (last < first), (first, last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@each
def test_matches_the_loop_over_single_tensors(table: dict[str, Any], name: str, dtype: Any) -> None:
    for options in configurations(table[name], dtype):
        trains_alike(name, options, dtype)


@each
def test_implementation_flags(table: dict[str, Any], name: str) -> None:
    taken = set(table[name].supported_impls) - {"differentiable"}
    assert "foreach" in taken
    for impl in taken:
        for options in configurations(table[name]):
            if isinstance(options.get("lr"), Tensor):
                continue  # torch does not accept it together with foreach
            trains_alike(name, options, torch.float64, 3, **{impl: True})


@each
def test_16_bits_match_rounded_32_bits(table: dict[str, Any], name: str) -> None:
    """A param in 16 bits is that in 32, rounded after each step, where the states are the same."""
    for dtype in (torch.bfloat16, torch.float16):
        for options in configurations(table[name], dtype):
            p = torch.randn(40).to(dtype).requires_grad_()
            wide = p.detach().float().requires_grad_()
            a, b = ours(name, [p], **options), torchs(name, [wide], **copy.deepcopy(options))
            for _ in range(4):
                p.grad = torch.randn(40).to(dtype)
                wide.grad = p.grad.float()
                a.step()
                b.step()
                with torch.no_grad():
                    wide.copy_(wide.to(dtype))
            torch.testing.assert_close(p.float(), wide, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
@each
def test_tensor_lr(table: dict[str, Any], name: str, shape: tuple[int, ...]) -> None:
    """Changed in place by a scheduler, as torch does it for tensors."""
    for options in configurations(table[name]):
        model, x, y = model_and_data()
        other = copy.deepcopy(model)
        options.pop("lr", None)
        a = ours(name, model.parameters(), lr=torch.full(shape, 0.01, dtype=torch.float64), **options)
        b = torchs(name, other.parameters(), lr=0.01, **options)
        rates = [torch.optim.lr_scheduler.ExponentialLR(o, gamma=0.7) for o in (a, b)]
        for _ in range(4):
            a.step(closure_of(model, x, y, a))
            b.step(closure_of(other, x, y, b))
            for rate in rates:
                rate.step()
        assert isinstance(a.param_groups[0]["lr"], Tensor)
        assert a.param_groups[0]["lr"].shape == shape
        assert float(a.param_groups[0]["lr"]) == pytest.approx(b.param_groups[0]["lr"], rel=1e-12)
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("dims", [0, 1, 2])
@each
def test_complex_params(table: dict[str, Any], name: str, dims: int) -> None:
    """The same bits as with separate real and imaginary parts."""
    assert table[name].supports_complex
    for options in configurations(table[name]):
        z = torch.randn((3,) * dims, dtype=torch.complex128).requires_grad_()
        parts = torch.view_as_real(z.detach()).clone().requires_grad_()
        a, b = ours(name, [z], **options), ours(name, [parts], **copy.deepcopy(options))
        for _ in range(4):
            z.grad = torch.randn_like(z)
            parts.grad = torch.view_as_real(z.grad).clone()
            a.step()
            b.step()
        assert torch.equal(torch.view_as_real(z.detach()), parts.detach())


@each
def test_complex_functions(table: dict[str, Any], name: str) -> None:
    """Gradients that autograd makes of a real loss, which may be lazy conjugates."""
    for options in configurations(table[name]):
        a = torch.tensor([2 + 1j, -1.5j], dtype=torch.complex128, requires_grad=True)
        b = a.detach().clone().requires_grad_()
        one, two = ours(name, [a], **options), torchs(name, [b], **copy.deepcopy(options))
        for _ in range(5):
            for z, opt in ((a, one), (b, two)):
                opt.zero_grad()
                ((1 - z[0]).abs().square() + 10 * (z[1] - z[0] * z[0].conj()).abs().square()).backward()
                opt.step()
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@each
def test_sparse_gradients(table: dict[str, Any], name: str) -> None:
    p = torch.zeros(3, requires_grad=True)
    p.grad = torch.tensor([0.0, 1.0, 0.0]).to_sparse()
    # Every class supports them, even if its torch.optim class does not.
    opt = ours(name, [p], lr=0.1)
    opt.step()
    assert p[1] != 0
    assert p[0] == p[2] == 0


@each
def test_steps_for_autograd(table: dict[str, Any], name: str) -> None:
    p = torch.zeros(3, requires_grad=True, dtype=torch.float64)
    moved = p.clone()
    moved.grad = torch.ones(3, dtype=torch.float64, requires_grad=True)
    ours(name, [moved], differentiable=True).step()
    moved.sum().backward()
    assert p.grad is not None


@each
def test_capturable_configurations_are_refused_on_the_cpu(table: dict[str, Any], name: str) -> None:
    info = table[name]
    on_device = [c for c in info.optim_inputs_func(device="cuda") if c.kwargs.get("capturable")]
    assert bool(on_device) == info.has_capturable_arg
    for config in on_device:
        with pytest.raises(ValueError, match=r"^capturable: params on the CPU"):
            ours(name, [torch.zeros(2, requires_grad=True)], **config.kwargs)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
@each
def test_a_param_twice_in_a_group(table: dict[str, Any], name: str) -> None:
    p = torch.zeros(3, requires_grad=True)
    p.grad = torch.ones(3)
    opt = ours(name, [p, p])
    opt.step()
    assert p[0] != 0


@each
def test_another_default_dtype(table: dict[str, Any], name: str) -> None:
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        for options in configurations(table[name]):
            trains_alike(name, options, torch.float64, 4)
    finally:
        torch.set_default_dtype(before)


@each
def test_params_of_several_dtypes(table: dict[str, Any], name: str) -> None:
    for options in configurations(table[name]):
        mixed = [torch.randn(4, 3, dtype=d) for d in (torch.float64, torch.float32, torch.complex64)]
        others = [p.clone() for p in mixed]
        a, b = ours(name, mixed, **options), torchs(name, others, **copy.deepcopy(options))
        for _ in range(4):
            for p, q in zip(mixed, others, strict=True):
                p.grad = torch.randn_like(p)
                q.grad = p.grad.clone()
            a.step()
            b.step()
        for p, q in zip(mixed, others, strict=True):
            tolerance = 1e-11 if p.dtype == torch.float64 else 2e-5
            torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


@each
def test_steps_without_gradients_do_nothing(table: dict[str, Any], name: str) -> None:
    for options in configurations(table[name]):
        p = [torch.randn(2, 3, requires_grad=True) for _ in range(5)]
        before = [x.detach().clone() for x in p]
        opt = ours(name, p, **options)
        opt.step()
        assert same(p, before)
        assert name == "Adagrad" or not opt.state


@each
def test_steps_with_gradients_of_zero_do_nothing(table: dict[str, Any], name: str) -> None:
    for options in configurations(table[name]):
        # Weight decay acts without gradients, and ASGD's lambd is a decay.
        options["weight_decay"] = 0
        if name == "ASGD":
            options["lambd"] = 0.0
        if name == "Rprop":
            del options["weight_decay"]
        p = [torch.randn(2, 3, requires_grad=True)]
        before = [x.detach().clone() for x in p]
        opt = ours(name, p, **options)
        for _ in range(3):
            p[0].grad = torch.zeros(2, 3)
            opt.step()
        assert same(p, before)


@each
def test_param_groups_with_their_own_options(table: dict[str, Any], name: str) -> None:
    assert table[name].supports_param_groups
    for options in configurations(table[name]):
        model, x, y = model_and_data()
        other = copy.deepcopy(model)

        def groups(m: Any, options: dict[str, Any] = options) -> list[dict[str, Any]]:
            decay = {} if name == "Rprop" else {"weight_decay": 0.2}
            return [
                {"params": [m[0].weight, m[0].bias], **decay},
                {"params": [m[2].weight], "lr": 0.03, "maximize": not options.get("maximize", False)},
                {"params": m[2].bias},
            ]

        a, b = ours(name, groups(model), **options), torchs(name, groups(other), **copy.deepcopy(options))
        rates = [torch.optim.lr_scheduler.StepLR(o, 2, 0.5) for o in (a, b)]
        for _ in range(5):
            a.step(closure_of(model, x, y, a))
            b.step(closure_of(other, x, y, b))
            for rate in rates:
                rate.step()
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)


@each
def test_found_inf(table: dict[str, Any], name: str) -> None:
    """GradScaler's found_inf for optimizers that unscale by themselves."""
    for options in configurations(table[name]):
        p = [torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)]
        q = [x.detach().clone().requires_grad_() for x in p]
        a, b = ours(name, p, **options), ours(name, q, **copy.deepcopy(options))
        for t, infinite in enumerate((0.0, 1.0, 0.0)):
            for x, z in zip(p, q, strict=True):
                z.grad = torch.full_like(z, t + 1.0)
                x.grad = z.grad * 8
            a.grad_scale, a.found_inf = torch.tensor(8.0), torch.tensor(infinite)
            before, counted = [x.detach().clone() for x in p], copy.deepcopy(list(a.state.values()))
            a.step()
            if infinite:
                assert same(p, before)
                for now, then in zip(a.state.values(), counted, strict=True):
                    assert same(now.values(), then.values())
            else:
                b.step()
        assert same(p, q)


# States and their dicts


@pytest.mark.parametrize("named", [False, True])
@each
def test_state_dict_is_deterministic(table: dict[str, Any], name: str, named: bool) -> None:
    """A copy that resumes from a saved state takes the same steps, bit for bit."""
    for options in configurations(table[name]):
        model, x, y = model_and_data(torch.float32)

        def params(m: Any) -> Any:
            return m.named_parameters() if named else m.parameters()

        opt = ours(name, params(model), **options)
        for _ in range(3):
            opt.step(closure_of(model, x, y, opt))
        saved, other = copy.deepcopy(opt.state_dict()), copy.deepcopy(model)
        again = ours(name, params(other), **options)
        again.load_state_dict(saved)
        for _ in range(3):
            opt.step(closure_of(model, x, y, opt))
            again.step(closure_of(other, x, y, again))
            assert same(model.parameters(), other.parameters())
        assert ("param_names" in again.param_groups[0]) is named
        # A dict that was saved is not written to by the steps after it was loaded.
        third = copy.deepcopy(model)
        fresh = ours(name, params(third), **options)
        kept = copy.deepcopy(saved)
        fresh.load_state_dict(copy.deepcopy(saved))
        fresh.step(closure_of(third, x, y, fresh))
        for i, state in saved["state"].items():
            assert set(state) == set(kept["state"][i])


@each
def test_named_and_unnamed_state_dicts_load_into_each_other(table: dict[str, Any], name: str) -> None:
    for options in configurations(table[name]):
        for from_named, to_named in itertools.product((False, True), repeat=2):
            model, x, y = model_and_data(torch.float32)
            other = copy.deepcopy(model)
            a = ours(name, model.named_parameters() if from_named else model.parameters(), **options)
            b = ours(name, other.named_parameters() if to_named else other.parameters(), **options)
            a.step(closure_of(model, x, y, a))
            b.load_state_dict(copy.deepcopy(a.state_dict()))
            other.load_state_dict(model.state_dict())
            a.step(closure_of(model, x, y, a))
            b.step(closure_of(other, x, y, b))
            assert same(model.parameters(), other.parameters())
            assert ("param_names" in b.param_groups[0]) is (from_named or to_named)


@each
def test_older_state_dicts(table: dict[str, Any], name: str) -> None:
    """Flags that were added after their optimizer may be missing."""
    info = table[name]
    for options in configurations(info):
        model, x, y = model_and_data()
        opt = ours(name, model.parameters(), **options)
        for _ in range(2):
            opt.step(closure_of(model, x, y, opt))
        old = copy.deepcopy(opt.state_dict())
        for group in old["param_groups"]:
            for flag in info.not_og_supported_flags:
                if flag in group:
                    del group[flag]
        other, third = copy.deepcopy(model), copy.deepcopy(model)
        # Options that are not torch's defaults are loaded from the dict.
        a, b = ours(name, other.parameters(), **options), torchs(name, third.parameters(), **copy.deepcopy(options))
        a.load_state_dict(copy.deepcopy(old))
        b.load_state_dict(copy.deepcopy(old))
        assert [list(g) for g in a.param_groups] == [list(g) for g in b.param_groups]
        for _ in range(2):
            a.step(closure_of(other, x, y, a))
            b.step(closure_of(third, x, y, b))
        for p, q in zip(other.parameters(), third.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)


@each
def test_step_counts_that_are_numbers(table: dict[str, Any], name: str) -> None:
    for options in configurations(table[name]):
        model, x, y = model_and_data(torch.float32)
        opt = ours(name, model.parameters(), **options)
        opt.step(closure_of(model, x, y, opt))
        saved, other = copy.deepcopy(opt.state_dict()), copy.deepcopy(model)
        for state in saved["state"].values():
            if "step" in state:
                state["step"] = state["step"].item()
        again = ours(name, other.parameters(), **options)
        again.load_state_dict(saved)
        opt.step(closure_of(model, x, y, opt))
        again.step(closure_of(other, x, y, again))
        assert same(model.parameters(), other.parameters())
        assert all(isinstance(s["step"], Tensor) for s in again.state.values() if "step" in s)


@each
def test_saved_weights_only(table: dict[str, Any], name: str) -> None:
    for options in configurations(table[name]):
        model, x, y = model_and_data(torch.float32)
        opt = ours(name, model.parameters(), **options)
        opt.step(closure_of(model, x, y, opt))
        saved = opt.state_dict()
        loaded = through_file(saved)
        assert loaded["param_groups"] == saved["param_groups"]
        assert loaded["state"].keys() == saved["state"].keys()
        for i, state in saved["state"].items():
            assert list(loaded["state"][i]) == list(state)
            assert same(loaded["state"][i].values(), state.values())


@each
def test_hooks_on_state_dicts(table: dict[str, Any], name: str) -> None:
    for options in configurations(table[name]):
        p = [torch.ones(3, requires_grad=True)]
        p[0].grad = torch.ones(3)
        opt = ours(name, p, **options)
        opt.step()
        seen: list[Any] = []

        def changed(o: Any, d: dict[str, Any]) -> dict[str, Any]:
            return {**d, "param_groups": [{**g, "lr": 0.125} for g in d["param_groups"]]}

        handles = [
            opt.register_state_dict_pre_hook(lambda o, seen=seen: seen.append("before saving")),
            opt.register_state_dict_post_hook(changed),
            opt.register_load_state_dict_post_hook(lambda o, seen=seen: seen.append(o.param_groups[0]["lr"])),
            opt.register_load_state_dict_post_hook(lambda o, seen=seen: seen.append("first"), prepend=True),
        ]
        saved = opt.state_dict()
        assert saved["param_groups"][0]["lr"] == 0.125
        assert opt.param_groups[0]["lr"] != 0.125
        opt.load_state_dict(saved)
        assert opt.param_groups[0]["lr"] == 0.125
        assert seen == ["before saving", "first", 0.125]
        for handle in handles:
            handle.remove()
        opt.load_state_dict(opt.state_dict())
        assert len(seen) == 3
        before = opt.register_load_state_dict_pre_hook(lambda o, d: {**d, "state": {}})
        opt.load_state_dict(opt.state_dict())
        before.remove()
        assert not opt.state


@each
def test_hooks_on_steps(table: dict[str, Any], name: str) -> None:
    from torch.optim import optimizer as module

    def told(what: str) -> Callable[..., None]:
        return lambda *_: seen.append(what)

    for options in configurations(table[name]):
        seen: list[str] = []
        p = [torch.ones(3, requires_grad=True)]
        p[0].grad = torch.ones(3)
        opt = ours(name, p, **options)
        everywhere = [
            module.register_optimizer_step_pre_hook(told("all: before")),
            module.register_optimizer_step_post_hook(told("all: after")),
        ]
        own = [opt.register_step_pre_hook(told("before")), opt.register_step_post_hook(told("after"))]
        opt.step()
        assert seen == ["all: before", "before", "after", "all: after"]
        for handle in (*everywhere, *own):
            handle.remove()
        opt.step()
        assert len(seen) == 4


@each
def test_deepcopy_takes_all_public_attributes(table: dict[str, Any], name: str) -> None:
    for options in configurations(table[name]):
        p = [torch.ones(3, requires_grad=True)]
        opt = ours(name, p, **options)

        def public(o: Any) -> set[str]:
            return {k for k in o.__dict__ if not k.startswith("_")}

        assert public(copy.deepcopy(opt)) == public(opt) == public(torchs(name, p, **copy.deepcopy(options)))
        p[0].grad = torch.ones(3)
        opt.step()
        other = copy.deepcopy(opt)
        (q,) = other.param_groups[0]["params"]
        q.grad = torch.ones(3)
        opt.step()
        other.step()
        assert torch.equal(p[0], q)


@each
def test_printing(table: dict[str, Any], name: str) -> None:
    for options in configurations(table[name]):
        p = [torch.ones(3, requires_grad=True)]
        text = repr(ours(name, p, **options))
        assert text == repr(getattr(torch.optim, name)(p, **copy.deepcopy(options)))
        assert text.startswith(f"{name} (\nParameter Group 0\n")


@each
def test_order_of_params_in_the_state_dict(table: dict[str, Any], name: str) -> None:
    for options in configurations(table[name]):
        p = [torch.randn(n + 1, requires_grad=True) for n in range(4)]
        opt = ours(name, [{"params": p[:1]}, {"params": p[1:]}], **options)
        for x in reversed(p):
            x.grad = torch.ones_like(x)
        opt.step()
        saved = opt.state_dict()
        assert [g["params"] for g in saved["param_groups"]] == [[0], [1, 2, 3]]
        for i, state in saved["state"].items():
            assert all(v.shape == p[i].shape for k, v in state.items() if k not in ("step", "eta", "mu", "mu_product"))
        other = ours(name, [{"params": p[1:]}, {"params": p[:1]}], **options)
        with pytest.raises(ValueError, match="doesn't match the size"):
            other.load_state_dict(saved)
        third = ours(name, p, **options)
        with pytest.raises(ValueError, match="different number of parameter groups"):
            third.load_state_dict(saved)
