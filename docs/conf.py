"""How the documentation site is built: `sphinx-build -W docs site`."""

from __future__ import annotations

import re
from typing import Any

import probekit

project = "probekit"
author = "The probekit developers"
version = release = probekit.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["images/*.py"]
# In docstrings `this` is code, and a link where it names something of the reference.
default_role = "py:obj"

html_theme = "furo"
html_title = f"probekit {release}"
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "source_repository": "https://github.com/probekit/probekit",
    "source_branch": "main",
    "source_directory": "docs/",
}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# The notebooks are stored without outputs and run when the site is built.
nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True
# Without these, pages with a widget would fetch its scripts from the network.
nb_ipywidgets_js: dict[str, dict[str, str]] = {}

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_use_rtype = False
napoleon_custom_sections = [("Source", "returns_style"), ("Attributes", "params_style")]

_PROSE = ("Returns:", "Yields:", "Source:")
_CODE = re.compile(r"(`[^`]*`)")
_MARKUP = re.compile(r"(?<!\\)([*|]|(?<=\w)_(?!\w))")


def plain_docstring(
    app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """Keeps signs that are markup in reStructuredText what they are in our docstrings: themselves."""
    for number, line in enumerate(lines):
        if number and lines[number - 1].strip() in _PROSE:
            # Napoleon takes what stands before the first colon of these sections for a type.
            indent = len(line) - len(line.lstrip())
            line = f"{line[:indent]}: {line[indent:]}"
        if line.lstrip().startswith((">>>", "...")):
            continue
        parts = _CODE.split(line)
        parts[::2] = [_MARKUP.sub(r"\\\1", part) for part in parts[::2]]
        lines[number] = "".join(parts)


def setup(app: Any) -> dict[str, bool]:
    """Runs before napoleon, which knows no such signs."""
    app.connect("autodoc-process-docstring", plain_docstring, priority=100)
    return {"parallel_read_safe": True}
