"""How the documentation site is built: `sphinx-build -W docs site`."""

from __future__ import annotations

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils.nodes import Node
from sphinx.util.docutils import SphinxDirective

import probekit

project = "probekit"
author = "The probekit developers"
version = release = probekit.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["images/*.py"]
# In docstrings `this` is code, and a link where it names something of the reference.
default_role = "py:obj"

html_extra_path = ["llms.txt"]
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
nb_execution_timeout = 900
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
    """Escapes characters that docstrings use literally and reStructuredText reads as markup."""
    for number, line in enumerate(lines):
        if number and lines[number - 1].strip() in _PROSE:
            # Napoleon reads the text before the first colon of these sections as a type.
            indent = len(line) - len(line.lstrip())
            line = f"{line[:indent]}: {line[indent:]}"
        if line.lstrip().startswith((">>>", "...")):
            continue
        parts = _CODE.split(line)
        parts[::2] = [_MARKUP.sub(r"\\\1", part) for part in parts[::2]]
        lines[number] = "".join(parts)


class PublicNames(SphinxDirective):
    """Documents every public name of some subpackages: `{public-names} models data`."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[Node]:
        subpackages = self.arguments[0].split()
        lines: list[str] = []
        for module in ("probekit", "probekit.plot"):
            homes = homes_of(module)
            prefix = module.removeprefix("probekit").lstrip(".")
            for name, home in sorted(homes.items(), key=lambda pair: (pair[1], pair[0])):
                if (prefix or home.split(".")[0]) in subpackages:
                    lines += documented(module, name)
        if not lines:
            raise self.error(f"no public name is defined in {self.arguments[0]}")
        return self.parse_text_to_nodes("```{eval-rst}\n" + "\n".join(lines) + "\n```")


def homes_of(package: str) -> dict[str, str]:
    """The module that defines each public name of a package, read from its stub."""
    stub = Path(str(import_module(package).__file__)).with_suffix(".pyi")
    return {
        alias.name: node.module
        for node in ast.parse(stub.read_text()).body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if alias.name != "__version__"
    }


def documented(module: str, name: str) -> list[str]:
    """The directive that documents a name."""
    thing = getattr(import_module(module), name)
    lines = [f".. currentmodule:: {module}", ""]
    if not inspect.isclass(thing):
        return [*lines, f".. autofunction:: {name}", ""]
    if issubclass(thing, Exception):
        return [*lines, f".. autoexception:: {name}", "   :show-inheritance:", ""]
    return [*lines, f".. autoclass:: {name}", "   :members:", ""]


def setup(app: Any) -> dict[str, bool]:
    """Connects the extensions; docstrings are escaped before napoleon reads them."""
    app.add_directive("public-names", PublicNames)
    app.connect("autodoc-process-docstring", plain_docstring, priority=100)
    return {"parallel_read_safe": True}
