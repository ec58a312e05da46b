"""Settings of the documentation site: `make docs` builds it strictly, so a broken link or an unknown option fails."""

from __future__ import annotations

import diffusette

project = "Diffusette"
author = "the Diffusette authors"
copyright = "2026, the Diffusette authors"  # noqa: A001  # Sphinx's name
version = release = diffusette.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_click",
]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(np|numpy|PIL|Image|NDArray|collections|pathlib|msgspec|types|typing|click|dict|Path)(\..*)?"),
    (r"py:.*", r"diffusette\.(models|runtime|export)\..*"),  # types of arguments that have no page
    (
        r"py:.*",
        r"(Any|Array|Bundle|Family|Manifest|Runner|Record|Option|Target|Precision|Progress|Lora|Callable|Iterator|Mapping|optional|\w+Input)",
    ),
]
intersphinx_mapping: dict[str, tuple[str, None]] = {}  # the build needs no network

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["misc.highlighting_failure"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures show them; Google-style sections describe them
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_use_ivar = True

default_role = "code"
smartquotes = False

html_theme = "furo"
html_title = f"Diffusette {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sourcelink = False
html_theme_options = {
    "announcement": f"Documentation of release {release}",
    "light_css_variables": {"color-brand-primary": "#0f766e", "color-brand-content": "#0f766e", "color-announcement-background": "#0f766e"},
    "dark_css_variables": {"color-brand-primary": "#5eead4", "color-brand-content": "#5eead4", "color-announcement-background": "#134e4a"},
}
