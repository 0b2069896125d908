"""Stand-ins for the CUDA libraries that a build of PyTorch is linked with: it can be imported without them, on the CPU.

The real libraries take gigabytes, and steps on the CPU call none of them. Each stand-in exports the symbols that
PyTorch's libraries import, with their versions, as functions that fail.
"""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from pathlib import Path

SYSTEM = re.compile(r"lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s|gomp)\.so|ld-linux")
CUDA = re.compile(r"(__)?(cu|nccl|nv)")
NO_DEVICE = 100  # cudaErrorNoDevice


def build(folder: Path) -> list[str]:
    """Build a stand-in for each missing library in the folder of PyTorch's own; needs readelf and cc."""
    libraries = sorted(folder.glob("lib*.so*"))
    defined: set[str] = set()
    undefined: dict[str, str] = {}  # the version by the symbol
    needed: set[str] = set()
    versions: dict[str, set[str]] = defaultdict(set)  # by the library
    for library in libraries:
        command = ["readelf", "--wide", "--dyn-syms", "--dynamic", "--version-info", str(library)]
        file = ""
        for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
            columns = line.split()
            if found := re.search(r"\(NEEDED\).*\[(.*)\]", line):
                needed.add(found[1])
            elif found := re.search(r"File: (\S+)", line):
                file = found[1]
            elif file and (found := re.search(r"Name: (\S+)\s+Flags", line)):
                versions[file].add(found[1])
            elif len(columns) >= 8 and columns[0].rstrip(":").isdigit() and columns[4] != "WEAK":
                name, _, version = columns[7].partition("@")
                if columns[6] == "UND":
                    undefined[name] = version.lstrip("@")
                else:
                    defined.add(name)
    symbols = {n: v for n, v in undefined.items() if n not in defined and CUDA.match(n)}
    missing = sorted(n for n in needed - {library.name for library in libraries} if not SYSTEM.match(n))
    for name in missing:
        # An unversioned symbol may come from any library: the one that is always loaded exports all of them.
        own = {n: v for n, v in symbols.items() if v in versions[name] or (not v and name.startswith("libcudart."))}
        _compile(folder / name, own, versions[name])
    return missing


def _compile(path: Path, symbols: dict[str, str], versions: set[str]) -> None:
    # Functions return an error code or a pointer to a string.
    results = {name: f"(const char *){NO_DEVICE}" if name == "cudaGetDeviceCount" else '"stand-in"' for name in symbols}
    source = "".join(f"const char *{name}(void) {{ return {result}; }}\n" for name, result in results.items())
    command = ["cc", "-w", "-fno-builtin", "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)]
    command.append(f"-Wl,-soname,{path.name}")
    if versions:
        script = path.with_suffix(".map")
        nodes = {v: "".join(f"{name}; " for name, version in symbols.items() if version == v) for v in versions}
        script.write_text("".join(f"{v} {{ {f'global: {names}' if names else ''}}};\n" for v, names in nodes.items()))
        command.append(f"-Wl,--version-script={script}")
    subprocess.run(command, input=source, text=True, check=True)
