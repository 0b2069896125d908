"""Training loops with adaptk.torch: scalers, closures, hooks, schedulers, clipping."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from torch_cases import (
    CASES,
    OWN,
    TORCHS,
    Case,
    _seeded,  # noqa: F401
    all_close,
    at,
    close,
    every_class,
    everything,
    give,
    params,
    raw,
    same_bits,
    torch,
    twins,
)


@pytest.mark.parametrize("case", [c for c in CASES if c.name in ("Adam", "SGD", "Adagrad")], ids=str)
def test_grad_scaler(case: Case) -> None:
    a = params()
    b = twins(a)
    ours, torchs = case.ours(a, fused=True), case.torchs(b)
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3) for _ in range(2)]
    for t in range(12):
        skipped = t in (0, 5, 6)
        for scaler, opt, p in zip(scalers, (ours, torchs), (a, b), strict=True):
            scaler.scale(torch.zeros(()))
            give([p], t, scale=float(scaler.get_scale()))
            if skipped:
                p[1].grad[3] = float("nan") if t == 5 else float("inf")
            if t == 8:
                scaler.unscale_(opt)
        grads, before = [raw(p.grad) for p in a], everything(ours)
        for scaler, opt in zip(scalers, (ours, torchs), strict=True):
            scaler.step(opt)
            scaler.update()
        assert scalers[0].get_scale() == scalers[1].get_scale()
        assert [raw(p.grad) for p in a] == grads
        assert ours.last_step.skipped is skipped
        if skipped:
            assert everything(ours) == before
        all_close(a, b)
    assert not hasattr(ours, "grad_scale")


# Like loops that clip gradients after unscale_(): Lightning refuses an optimizer with this flag.
def handles_unscaling(opt: Any) -> bool:
    return bool(getattr(opt, "_step_supports_amp_scaling", False))


def test_a_step_unscales_only_if_fused() -> None:
    for name in ("Adam", "AdamW", "Adagrad", "SGD"):
        for fused in (None, False, True):
            opt, theirs = (getattr(m, name)(params(), fused=fused) for m in (at, torch.optim))
            assert handles_unscaling(opt) == bool(fused)
            # PyTorch 2.10 leaves it out of Adagrad.
            assert handles_unscaling(theirs) == bool(fused) or name == "Adagrad"
    for name in (*TORCHS, *OWN, "Muon"):
        assert not handles_unscaling(getattr(at, name)(params(shapes=[(2, 2)])))
    for name in OWN:
        opt = getattr(at, name)(params(), fused=True)
        again = pickle.loads(pickle.dumps(opt))
        again.load_state_dict(opt.state_dict())
        assert handles_unscaling(opt)
        assert handles_unscaling(copy.deepcopy(again))


@pytest.mark.parametrize("name", ["AdamW", "Rprop", "Lion"])
def test_a_loop_that_unscales_and_clips_by_itself(name: str) -> None:
    """Mixed precision with gradient clipping, as in Lightning."""
    (a,), (b,) = params(shapes=[(50,)]), params(shapes=[(50,)])
    b.data.copy_(a)
    cls = getattr(at, name)
    scaled, plain = cls([a], lr=0.1), cls([b], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for t in range(3):
        scaler.scale(torch.zeros(()))
        give([[a], [b]], t)
        a.grad *= 2.0**12
        if not handles_unscaling(scaled):
            scaler.unscale_(scaled)
        for p in (a, b):
            torch.nn.utils.clip_grad_norm_([p], 0.5)
        scaler.step(scaled)
        scaler.update()
        plain.step()
        assert same_bits([a], [b])


def test_grad_scaler_with_clipping() -> None:
    (a,), (b,) = params(shapes=[(50,)]), params(shapes=[(50,)])
    b.data.copy_(a)
    ours, torchs = at.SGD([a], lr=1.0, fused=True), torch.optim.SGD([b], lr=1.0)
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**12) for _ in range(2)]
    for t in range(3):
        for s in scalers:
            s.scale(torch.zeros(()))
        give([[a], [b]], t, scale=2.0**14)
        scalers[0].step(ours, clip_norm=0.5)
        scalers[1].unscale_(torchs)
        norm = torch.nn.utils.clip_grad_norm_([b], 0.5)
        scalers[1].step(torchs)
        for s in scalers:
            s.update()
        assert ours.last_step.grad_norm == pytest.approx(float(norm), rel=1e-6)
        close(a, b)


@every_class
def test_closures(case: Case) -> None:
    a = params(shapes=[(3,)])
    b = twins(a)
    ours, torchs = case.ours(a), case.torchs(b)

    def closure(opt: Any, p: list[Any]) -> Any:
        def evaluate() -> Any:
            assert torch.is_grad_enabled()
            opt.zero_grad()
            loss = (p[0] - 1).square().sum()
            loss.backward()
            return loss

        return evaluate

    with torch.no_grad():
        for _ in range(4):
            close(ours.step(closure(ours, a)), torchs.step(closure(torchs, b)))
    all_close(a, b)
    assert ours.step(closure=lambda: 5) == 5
    give([a], 1)
    before = everything(ours)
    with pytest.raises(ZeroDivisionError):
        ours.step(lambda: 1 / 0)
    assert everything(ours) == before


def test_hooks() -> None:
    p = params(shapes=[(2,)])
    opt = at.SGD(p, lr=1.0)
    seen: list[Any] = []

    def before(o: Any, args: Any, kwargs: Any) -> Any:
        seen.append(("pre", raw(p[0]), dict(kwargs)))
        return args, {**kwargs, "clip_norm": 1.0}

    def after(o: Any, args: Any, kwargs: Any) -> None:
        seen.append(("post", raw(p[0]), dict(kwargs)))

    handles = [opt.register_step_pre_hook(before), opt.register_step_post_hook(after)]
    start = raw(p[0])
    p[0].grad = torch.tensor([3.0, 4.0])
    opt.step()
    assert opt.last_step.grad_norm == 5.0
    assert seen == [("pre", start, {}), ("post", raw(p[0]), {"clip_norm": 1.0})]
    for h in handles:
        h.remove()
    opt.step()
    assert len(seen) == 2
    assert opt.last_step.grad_norm is None
    from torch.optim.optimizer import register_optimizer_step_post_hook

    several: list[str] = []
    handle = register_optimizer_step_post_hook(lambda o, *_: several.append(type(o).__name__))
    opt.step()
    at.Lion(p).step()
    handle.remove()
    assert several == ["SGD", "Lion"]


def test_hooks_of_a_class_that_overrides_step() -> None:
    calls: list[str] = []

    class Mine(at.Adam):  # type: ignore[name-defined, misc]
        def step(self, closure: Any = None) -> Any:
            calls.append("mine")
            return super().step(closure)

    p = params(shapes=[(3,)])
    at.Adam(p)
    opt = Mine(p)
    opt.register_step_pre_hook(lambda *_: calls.append("before"))
    opt.register_step_post_hook(lambda *_: calls.append("after"))
    give([p], 0)
    opt.step()
    assert calls == ["before", "mine", "after"]


def test_pre_hooks_change_the_arguments() -> None:
    p = params(shapes=[(3,)])
    opt = at.SGD(p)
    give([p], 0)
    opt.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: 7.0), kwargs))
    assert opt.step() == 7.0
    opt.register_step_pre_hook(lambda *_: 3)
    with pytest.raises(RuntimeError, match="pre-hook"):
        opt.step()


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")  # of PyTorch 2.10
def test_profilers_see_the_step() -> None:
    p = params(shapes=[(3,)])
    opt = at.Adam(p)
    give([p], 0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        opt.step()
    assert "Optimizer.step#Adam.step" in {e.key for e in seen.key_averages()}
    with torch.autograd.profiler.profile() as seen_by_the_older_one:
        opt.step()
    assert "Optimizer.step#Adam.step" in {e.key for e in seen_by_the_older_one.key_averages()}


def test_hooks_that_step() -> None:
    """A step inside a hook or a closure is a separate step, as with torch's."""
    results = []
    for module in (at, torch.optim):
        torch.manual_seed(4)
        p = params("float64", [(3,)])
        opt = module.Adam(p, lr=0.1)
        depth = [0]

        def again(o: Any, *_: Any, depth: list[int] = depth) -> None:
            depth[0] += 1
            if depth[0] < 3:
                o.step()
            depth[0] -= 1

        def closure(o: Any = opt) -> None:
            o.step()

        give([p], 0)
        opt.register_step_post_hook(again)
        opt.step()
        opt.step(closure)
        results.append((p[0].detach(), float(opt.state[p[0]]["step"])))
    assert results[0][1] == results[1][1] == 9
    close(results[0][0], results[1][0])


