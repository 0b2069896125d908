"""The tiers of tests, and fixtures that change the state of the library and restore it."""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

# Before they are imported, so that their failed assertions are explained as in tests.
pytest.register_assert_rewrite("helpers", "optim_cases", "solve_problems", "torch_cases", "torch_processes")

import adaptk  # noqa: E402
import device_arrays  # noqa: E402
import passed_tests  # noqa: E402

try:
    import hypothesis
except ImportError:
    hypothesis = None


@pytest.fixture(scope="session")
def torch() -> Any:
    return pytest.importorskip("torch", reason="needs PyTorch")


@pytest.fixture
def restored() -> Iterator[None]:
    """Restores the instruction set and the number of threads after a test."""
    isa, threads = adaptk.get_isa(), adaptk.get_num_threads()
    try:
        yield
    finally:
        adaptk.set_isa(isa)
        adaptk.set_num_threads(threads)


@pytest.fixture(params=adaptk.available_isas())
def isa(request: pytest.FixtureRequest, restored: None) -> str:
    """Selects each instruction set of this machine."""
    adaptk.set_isa(request.param)
    return request.param


@pytest.fixture(params=[1, 4])
def threads(request: pytest.FixtureRequest, restored: None) -> int:
    """Sets one thread and several."""
    adaptk.set_num_threads(request.param)
    return request.param


# The tiers. `pytest` takes a few minutes; `pytest --full` runs everything; `pytest --exhaustive` runs
# more combinations of it: see CONTRIBUTING.md.


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full",
        action="store_true",
        help="also run the tests marked full and large: builds, sanitizers, other compilers, every combination",
    )
    parser.addoption(
        "--exhaustive",
        action="store_true",
        help="--full, and the tests marked exhaustive: combinations of what that tests one by one",
    )
    parser.addoption("--write-passed", metavar="FILE", help="write which tests passed, for --leave-out-passed")
    parser.addoption(
        "--leave-out-passed",
        metavar="FILE",
        help="leave out what passed before, unless it names a package that has been installed since: passed_tests.py",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.option.full |= config.option.exhaustive
    # Background jobs of a shell ignore Ctrl-C, but some tests send it to themselves.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Marks of SciPy's tests, which are registered in SciPy's configuration.
    for mark in (
        *("fail_slow", "parallel_threads_limit", "thread_unsafe", "iterations"),
        *("array_api_backends", "skip_xp_backends", "xfail_xp_backends", "uses_xp_capabilities", "xfail_on_32bit"),
    ):
        config.addinivalue_line("markers", f"{mark}: SciPy's")
    config.stash[_left_out] = Counter()
    if config.option.write_passed and not hasattr(config, "workerinput"):
        config.pluginmanager.register(passed_tests.Record(config.option.write_passed))
    if hypothesis is not None:
        hypothesis.settings.register_profile("short", max_examples=15, deadline=None)
        hypothesis.settings.register_profile("full", max_examples=50, deadline=None)
        hypothesis.settings.register_profile("exhaustive", max_examples=300, deadline=None)
        tier = "exhaustive" if config.option.exhaustive else "full" if config.option.full else "short"
        hypothesis.settings.load_profile(tier)


_left_out = pytest.StashKey["Counter[str]"]()
_failed = pytest.StashKey[bool]()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests that need the other tier or a device; they are counted, not listed."""

    def leave_out(why: str, out: list[pytest.Item]) -> None:
        if out:
            config.stash[_left_out][why] += len(out)
            config.hook.pytest_deselected(items=out)
            left = set(out)
            items[:] = [item for item in items if item not in left]

    def marked(*marks: str) -> list[pytest.Item]:
        return [item for item in items if any(item.get_closest_marker(name) for name in marks)]

    if not config.option.full:
        leave_out("of the full tier: pytest --full", marked("full", "large"))
    if not config.option.exhaustive:
        leave_out("of the exhaustive tier: pytest --exhaustive", marked("exhaustive"))
    if config.option.leave_out_passed:
        leave_out("passed before", passed_tests.need_not_run(config.option.leave_out_passed, items))
    # Find the device before any test makes the library look for one.
    if not config.option.collectonly and marked("cuda"):
        reason = device_arrays.start(simulated=config.option.full)
        if reason is not None:
            leave_out(reason, marked("cuda"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(session.config.stash[_left_out])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take the counts from one worker of pytest-xdist: all workers deselect the same tests."""
    if output := getattr(node, "workeroutput", None):
        node.config.stash[_left_out] = Counter(output["left_out"])


_NAMES = {"torch": "PyTorch", "jax": "JAX", "scipy": "SciPy"}


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    skipped: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", ()):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        missing = re.match(r"Skipped: (?:could not import '(\w+)|([\w-]+) is not installed$)", reason)
        if missing:
            name = missing[1] or missing[2]
            reason = f"needs {_NAMES.get(name, name)}"
        skipped[reason.removeprefix("Skipped: ")] += 1
    for title, counts in (("left out", config.stash[_left_out]), ("skipped", skipped)):
        if counts:
            terminalreporter.section(title)
            for why, number in counts.most_common():
                terminalreporter.write_line(f"{number:6} {why}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.when == "call":
        item.stash[_failed] = not report.passed
    return report


@pytest.fixture(autouse=True)
def _device(request: pytest.FixtureRequest) -> Iterator[None]:
    """Checks that a test leaves nothing on the device, and that the simulator has found no errors."""
    if request.node.get_closest_marker("cuda") is None:
        yield
        return
    machine = device_arrays.machine()
    machine.begin(request.node.nodeid)
    yield
    found = machine.end()
    # The traceback of a failed test keeps its arrays.
    if not request.node.stash.get(_failed, True):
        assert not found, found


@pytest.fixture
def machine() -> device_arrays.Machine:
    """The device of `cuda` tests, with the calls that were made."""
    return device_arrays.machine()


@pytest.fixture
def simulator(machine: device_arrays.Machine) -> device_arrays.SimulatedMachine:
    """The simulated device, on which calls can be made to fail."""
    if not isinstance(machine, device_arrays.SimulatedMachine):
        pytest.skip("needs the simulator, whose calls can be made to fail")
    return machine


@pytest.fixture
def real_device(machine: device_arrays.Machine) -> device_arrays.Machine:
    """A real device."""
    if machine.simulated:
        pytest.skip("needs a real CUDA device")
    return machine


@pytest.fixture
def device() -> device_arrays.Library:
    """The main library of arrays on the device."""
    return device_arrays.main_library()


@pytest.fixture(params=device_arrays.LIBRARIES)
def library(request: pytest.FixtureRequest) -> device_arrays.Library:
    """Each library, and each way to export arrays on a device."""
    return device_arrays.library(request.param)


@pytest.fixture(params=[0, 1, 2])
def schedule(request: pytest.FixtureRequest, machine: device_arrays.Machine) -> int:
    """Orders of the warps, blocks and atomics of every launch. A real device chooses its own."""
    if isinstance(machine, device_arrays.SimulatedMachine):
        machine.seed = request.param
    elif request.param > 0:
        pytest.skip("needs the simulator, whose schedules can be chosen")
    return request.param
