"""Fixtures that change the state of the library and put it back."""

from __future__ import annotations

from collections.abc import Iterator

import adaptk
import pytest


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
    if request.param > 1 and adaptk.build_info()["openmp"] is None:
        pytest.skip("a build without OpenMP has one thread")
    adaptk.set_num_threads(request.param)
    return request.param
