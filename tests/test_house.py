"""Import rules: each subpackage imports only from lower layers of the import graph, without cycles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import probekit

PACKAGE = Path(__file__).parents[1] / "probekit"
MODULES = {
    ".".join(("probekit", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
FLOORS = (
    {"errors", "_version"},
    {"checks"},
    {"runtime"},
    {"results"},
    {"models", "data", "replicates"},
    {"perturbations", "capture"},
    {"statistics"},
    {"metrics"},
    {"analysis"},
    {"training"},
    {"plot"},
    {"reports"},
    {"cli"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room(module: str) -> str:
    """The subpackage of a module: `capture` for `probekit.capture.layers`, none for `probekit` itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def statements(tree: ast.AST, lazy: bool) -> Iterator[ast.AST]:
    """The nodes of a tree. If `lazy` is false, only those that run at import."""
    for node in ast.iter_child_nodes(tree):
        if lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from statements(node, lazy)


def imports_in(source: str, module: str, is_package: bool, lazy: bool = True) -> set[str]:
    """Every module that the imports of a source name, at the top level or inside a function."""
    found = set()
    here = module.split(".") if is_package else module.split(".")[:-1]
    for node in statements(ast.parse(source), lazy):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            whole = ".".join([*base, node.module] if node.module else base)
            found |= {whole, *(f"{whole}.{alias.name}" for alias in node.names)}
    return found


@cache
def named_in(module: str, lazy: bool = True) -> set[str]:
    """Every module that the imports of a module name."""
    path = MODULES[module]
    return imports_in(path.read_text(), module, path.name == "__init__.py", lazy)


def imported(module: str, lazy: bool = True) -> set[str]:
    """The modules of the package that a module imports."""
    return {name for name in named_in(module, lazy) if name in MODULES} - {module, "probekit"}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The cycles found by a depth-first search along the edges."""
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(node: str, way: list[str]) -> None:
        if node in way:
            found.append([*way[way.index(node) :], node])
        elif node not in done:
            for other in sorted(graph.get(node, ())):
                walk(other, [*way, node])
            done.add(node)

    for node in sorted(graph):
        walk(node, [])
    return found


# The top-level package imports everything lazily, and no module inside the package imports it.
INSIDE = sorted(set(MODULES) - {"probekit"})


@pytest.mark.parametrize("module", INSIDE)
def test_a_module_imports_only_from_lower_layers_or_its_own_subpackage(module: str) -> None:
    home = room(module)
    if home == "__main__":
        home = "cli"
    assert home in FLOOR, f"give the room {home!r} of {module} its floor in FLOORS"
    upward = {
        other
        for other in imported(module)
        if room(other) != home and FLOOR.get(room(other), len(FLOORS)) > FLOOR[home]
    }
    assert not upward, f"{module} imports upward: {sorted(upward)}"


def test_modules_have_no_import_cycle() -> None:
    # Inside a subpackage, a registry may import the modules that register with it on first use.
    packages = {name for name in MODULES if MODULES[name].name == "__init__.py"}
    graph = {name: imported(name, lazy=False) - packages for name in INSIDE}
    assert circles(graph) == []


def test_subpackages_have_no_import_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for module in INSIDE:
        rooms = graph.setdefault(room(module), set())
        rooms |= {room(other) for other in imported(module)} - {room(module)}
    assert circles(graph) == []


@pytest.mark.parametrize("module", INSIDE)
def test_no_module_imports_the_public_names_of_the_package(module: str) -> None:
    face = {f"probekit.{name}" for name in probekit.__all__} - {"probekit.__version__"}
    assert not named_in(module) & (face - MODULES.keys())


def test_a_lazy_import_inside_a_function_is_detected() -> None:
    source = "def work():\n    from probekit.reports import figures\n    import probekit.cli.app\n"
    found = imports_in(source, "probekit.capture.layers", is_package=False)
    assert {"probekit.reports.figures", "probekit.cli.app"} <= found
    assert not imports_in(source, "probekit.capture.layers", is_package=False, lazy=False)


def test_a_relative_import_is_detected() -> None:
    found = imports_in("from ..reports import page", "probekit.capture.layers", is_package=False)
    assert "probekit.reports.page" in found


def test_a_cycle_is_detected() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c", "a"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