@pytest.mark.parametrize("kind", ["StepLR", "OneCycleLR", "OneCycleLR-betas", "ReduceLROnPlateau", "LambdaLR"])
def test_schedulers(kind: str) -> None:
    from torch.optim import lr_scheduler

    case = Case("AdamW", {}) if kind == "OneCycleLR-betas" else Case("SGD", {"lr": 0.1, "momentum": 0.9})
    a = params("float64")
    b = twins(a)
    ours, torchs = case.ours(a), case.torchs(b)

    def scheduler(opt: Any) -> Any:
        if kind == "StepLR":
            return lr_scheduler.StepLR(opt, step_size=3, gamma=0.5)
        if kind.startswith("OneCycleLR"):
            return lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=16, cycle_momentum=True)
        if kind == "ReduceLROnPlateau":
            return lr_scheduler.ReduceLROnPlateau(opt, patience=1, factor=0.3)
        return lr_scheduler.LambdaLR(opt, lambda t: 1 / (t + 1))

    pair = [scheduler(ours), scheduler(torchs)]
    rates = set()
    for t in range(12):
        give([a, b], t)
        ours.step()
        torchs.step()
        for s in pair:
            s.step(*([1.0] if kind == "ReduceLROnPlateau" else []))
        assert ours.param_groups[0]["lr"] == torchs.param_groups[0]["lr"]
        rates.add(ours.param_groups[0]["lr"])
    all_close(a, b)
    assert len(rates) > 2


