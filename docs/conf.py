"""Sphinx's settings for these pages: python -m sphinx -W --keep-going -b html docs build/html"""

import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import adaptk

project = "adaptk"
author = "the adaptk developers"
project_copyright = f"2026, {author}"
version = release = adaptk.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "extension",
    "paths",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
default_role = "literal"

# Formulas become MathML, which browsers draw without a network. The font has braces and roots that grow.
html_math_renderer = "mathml"

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
for module, needed in (("torch", ["torch"]), (r"curriculum\.TorchSampler", ["torch"]), ("jax", ["jax", "adaptk._jax"])):
    if any(find_spec(name) is None for name in needed):
        nitpick_ignore_regex.append(("py:.*", rf"adaptk\.{module}\b.*"))

# The examples run while the pages are built. Their pages, and what they draw, are written to docs/gallery.
sphinx_gallery_conf = {
    "examples_dirs": "../examples/gallery",
    "gallery_dirs": "gallery",
    "subsection_order": [
        f"../examples/gallery/{section}" for section in ("first_steps", "rules", "training", "solvers")
    ],
    "within_subsection_order": "extension.GalleryOrder",
    "filename_pattern": r"\.py$",
    "reset_modules": ("matplotlib", "extension.strict_warnings"),
    "reset_modules_order": "both",
    "doc_module": ("adaptk",),
    "reference_url": {"adaptk": None},
    "backreferences_dir": "gallery/backreferences",
    "thumbnail_size": (480, 336),
    "image_srcset": ["2x"],
    "download_all_examples": False,
    "write_computation_times": False,
    "remove_config_comments": True,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 1e9,
}

html_theme = "furo"
html_title = f"adaptk {version}"
html_static_path = ["_static", str(files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf")]
html_css_files = ["style.css"]
