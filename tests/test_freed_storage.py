"""PyTorch tensors whose storage was freed or shrunk, as in sharded training: an error, not a crash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import adaptk
import pytest

torch = pytest.importorskip("torch")
import adaptk.torch as at  # noqa: E402

# The new size of a storage in bytes; the offset of a tensor in its storage in elements.
SIZES = {"freed": 0, "made smaller": 16}
PLACES = {"at its beginning": 0, "further on": 6}


def tensor(offset: int, n: int = 20) -> Any:
    return torch.ones(offset + n)[offset:]


@pytest.fixture(params=["native", "DLPack"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Reads tensors natively and through DLPack."""
    if request.param == "DLPack":
        monkeypatch.setattr(at._private, "face", dict)
    elif not at._private.face():
        pytest.skip("this PyTorch is looked at by DLPack alone")
    return request.param


def stepped(offset: int) -> tuple[Any, Any]:
    p = torch.nn.Parameter(tensor(offset))
    opt = at.Adam([p, torch.nn.Parameter(torch.ones(3))], lr=0.1)
    for q in opt.param_groups[0]["params"]:
        q.grad = tensor(offset, q.numel())
    opt.step()
    return p, opt


WHICH: dict[str, Callable[[Any, Any], Any]] = {
    "gradient": lambda p, opt: p.grad,
    "param": lambda p, opt: p,
    "state": lambda p, opt: opt.state[p]["exp_avg_sq"],
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("which", WHICH)
def test_a_freed_storage(way: str, which: str, size: str, place: str) -> None:
    p, opt = stepped(PLACES[place])
    second = opt.param_groups[0]["params"][1]
    t = WHICH[which](p, opt)
    t.untyped_storage().resize_(SIZES[size])
    if (way, size, which) == ("DLPack", "made smaller", "gradient"):
        pytest.skip("an export does not tell how much memory is behind it")
    before = second.detach().clone(), int(opt.state[second]["step"])
    with pytest.raises(ValueError, match=r"(params|grads|exp_avg_sq|gradient of params)\[0\]: .*(storage|memory)"):
        opt.step()
    assert torch.equal(second, before[0])
    assert int(opt.state[second]["step"]) == before[1]


def test_stepping_resumes_after_the_storage_is_restored(way: str) -> None:
    p, opt = stepped(0)
    q, other = stepped(0)
    saved = p.detach().clone()
    p.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="storage"):
        opt.step()
    p.untyped_storage().resize_(80)
    p.data.copy_(saved)
    opt.step()
    other.step()
    assert torch.equal(p, q)


@pytest.mark.parametrize("kind", ["complex", "expanded gradient"])
def test_converted_params_and_gradients(kind: str) -> None:
    dtype = torch.complex64 if kind == "complex" else torch.float32
    p = torch.nn.Parameter(torch.ones(4, 5, dtype=dtype))
    opt = at.SGD([p], lr=0.1)
    p.grad = torch.ones(4, 5, dtype=dtype) if kind == "complex" else torch.ones(5, 4).t()
    opt.step()
    p.grad.untyped_storage().resize_(0)
    before = p.detach().clone()
    with pytest.raises(ValueError, match="storage"):
        opt.step()
    assert torch.equal(p, before)


@pytest.mark.parametrize("place", PLACES)
def test_the_numpy_objects(place: str) -> None:
    p, g = tensor(PLACES[place]), tensor(PLACES[place])
    opt = adaptk.Adam([p], lr=0.1)
    g.untyped_storage().resize_(0)
    before = p.clone()
    with pytest.raises(ValueError, match=r"grads\[0\]: .*storage was freed"):
        opt.step([g])
    with pytest.raises(ValueError, match=r"grad: .*storage was freed"):
        adaptk.ops.sgd(p, g, step=1, lr=0.1)
    assert torch.equal(p, before)
    p.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"params\[0\]: .*storage was freed"):
        opt.step([torch.ones(20)])
