"""Imports point down: every module imports from its own layer or from those below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sdsgsm_fast"
LAYERS = (
    ("common",),
    ("kernels", "losses", "metrics"),
    ("model",),
    ("engine",),
    ("occlusion",),
    ("domains",),
    ("search", "result", "gradients", "refine"),
    ("slots",),
    ("loop",),
    ("attack",),
    ("presets",),
    ("data",),
    ("runs",),
    ("cli",),
)
"""From the bottom up; modules of one layer do not import each other unless they share a folder."""

RANK = {name: place for place, names in enumerate(LAYERS) for name in names}
ENTRIES = ("__init__", "__main__", "public")  # which import whatever is public
FILES = sorted(p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[tuple[str, ...]]:
    """Modules of the package that a file imports, as paths from its top."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("sdsgsm_fast.") for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parent.parts[: len(path.parent.parts) - node.level + 1]
            module = (*base, *(node.module or "").split(".")) if node.module else base
            names = [(*module, alias.name) for alias in node.names]
            exists = [n for n in names if is_module(n)]
            found.update(exists if len(exists) == len(names) else [*exists, module])
    return found


def is_module(parts: tuple[str, ...]) -> bool:
    path = PACKAGE.joinpath(*parts)
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def top(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_down(path: Path) -> None:
    mine = top(path.parts)
    if mine in ENTRIES:
        return
    for module in imported(path):
        if top(module) == mine:
            continue
        assert RANK[top(module)] < RANK[mine], f"{path} imports {'.'.join(module)}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nobody_outside_the_engine_imports_its_inside(path: Path) -> None:
    if path.parts[0] != "engine":
        assert not [module for module in imported(path) if module[0] == "engine" and module[1:]]


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {path.with_suffix("").parts: imported(path) for path in FILES}
    graph = {k[:-1] if k[-1] == "__init__" else k: v for k, v in graph.items()}
    finished: set[tuple[str, ...]] = set()

    def visit(module: tuple[str, ...], above: tuple[tuple[str, ...], ...]) -> None:
        assert module not in above, " → ".join(".".join(m) for m in (*above, module))
        if module not in finished:
            for other in graph.get(module, ()):
                if other != module and other:
                    visit(other, (*above, module))
            finished.add(module)

    for module in graph:
        visit(module, ())


def test_every_top_name_has_a_layer() -> None:
    assert {top(path.parts) for path in FILES} - set(ENTRIES) == set(RANK)


LONGEST = 60  # lines of a function, its docstring aside


@pytest.mark.parametrize("path", FILES, ids=str)
def test_functions_are_short(path: Path) -> None:
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.FunctionDef):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            assert node.end_lineno is not None
            assert first.end_lineno is not None
            docstring = first.end_lineno - first.lineno + 1 if documented else 0
            assert node.end_lineno - node.lineno + 1 - docstring <= LONGEST, node.name


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.rglob("test_*.py")), ids=lambda p: p.name)
def test_no_test_module_imports_another(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert not [name for name in names if name.startswith("test_")]
