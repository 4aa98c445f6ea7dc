"""Imports go downwards, and never in a circle; functions and modules stay of a size that one can read."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CODE = ("edgeprune", "exporters", "device_profiles")
MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS, MOST_FILES, MOST_LOOSE = 300, 60, 8, 16, 8
KEYWORD_FRONT = ("edgeprune/api.py", "prune")
"""Takes everything by keyword, for people who type."""


def sources(repository: Path) -> list[Path]:
    return [path for folder in CODE for path in sorted((repository / folder).rglob("*.py"))]


def test_imports_go_downwards_and_never_in_a_circle(repository: Path, tmp_path: Path) -> None:
    """The layers are in pyproject.toml. They are looked at as a wheel lays the folders out: edgeprune alone at the
    top."""
    shutil.copytree(repository / "edgeprune", tmp_path / "edgeprune")
    for folder in CODE[1:]:
        shutil.copytree(repository / folder, tmp_path / "edgeprune" / folder)
    shutil.copy(repository / "pyproject.toml", tmp_path)
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert "Contracts: 2 kept, 0 broken." in result.stdout


def test_folders_are_small_enough_to_look_through(repository: Path) -> None:
    loose = [path.name for path in (repository / "edgeprune").glob("*.py")]
    assert len(loose) <= MOST_LOOSE, loose
    for root in (*CODE, "tests"):
        for folder in {path.parent for path in (repository / root).rglob("*.py")}:
            assert len(list(folder.glob("*.py"))) <= MOST_FILES, folder


def test_modules_and_functions_are_short(repository: Path) -> None:
    for path in sources(repository):
        text = path.read_text()
        assert len(text.splitlines()) <= MOST_LINES, path
        for function, is_public in functions(ast.parse(text)):
            where = path.relative_to(repository).as_posix(), function.name
            lines = (function.end_lineno or 0) - function.lineno + 1
            assert lines <= MOST_FUNCTION_LINES, (where, lines)
            if is_public and where != KEYWORD_FRONT:
                assert parameters(function) <= MOST_PARAMETERS, where


@pytest.mark.parametrize(
    ("code", "counted", "is_public"),
    [("def f(a, /, b, *c, d=1, **e): ...", 3, True), ("class A:\n def _f(self, a): ...", 1, False)],
)
def test_parameters_are_counted(code: str, counted: int, is_public: bool) -> None:
    ((function, public),) = functions(ast.parse(code))
    assert (parameters(function), public) == (counted, is_public)


def functions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """Every function, and whether others may call it: what is inside a function is its own."""

    def visit(node: ast.AST, is_public: bool) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield child, is_public and not child.name.startswith("_")
                yield from visit(child, False)
            elif isinstance(child, ast.ClassDef):
                yield from visit(child, is_public and not child.name.startswith("_"))
            else:
                yield from visit(child, is_public)

    yield from visit(tree, True)


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Those that a caller gives by name or place."""
    named = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len(named) - (named[:1] in (["self"], ["cls"]))
