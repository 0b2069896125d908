"""Sphinx's settings for these pages: python -m sphinx -W --keep-going -b html docs build/html"""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import adaptk

project = "adaptk"
author = "the adaptk developers"
project_copyright = f"2026, {author}"
version = release = adaptk.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "extension", "paths"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
default_role = "literal"

autodoc_typehints = "none"  # the docstrings have the types in words
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Source", ("Attributes", "params_style")]

# Names of our own have to be there. Others are types in words, and libraries that have pages of their own.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!adaptk\b).*"),
    ("c:identifier", r"size_t|u?int\d+_t"),
]
for module, needed in (("torch", "torch"), ("jax", "adaptk._jax")):
    if find_spec(needed) is None:
        nitpick_ignore_regex.append(("py:.*", rf"adaptk\.{module}\b.*"))

html_static_path = ["_static"]
html_theme = "furo"
html_title = f"adaptk {version}"
