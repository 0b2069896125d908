"""All tests of adaptk.torch's steps through DLPack and attributes: tensors, options, errors."""

from __future__ import annotations

import pytest
import test_torch_dlpack
from test_torch_dlpack import unknown  # noqa: F401
from test_torch_failures import *  # noqa: F403
from test_torch_options import *  # noqa: F403
from test_torch_rules import *  # noqa: F403
from test_torch_tensors import *  # noqa: F403
from test_torch_threads import *  # noqa: F403

# A selection of them is in test_torch_dlpack.py.
pytestmark = pytest.mark.exhaustive

for name in [name for name in vars(test_torch_dlpack) if name.startswith("test_")]:
    globals().pop(name, None)
