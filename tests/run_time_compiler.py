"""NVRTC, for tests of rules that are made at run time on a CUDA device: modules import the fixture `cache`."""

from __future__ import annotations

import glob
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest


def nvrtc() -> str | None:
    """The library of NVRTC, if it is installed."""
    named = os.environ.get("ADAPTK_NVRTC")
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    found = [named] if named else sorted(p for f in folders for p in glob.glob(f"{f}/nvidia/*/lib/libnvrtc.so.*"))
    return next((p for p in found if "builtins" not in p), None)


needs_nvrtc = pytest.mark.skipif(nvrtc() is None, reason="needs nvidia-cuda-nvrtc, or ADAPTK_NVRTC: its library")


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The environment for NVRTC: its name, and a cache folder for compiled code."""
    with pytest.MonkeyPatch.context() as patch:
        if (library := nvrtc()) is not None:
            patch.setenv("ADAPTK_NVRTC", library)
        folder = tmp_path_factory.mktemp("compiled")
        folder.chmod(0o700)
        patch.setenv("ADAPTK_CACHE", str(folder))
        yield folder