@pytest.mark.parametrize("bound", [0.01, 1.0, 1e6, float("inf")])
def test_clipping_matches_torch(bound: float) -> None:
    a = params("float64", [(30, 4), (5,), ()])
    b = twins(a)
    ours, torchs = at.SGD(a, lr=1.0), torch.optim.SGD(b, lr=1.0)
    for t in range(3):
        give([a, b], t, scale=3.0)
        grads = [raw(p.grad) for p in a]
        ours.step(clip_norm=bound)
        norm = float(torch.nn.utils.clip_grad_norm_(b, bound)) if bound != float("inf") else None
        assert [raw(p.grad) for p in a] == grads
        if norm is not None:
            assert ours.last_step.grad_norm == pytest.approx(norm, rel=1e-14)
            if norm > bound:  # torch divides by a norm that is 1e-6 larger
                for p in b:
                    p.grad *= (norm + 1e-6) / norm
        torchs.step()
        all_close(a, b)


def test_clipping_of_complex_gradients() -> None:
    a = params("complex128", [(30,)]) + params("float64", [(4,)])
    b = twins(a)
    ours, torchs = at.SGD(a, lr=1.0), torch.optim.SGD(b, lr=1.0)
    give([a, b], 0)
    ours.step(clip_norm=0.5)
    norm = float(torch.nn.utils.clip_grad_norm_(b, 0.5))
    torchs.step()
    assert ours.last_step.grad_norm == pytest.approx(norm, rel=1e-14)
    all_close(a, b, 1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@every_class
def test_skipped_steps_change_nothing(case: Case, bad: float) -> None:
    p = params(shapes=[(3, 4), (5,)])
    opt = case.ours(p)
    for t in range(3):
        give([p], t)
        if t != 1:
            p[1].grad[2] = bad
            before = everything(opt)
            opt.step(skip_nonfinite=True)
            assert opt.last_step.skipped
            assert everything(opt) == before
        else:
            opt.step(skip_nonfinite=True)
            assert not opt.last_step.skipped
            assert opt.last_step.grad_norm > 0


def test_zero_grad() -> None:
    p = params()
    opt = at.Adam(p)
    give([p], 0)
    opt.step()
    opt.zero_grad(set_to_none=False)
    assert all(bool((x.grad == 0).all()) for x in p)
    opt.step()
    opt.zero_grad()
    assert all(x.grad is None for x in p)
    before = everything(opt)
    opt.step()
    assert everything(opt) == before
