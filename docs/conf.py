"""The site: pages in Markdown (MyST), the API from the docstrings, three pages with figures that answer.

Built by `make docs`, with warnings as errors and without the network.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

from sfplus_kernels import __version__  # noqa: E402 from this folder

project = "sfplus_kernels"
author = "the sfplus_kernels authors"
copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",  # docstrings with "Args:"
    "sphinx_copybutton",
    "figures",  # _ext/figures.py
]
exclude_patterns = ["_build", "node_modules"]
nitpicky = False  # signatures name torch's types, whose documentation is elsewhere

myst_heading_anchors = 4
myst_enable_extensions = ["html_image"]  # <img> with a width, which GitHub shows too

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "sfplus_kernels"
html_favicon = "_static/favicon.svg"
html_static_path = [
    "_static",
    "node_modules/d3/dist/d3.min.js",  # from npm: docs/package.json
    "node_modules/@observablehq/plot/dist/plot.umd.min.js",
]
html_css_files = ["figures.css"]
html_copy_source = False
html_theme_options = {
    "sidebar_hide_name": False,
    "navigation_with_keys": True,
}
