"""The site of `make docs`. Its pages lie where a reader of the repository finds them; `hooks.py` adds what Sphinx lacks."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]  # hooks.py, and the order of the rooms

project = "hapo_lab"
copyright = "MIT licence"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.viewcode", "hooks"]
root_doc = "README"
include_patterns = ["*.md", "benchmarks/README.md", "docs/*.md", "docs/reference/*.rst", "notebooks/*.ipynb"]
exclude_patterns = [".*", "build", "data", "dist", "hapo_lab", "site", "tests", "notebooks/runs"]

# Markdown and lessons, as they are committed
nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = "Finds hapo_lab"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

# The reference, from the docstrings
default_role = "code"
highlight_language = "none"
autosummary_generate = False
autodoc_default_options = {"members": True, "member-order": "bysource",
                           "exclude-members": "set"}  # which matplotlib gives to every kind of Figure
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

# A page is read from the disk: nothing is fetched
html_theme = "furo"
html_title = "hapo_lab"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["player.js"]
html_math_renderer = "mathml"
html_show_search_summary = False  # it would read the found pages, which no browser allows from a folder
html_copy_source = False
html_show_sphinx = False
