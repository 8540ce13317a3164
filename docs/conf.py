"""How Sphinx builds the documentation site: `make docs`, or `sphinx-build -W --keep-going docs build/docs`."""

import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

import site_docstrings  # noqa: E402
import site_math  # noqa: E402
import site_sources  # noqa: E402

(_version,) = re.findall(
    r'^__version__ = "(.*)"', (DOCS.parent / "jaxprune/__init__.py").read_text(), re.MULTILINE
)

project = "jaxprune"
author = "the jaxprune authors"
project_copyright = author
version = release = _version

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]

# Pages. Notebooks are shown with the outputs that are stored in them, and the examples of pages are doctests:
# nothing is run here, since `make test` runs both.
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
nb_execution_mode = "off"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Reference pages: a page for each name in the tables of `api/`.
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = True
viewcode_follow_imported_members = True
toc_object_entries = False
autodoc_type_aliases = {name: name for name in ("PyTree", "Scope", "Where", "Statistics", "Kind")}

html_math_renderer = "mathml"
html_theme = "sphinx_book_theme"
html_title = f"jaxprune {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_sidebars = {"_modules/**": ["navbar-logo.html", "search-button-field.html"]}
html_copy_source = html_show_sourcelink = False
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": False,
    "navigation_with_keys": False,
    "home_page_in_toc": False,
    "navbar_persistent": [],  # the sidebar has the search field
    "collapse_navbar": True,  # of the reference's pages the sidebar shows those of the section that is open
}


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathml", (site_math.inline, None), (site_math.block, None))
    app.connect("config-inited", lambda app, config: site_sources.write(DOCS))
    app.connect("source-read", site_sources.on_source_read)
    app.connect("autodoc-process-docstring", site_docstrings.on_docstring)
    app.connect("autodoc-process-signature", site_docstrings.on_signature)
    app.connect("autodoc-skip-member", site_docstrings.on_member)
