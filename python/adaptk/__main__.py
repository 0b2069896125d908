"""``python -m adaptk``: the command line."""

from __future__ import annotations

import sys

from adaptk._cli import main

if __name__ == "__main__":
    sys.exit(main())
