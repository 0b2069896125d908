"""Tests that need a real CUDA device: graphs, concurrent streams, several devices, out of memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import adaptk
import numpy as np
import pytest
from device_arrays import Machine, assert_equal, library

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("real_device")]


@pytest.fixture
def torch(real_device: Machine) -> Any:
    """PyTorch with CUDA."""
    library("torch")
    return pytest.importorskip("torch")


@pytest.fixture
def cupy(real_device: Machine) -> Any:
    library("cupy")
    return pytest.importorskip("cupy")


def host(x: Any) -> np.ndarray[Any, Any]:
    return x.detach().cpu().numpy()


# Graphs


@pytest.mark.parametrize("name", ["Adam", "NAdam", "RAdam", "SGD"])
def test_a_step_in_a_graph(torch: Any, name: str) -> None:
    generator = torch.Generator("cuda").manual_seed(1)
    sizes = (1000, 3, 70_001)
    params = [torch.randn(n, device="cuda", generator=generator) for n in sizes]
    grads = [torch.zeros_like(p) for p in params]
    lr = torch.tensor(0.0, device="cuda")
    on_cpu = [host(p).copy() for p in params]
    optimizer = getattr(adaptk, name)(params, lr=lr, capturable=True, clip_norm=5.0, skip_nonfinite=True)
    expected = getattr(adaptk, name)(on_cpu, lr=1.0, clip_norm=5.0, skip_nonfinite=True)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        lr.fill_(0.5)
        optimizer.step(grads)
    torch.cuda.current_stream().wait_stream(side)
    expected.param_groups[0]["lr"] = 0.5
    expected.step([host(g) for g in grads])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        info = optimizer.step(grads)
    for t in range(1, 8):
        lr.fill_(1.0 / t)
        expected.param_groups[0]["lr"] = float(np.float32(1.0 / t))
        for g in grads:
            g.normal_(generator=generator)
        if t == 4:
            grads[1][0] = torch.inf
        graph.replay()
        torch.cuda.synchronize()
        assert info == expected.step([host(g) for g in grads])
    assert optimizer.step_count == expected.step_count == 7
    assert_equal([host(p) for p in params], on_cpu)


def test_a_graph_uses_a_loaded_state(torch: Any) -> None:
    param, grad = torch.ones(300, device="cuda"), torch.ones(300, device="cuda")
    optimizer = adaptk.NAdam([param], capturable=True)
    graph = torch.cuda.CUDAGraph()
    optimizer.step([grad])
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        optimizer.step([grad])
    saved, before = optimizer.state_dict(), param.clone()
    graph.replay()
    graph.replay()
    torch.cuda.synchronize()
    want = host(param).copy()
    optimizer.load_state_dict(saved)
    param.copy_(before)
    graph.replay()
    graph.replay()
    torch.cuda.synchronize()
    assert_equal(host(param), want)
    assert optimizer.step_count == 3


def test_only_a_capturable_optimizer_is_captured(torch: Any) -> None:
    param, grad = torch.ones(3, device="cuda"), torch.ones(3, device="cuda")
    optimizer = adaptk.SGD([param])

    def capture() -> None:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            grad.add_(1.0)  # otherwise PyTorch warns of an empty graph
            optimizer.step([grad])

    with pytest.raises(RuntimeError, match="capturable=True"):
        capture()
    torch.cuda.synchronize()
    assert optimizer.step_count == 0
    assert host(param).tolist() == [1.0] * 3
    optimizer.step([grad])


def test_a_step_of_pytorchs_class_in_a_graph(torch: Any) -> None:
    import adaptk.torch

    generator = torch.Generator("cuda").manual_seed(1)
    params = [torch.nn.Parameter(torch.randn(n, device="cuda", generator=generator)) for n in (1000, 3)]
    twins = [torch.nn.Parameter(p.detach().cpu()) for p in params]
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer = adaptk.torch.Adam(params, lr=0.1, capturable=True)
    expected = adaptk.torch.Adam(twins, lr=0.1)

    def take_grads() -> None:
        for p, twin in zip(params, twins, strict=True):
            p.grad.normal_(generator=generator)
            twin.grad = p.grad.cpu()

    def capture(o: Any) -> Any:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            params[0].grad.add_(0.0)  # otherwise PyTorch warns of an empty graph
            o.step(clip_norm=1.0)
        return graph

    with pytest.raises(RuntimeError, match="take one step before"):
        capture(optimizer)
    with pytest.raises(RuntimeError, match="capturable is False"):
        capture(adaptk.torch.Adam(params, lr=0.1))
    take_grads()
    optimizer.step()
    expected.step()
    torch.cuda.synchronize()
    graph = capture(optimizer)
    outcome = optimizer.last_step
    with pytest.raises(RuntimeError, match="has not been replayed"):
        _ = outcome.grad_norm
    for _ in range(3):
        take_grads()
        graph.replay()
        expected.step(clip_norm=1.0)
        assert outcome == expected.last_step
    assert_equal([host(p) for p in params], [host(p) for p in twins])
    assert float(optimizer.state[params[0]]["step"]) == 4.0


# Streams


def test_streams_that_do_not_wait_for_each_other(torch: Any) -> None:
    sizes = (2_000_003, 17)
    params = [torch.ones(n, device="cuda") for n in sizes]
    on_cpu = [host(p).copy() for p in params]
    optimizer, expected = adaptk.AdamW(params, skip_nonfinite=True), adaptk.AdamW(on_cpu, skip_nonfinite=True)
    streams = [torch.cuda.Stream() for _ in range(3)]
    rng = np.random.default_rng(0)
    kept = []
    before = torch.cuda.current_stream()
    for t in range(60):
        stream = streams[rng.integers(3)]
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            grads = [torch.full_like(p, 0.01 * t) * torch.linspace(-1, 1, p.numel(), device="cuda") for p in params]
            kept.append((grads, optimizer.step(grads)))
        before = stream
    torch.cuda.synchronize()
    for grads, info in kept:
        assert info == expected.step([host(g) for g in grads])
    assert_equal([host(p) for p in params], on_cpu)


def test_a_named_stream_is_ordered_with_those_of_the_arrays(torch: Any) -> None:
    param = torch.zeros(4_000_000, device="cuda")
    named = torch.cuda.Stream()
    for _ in range(50):
        grad = torch.ones_like(param)
        with adaptk.cuda.stream(named):
            adaptk.ops.sgd(param, grad, step=1, lr=1.0)
        param.add_(1.0)
        # Its memory is reused for the next one.
        del grad
    torch.cuda.synchronize()
    assert host(param).tolist()[::999_999] == [0.0] * 5


def test_a_lookahead_on_a_stream(torch: Any) -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        param = torch.ones(4_000_000, device="cuda")
        optimizer = adaptk.RMSProp([param], nesterov=True, lr=0.5)
        for _ in range(10):
            optimizer.step([torch.ones_like(param)])
            before = param.clone()
            with optimizer.lookahead():
                moved = param.clone()
            after = param.clone()
            assert bool((before == after).all())
            assert bool((moved != before).all())


def test_streams_of_cupy(cupy: Any) -> None:
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream, adaptk.cuda.stream(stream):
        param = cupy.zeros(2_000_000, cupy.float32)
        for _ in range(20):
            adaptk.ops.sgd(param, cupy.ones_like(param), step=1, lr=1.0)
    stream.synchronize()
    assert bool((param == -20.0).all())


# Gradients of a library


def test_gradients_that_pytorch_computes(torch: Any) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Tanh(), torch.nn.Linear(30, 1)).cuda()
    optimizer = adaptk.AdamW(dict(model.named_parameters()), lr=1e-2, clip_norm=1.0)
    on_cpu = {name: host(p).copy() for name, p in model.named_parameters()}
    expected = adaptk.AdamW(on_cpu, lr=1e-2, clip_norm=1.0)
    x = torch.randn(64, 20, device="cuda")
    first = None
    for _ in range(30):
        model.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        first = float(loss) if first is None else first
        grads = {name: p.grad for name, p in model.named_parameters()}
        info = optimizer.step(grads)
        assert info == expected.step({name: host(g) for name, g in grads.items()})
    assert_equal({name: host(p) for name, p in model.named_parameters()}, on_cpu)
    assert float(loss) < 0.5 * first


# Devices and memory


def test_two_devices(torch: Any) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    values = np.linspace(-1, 1, 10_001, dtype=np.float32)
    params = [torch.from_numpy(values).to(f"cuda:{i}") for i in range(2)]
    with pytest.raises(ValueError, match=r"params\[1\]: on cuda:1, but params\[0\] is on cuda:0"):
        adaptk.Adam(params)
    with pytest.raises(ValueError, match="grad: on cuda:1, expected cuda:0"):
        adaptk.ops.sgd(params[0], params[1], step=1)
    optimizers = [adaptk.Adam([p], clip_norm=1.0, skip_nonfinite=True) for p in params]
    on_cpu = values.copy()
    expected = adaptk.Adam([on_cpu], clip_norm=1.0, skip_nonfinite=True)
    for _ in range(3):
        infos = [o.step([p * 2]) for o, p in zip(optimizers, params, strict=True)]
        want = expected.step([on_cpu * 2])
        assert infos == [want, want]
    assert_equal([host(p) for p in params], [on_cpu] * 2)
    assert torch.cuda.current_device() == 0


@pytest.fixture
def emptied(torch: Any) -> Iterator[None]:
    """Empties PyTorch's memory cache before and after the test."""
    torch.cuda.empty_cache()
    yield
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("emptied")
def test_out_of_memory(torch: Any) -> None:
    free, _ = torch.cuda.mem_get_info()
    # A param, two states and, in a look-ahead, a copy of the param: there is no memory for the copy.
    size = int(free * 0.29) // 4
    param = torch.zeros(size, device="cuda")
    optimizer = adaptk.RMSProp([param], nesterov=True)
    with pytest.raises(MemoryError, match=r"cudaMalloc\w*: out of memory"), optimizer.lookahead():
        pass
    # A reduction, which needs no memory of the size of the param.
    assert not bool(param.any())
    small = torch.zeros(3, device="cuda")
    adaptk.ops.sgd(small, torch.ones_like(small), step=1, lr=1.0)
    assert host(small).tolist() == [-1.0] * 3
