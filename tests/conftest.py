"""Fixtures that change the state of the library and put it back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

# Before anything imports them: what they assert is shown as in the tests.
pytest.register_assert_rewrite("helpers", "optim_cases", "solve_problems", "torch_cases", "torch_processes")

import adaptk  # noqa: E402
import device_arrays  # noqa: E402


@pytest.fixture(scope="session")
def torch() -> Any:
    return pytest.importorskip("torch", reason="needs PyTorch")


@pytest.fixture
def restored() -> Iterator[None]:
    """Whatever a test does to the instruction set and the number of threads is undone."""
    isa, threads = adaptk.get_isa(), adaptk.get_num_threads()
    try:
        yield
    finally:
        adaptk.set_isa(isa)
        adaptk.set_num_threads(threads)


@pytest.fixture(params=adaptk.available_isas())
def isa(request: pytest.FixtureRequest, restored: None) -> str:
    """Each instruction set that this machine has, in use."""
    adaptk.set_isa(request.param)
    return request.param


@pytest.fixture(params=[1, 4])
def threads(request: pytest.FixtureRequest, restored: None) -> int:
    """One thread and several, in use."""
    adaptk.set_num_threads(request.param)
    return request.param


# Tests that are marked `cuda` run on a device, a simulated one where ADAPTK_PTX_SIMULATOR says where the simulator is.

_failed = pytest.StashKey[bool]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """The device is found before any test makes the library look for one."""
    chosen = [item for item in session.items if item.get_closest_marker("cuda")]
    if not chosen or session.config.option.collectonly:
        return
    if (reason := device_arrays.start()) is not None:
        for item in chosen:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.when == "call":
        item.stash[_failed] = not report.passed
    return report


@pytest.fixture(autouse=True)
def _device(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test on a device leaves nothing on it, and the simulator had nothing to complain of."""
    if request.node.get_closest_marker("cuda") is None:
        yield
        return
    machine = device_arrays.machine()
    machine.begin(request.node.nodeid)
    yield
    found = machine.end()
    # A test that failed has its arrays in the traceback.
    if not request.node.stash.get(_failed, True):
        assert not found, found


@pytest.fixture
def machine() -> device_arrays.Machine:
    """The device that `cuda` tests run on, and the calls that have been made to it."""
    return device_arrays.machine()


@pytest.fixture
def simulator(machine: device_arrays.Machine) -> device_arrays.SimulatedMachine:
    """The simulated device, where calls can be made to fail."""
    if not isinstance(machine, device_arrays.SimulatedMachine):
        pytest.skip("needs the simulator, whose calls can be made to fail")
    return machine


@pytest.fixture
def real_device(machine: device_arrays.Machine) -> device_arrays.Machine:
    """A device that is no simulation."""
    if machine.simulated:
        pytest.skip("needs a real CUDA device")
    return machine


@pytest.fixture
def device() -> device_arrays.Library:
    """The library whose arrays are on the device."""
    return device_arrays.main_library()


@pytest.fixture(params=device_arrays.LIBRARIES)
def library(request: pytest.FixtureRequest) -> device_arrays.Library:
    """Each library and each way of exporting arrays on a device."""
    return device_arrays.library(request.param)


@pytest.fixture(params=[0, 1, 2])
def schedule(request: pytest.FixtureRequest, machine: device_arrays.Machine) -> int:
    """Orders in which the warps, blocks and atomics of every launch run. A real device has its own."""
    if isinstance(machine, device_arrays.SimulatedMachine):
        machine.seed = request.param
    elif request.param > 0:
        pytest.skip("needs the simulator, whose schedules can be chosen")
    return request.param


def pytest_configure(config: pytest.Config) -> None:
    """Marks that SciPy's tests have, which its own configuration makes known."""
    for mark in (
        *("fail_slow", "parallel_threads_limit", "thread_unsafe", "iterations"),
        *("array_api_backends", "skip_xp_backends", "xfail_xp_backends", "uses_xp_capabilities", "xfail_on_32bit"),
    ):
        config.addinivalue_line("markers", f"{mark}: SciPy's")
