"""The headers for compiling the module for JAX, for builds in an isolated environment.

    python cpp/cmake/jaxlib_headers.py FOLDER

copies them from a wheel of jaxlib into FOLDER, for ADAPTK_JAX_INCLUDE. They are the same for every Python and system.
If FOLDER has them, nothing is done.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# Newer versions of JAX accept a module compiled with older headers, but not the reverse.
VERSION = "0.6.2"


def main(folder: Path) -> None:
    stamp = folder / "version.txt"
    if stamp.is_file() and stamp.read_text() == VERSION:
        return
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work]
        # A Python version that exists, independent of the one that runs this.
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
