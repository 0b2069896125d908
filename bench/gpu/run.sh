#!/usr/bin/env bash
# Builds adaptk for the GPU of this machine, tests it, compares its bits with the CPU's, times it, and looks at its
# kernels with compute-sanitizer and ncu, in less than nine minutes: docs/guide/cuda.md. Options: --help.
set -euo pipefail
exec python3 "$(dirname "${BASH_SOURCE[0]}")/run.py" "$@"
