"""The headers that the module for JAX is compiled with, for builds in an environment of their own.

    python cpp/cmake/jaxlib_headers.py FOLDER

takes them from a wheel of jaxlib into FOLDER, for ADAPTK_JAX_INCLUDE. They are the same for every Python and system.
Where FOLDER has them, nothing is done.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# A module that was compiled with older headers is taken by newer versions of JAX, and not the other way about.
VERSION = "0.6.2"


def main(folder: Path) -> None:
    stamp = folder / "version.txt"
    if stamp.is_file() and stamp.read_text() == VERSION:
        return
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work]
        # One that exists, whatever runs this.
        command += ["--only-binary=:all:", "--python-version=3.12", "--platform=macosx_11_0_arm64"]
        subprocess.run([*command, f"jaxlib=={VERSION}"], check=True)
        (wheel,) = Path(work).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            found = [name for name in archive.namelist() if name.startswith("jaxlib/include/xla/ffi/")]
            assert "jaxlib/include/xla/ffi/api/ffi.h" in found, found
            for name in found:
                path = folder / name.removeprefix("jaxlib/include/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))
    stamp.write_text(VERSION)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
