"""Sphinx configuration of the site; `make docs` stages the pages by generate.py and builds them."""

from sga import __version__

project = "sga"
author = "the sga authors"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["site"]
source_suffix = {".md": "markdown"}

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
smartquotes = False  # which makes one dash of the two of an option
default_role = "code"

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # what Lightning says of its hooks is in its own documentation
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"sga {__version__}"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # summaries are fetched, which pages opened as files cannot do
html_static_path = ["static"]
html_css_files = ["site.css"]
pygments_style = "default"
pygments_dark_style = "github-dark"
