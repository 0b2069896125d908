"""State dicts and copies of optimizers of adaptk.torch."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
from torch_cases import (
    Case,
    _seeded,  # noqa: F401
    all_close,
    at,
    close,
    every_case,
    every_class,
    every_dtype,
    give,
    params,
    raw,
    same_bits,
    size,
    torch,
    twins,
)


def through_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("back", [False, True], ids=["into-torch", "from-torch"])
@every_dtype
@every_case
def test_state_dicts_of_and_for_torch(case: Case, dtype: str, back: bool) -> None:
    make = (case.torchs, case.ours) if back else (case.ours, case.torchs)
    a = params(dtype)
    b = twins(a)
    first, reference = make[0](a), case.torchs(b)
    for t in range(4):
        give([a, b], t, but=[0] if t == 0 else [])
        first.step()
        reference.step()
    saved = through_file(first.state_dict())
    wanted = reference.state_dict()
    assert [list(g) for g in saved["param_groups"]] == [list(g) for g in wanted["param_groups"]]
    assert {k: list(v) for k, v in saved["state"].items()} == {k: list(v) for k, v in wanted["state"].items()}
    c = twins(a)
    second = make[1](c)
    second.load_state_dict(saved)
    reference.load_state_dict(through_file(wanted))
    for t in range(4, 9):
        give([c, b], t)
        second.step()
        reference.step()
    all_close(c, b)
    for p, q in zip(c, b, strict=True):
        for name in reference.state[q]:
            # Moments near zero are sums of larger gradients, which determine the error.
            scale = size([state[name] for state in reference.state.values()])
            close(second.state[p][name].to(reference.state[q][name].dtype), reference.state[q][name], name, scale=scale)


@every_case
def test_state_dict_of_an_older_version(case: Case) -> None:
    a = params()
    source = case.torchs(a)
    for t in range(3):
        give([a], t)
        source.step()
    old = source.state_dict()
    for group in old["param_groups"]:
        for key in ("maximize", "foreach", "capturable", "differentiable", "fused", "decoupled_weight_decay"):
            if group.get(key) is not True:
                group.pop(key, None)
    for state in old["state"].values():
        for name in ("step", "mu_product", "eta", "mu"):
            if name in state:
                number = state[name].item()
                state[name] = int(number) if name == "step" else number
    b, c = twins(a), twins(a)
    ours, torchs = case.ours(b), case.torchs(c)
    ours.load_state_dict(copy.deepcopy(old))
    torchs.load_state_dict(copy.deepcopy(old))
    assert [list(g) for g in ours.param_groups] == [list(g) for g in torchs.param_groups]
    for t in range(3, 7):
        give([b, c], t)
        ours.step()
        torchs.step()
    all_close(b, c)


def test_state_dict_of_a_capturable_optimizer() -> None:
    a = params()
    source = torch.optim.Adam(a)
    give([a], 0)
    source.step()
    saved = source.state_dict()
    saved["param_groups"][0]["capturable"] = True
    b = twins(a)
    ours = at.Adam(b)
    ours.load_state_dict(saved)
    give([b], 1)
    with pytest.raises(ValueError, match="capturable"):
        ours.step()
    ours.param_groups[0]["capturable"] = False
    ours.step()
    assert float(ours.state[b[0]]["step"]) == 2


def test_state_dict_of_a_fused_optimizer() -> None:
    a = params(shapes=[(3, 4), (5,)])
    b = twins(a)
    fused, ours = torch.optim.AdamW(a, fused=True), at.AdamW(b, fused=True)
    for t in range(3):
        give([a, b], t)
        fused.step()
        ours.step()
        fused.load_state_dict(through_file(ours.state_dict()))
        ours.load_state_dict(through_file(fused.state_dict()))
        assert ours.state[b[0]]["step"].dtype == fused.state[a[0]]["step"].dtype == torch.float32
    all_close(b, a)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_states_of_16_bit_params_stay_float32(dtype: str) -> None:
    a = params(dtype)
    b = twins(a)
    one, two = at.NAdam(a), at.NAdam(b)
    for t in range(3):
        give([a], t)
        one.step()
    saved = through_file(one.state_dict())
    seen = []
    two.register_load_state_dict_post_hook(lambda o: seen.extend(s["exp_avg"].dtype for s in o.state.values()))
    two.load_state_dict(saved)
    assert set(seen) == {torch.float32}
    for p, q in zip(a, b, strict=True):
        q.data.copy_(p)
        assert all(raw(two.state[q][name]) == raw(value) for name, value in one.state[p].items())
    give([a, b], 9)
    one.step()
    two.step()
    assert same_bits(a, b)
    # Into torch's class as well, which rounds them.
    torchs = torch.optim.NAdam(twins(a))
    torchs.load_state_dict(saved)
    assert next(iter(torchs.state.values()))["exp_avg"].dtype == getattr(torch, dtype)


def test_hooks_that_make_another_state_dict_of_it() -> None:
    a = params("bfloat16", [(3,), (4,)])
    one = at.Adam(a)
    give([a], 0)
    one.step()
    saved = one.state_dict()
    saved["state"] = {i + 10: s for i, s in saved["state"].items()}
    saved["param_groups"][0]["params"] = [10, 11]
    b = twins(a)[:1]
    two = at.Adam(b)

    def first_only(_: Any, given: dict[str, Any]) -> dict[str, Any]:
        groups = [{**given["param_groups"][0], "params": [10]}]
        return {"state": {10: given["state"][10]}, "param_groups": groups}

    two.register_load_state_dict_pre_hook(first_only)
    two.load_state_dict(saved)
    assert raw(two.state[b[0]]["exp_avg"]) == raw(one.state[a[0]]["exp_avg"])
    assert two.state[b[0]]["exp_avg"].dtype == torch.float32
    with pytest.raises(ValueError, match="different number of parameter groups"):
        at.Adam([{"params": b}, {"params": params()}]).load_state_dict(saved)
    assert len(two._optimizer_load_state_dict_pre_hooks) == 1
    assert len(two._optimizer_load_state_dict_post_hooks) == 0


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
@every_class
def test_copies_of_an_optimizer(case: Case, way: str) -> None:
    model = torch.nn.Linear(3, 2)
    opt = case.ours(model.parameters())
    give([list(model.parameters())], 0)
    opt.step(skip_nonfinite=True)
    if way == "deepcopy":
        model2, opt2 = copy.deepcopy((model, opt))
    elif way == "pickle":
        model2, opt2 = pickle.loads(pickle.dumps((model, opt)))
    else:
        file = io.BytesIO()
        torch.save((model, opt), file)
        file.seek(0)
        model2, opt2 = torch.load(file, weights_only=False)
    assert type(opt2) is type(opt)
    a, b = list(model.parameters()), list(model2.parameters())
    assert opt2.param_groups[0]["params"][0] is b[0]
    for t in range(3):
        give([a, b], 1 + t)
        opt.step()
        opt2.step()
    assert same_bits(a, b)
    assert opt2.last_step.skipped is False
