"""Every name and signature of TensorRT and CUDA that the runner uses, against the published bindings.

mypy collects the uses from the runner's source, and looks each up in stub files that are made from the bindings
themselves. No expression may be of an unknown type, so that none escapes it.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_cuda
import fake_tensorrt
import published_bindings
import pytest
from published_bindings import ROOT, Bindings
from shared_by_workers import made_once

RUNNERS = ROOT / "edgeprune" / "runners" / "tensorrt"
API, CUDA = RUNNERS / "api.py", RUNNERS / "cuda_memory.py"
# What tensorrt_api.py imports is followed; all else (numpy, by the bindings' stubs) would only take time.
CONFIGURATION = """
[mypy]
python_version = 3.11
strict = true
disallow_any_expr = true
warn_unused_ignores = false
follow_imports = silent
[mypy-edgeprune]
follow_imports = skip
[mypy-numpy.*]
follow_imports = skip
follow_imports_for_stubs = true
[mypy-tensorrt,tensorrt_bindings.*]
ignore_errors = true
"""


@pytest.fixture(scope="session", params=published_bindings.VERSIONS)
def bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bindings:

    def make(folder: Path) -> None:
        made = published_bindings.bindings(request.param, folder)
        own = {name: text for name, text in made.environment.items() if os.environ.get(name) != text}
        (folder / "made.json").write_text(json.dumps({"environment": own, "stubs": str(made.stubs)}))

    folder = made_once(tmp_path_factory, f"bindings-{request.param}", make)
    made = json.loads((folder / "made.json").read_text())
    return Bindings(request.param, {**os.environ, **made["environment"]}, Path(made["stubs"]))


@pytest.fixture(scope="session")
def complaints(bindings: Bindings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What mypy says of each of the `variants`, in one run for all."""

    def make(folder: Path) -> None:
        (folder / "complaints.json").write_text(json.dumps(checked(bindings, variants(bindings), folder)))

    folder = made_once(tmp_path_factory, f"complaints-{bindings.version}", make)
    return json.loads((folder / "complaints.json").read_text())


def checked(bindings: Bindings, texts: Mapping[str, str], folder: Path) -> dict[str, list[str]]:
    """mypy's complaints on each text, as a module with this name."""
    configuration, paths = folder / "mypy.ini", [folder / f"{name}.py" for name in texts]
    configuration.write_text(CONFIGURATION)
    for path, text in zip(paths, texts.values(), strict=True):
        path.write_text(text)
    command = [sys.executable, "-m", "mypy", "--config-file", configuration, "--cache-dir", folder / "cache"]
    environment = {**os.environ, "MYPYPATH": os.pathsep.join([str(bindings.stubs), str(ROOT)])}
    result = subprocess.run(
        [*command, "--no-error-summary", *paths],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode in (0, 1), result.stderr
    found: dict[str, list[str]] = {name: [] for name in texts}
    for line in result.stdout.splitlines():
        found[line.partition(".py:")[0]].append(line)
    return found


def variants(bindings: Bindings) -> dict[str, str]:
    """tensorrt_api.py as it is, and with every mistake that must be found."""
    text = API.read_text()
    wrong = text
    for right, other in WRONG_ARGUMENTS.items():
        assert wrong.count(right) == 1, right
        wrong = wrong.replace(right, other)
    return {
        "right": text,
        "wrong": wrong,
        "dropped": text.replace("trt.BuilderFlag.TF32", "trt.BuilderFlag.FP16"),
        **{f"misspelt_{n}": misspelt(text, names) for n, names in enumerate(mistakes(bindings, text))},
    }


def mistakes(bindings: Bindings, text: str) -> list[list[ast.Attribute]]:
    """Every name behind a dot, one of each function at a time: an unknown name would hide those that follow from it."""
    real = stub_signatures(bindings.stubs / "tensorrt_bindings" / "tensorrt.pyi")
    known = {*real, *itertools.chain.from_iterable(real.values())}
    rounds = itertools.zip_longest(*names_by_function(text, known))
    return [[name for name in names if name is not None] for names in rounds]


def test_every_name_and_signature_of_tensorrt_exists(complaints: dict[str, list[str]]) -> None:
    assert complaints["right"] == []


def test_whatever_name_is_misspelt_is_found(bindings: Bindings, complaints: dict[str, list[str]]) -> None:
    rounds = mistakes(bindings, API.read_text())
    assert sum(map(len, rounds)) > 80
    for number, names in enumerate(rounds):
        for name in names:
            place = f"misspelt_{number}.py:{name.end_lineno}:"
            assert any(line.startswith(place) for line in complaints[f"misspelt_{number}"]), ast.unparse(name)


WRONG_ARGUMENTS = {
    "execute_async_v3(stream)": "execute_async_v3(stream, stream)",  # too many
    "get_tensor_dtype(name)": "get_tensor_dtype()",  # too few
    "set_tensor_address(name, address)": "set_tensor_address(address, name)",  # the wrong order
    "trt.LayerInformationFormat.JSON": "trt.TensorIOMode.OUTPUT",  # a member of another enum
    "trt.Dims([size, *others])": "trt.Dims(size)",  # another type
}


def test_wrong_arguments_are_found(bindings: Bindings, complaints: dict[str, list[str]]) -> None:
    lines = variants(bindings)["wrong"].splitlines()
    for wrong in WRONG_ARGUMENTS.values():
        number = next(number for number, line in enumerate(lines, start=1) if wrong in line)
        assert any(line.startswith(f"wrong.py:{number}:") for line in complaints["wrong"]), wrong


def test_what_version_11_dropped_is_found(bindings: Bindings, complaints: dict[str, list[str]]) -> None:
    found = any("FP16" in line for line in complaints["dropped"])
    assert found == bindings.version.startswith("11.")


LIVE = r"""
import re
import sys
from edgeprune.errors import InputError
from edgeprune.runners.tensorrt import api
from edgeprune.runners.tensorrt.batch_range import BatchRange
trt = api.trt
assert api.VERSION == sys.argv[1], api.VERSION
for name in sys.argv[2:]:
    value = trt
    for part in name.split("."):
        value = getattr(value, part)
# mypy cannot know what the bindings' docstring gives in C++ (published_bindings.py)
assert re.search(r"OnnxParser, index: [\w.]+\) -> nvonnxparser::IParserError", trt.OnnxParser.get_error.__doc__)
times = api.LayerTimes()
times.report_layer_time("conv", 0.5)
assert times.times == {"conv": [0.5]}
assert [api._sizes(trt.Dims([2, *others])) for others in ((), (3, -1))] == [(2,), (2, 3, -1)]
assert [api._dtype(kind) for kind in (trt.DataType.FLOAT, trt.DataType.HALF, trt.DataType.FP8)] == ["float32", "float16", ""]
for starting in (lambda: api.build_plan(b"", BatchRange.only(1), tf32=False), lambda: api.Engine(b"")):
    try:
        starting()
    except InputError as error:
        print(error)
"""


def test_the_bindings_themselves_have_the_names_and_start_nothing_without_libraries(bindings: Bindings) -> None:
    """In a process that has imported them: names by `getattr`, our subclasses of their classes, and the error that a
    TensorRT which cannot start gives."""
    names = sorted(dotted_names(API, "trt"))
    assert len(names) > 15
    command = [sys.executable, "-c", LIVE, bindings.version, *names]
    result = subprocess.run(command, env=bindings.environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(f"TensorRT {bindings.version} failed while starting: it gives no reason") == 2


def test_tensorrt_is_imported_in_one_module_only(repository: Path) -> None:
    importers = set()
    for path in (repository / "edgeprune").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            importers |= {path.relative_to(repository) for name in names if name.partition(".")[0] == "tensorrt"}
    assert importers == {API.relative_to(repository)}


def test_the_fake_offers_nothing_that_the_bindings_do_not(bindings: Bindings) -> None:
    """The tests of the runner are only worth what their fake is: its methods take what the real ones take."""
    module = fake_tensorrt.tensorrt_module(fake_cuda.FakeGpu(), bindings.version)
    real = stub_signatures(bindings.stubs / "tensorrt_bindings" / "tensorrt.pyi")
    compared = 0
    for owner in classes(module):
        assert owner.__name__ in real, owner
        for name, member in vars(owner).items():
            if name.startswith("_") and name != "__init__":
                continue
            assert name in real[owner.__name__], f"{owner.__name__}.{name}"
            variants = real[owner.__name__][name]
            if inspect.isfunction(member) and ["self", "*"] not in variants:  # the bindings do not say how to make it
                assert list(inspect.signature(member).parameters) in variants, f"{owner.__name__}.{name}"
                compared += 1
    assert compared > 30


def test_every_name_and_signature_of_cuda_exists() -> None:
    real = pytest.importorskip("cuda.bindings.runtime")
    names = dotted_names(CUDA, "cudart")
    assert len(names) > 20
    for name in names:
        value: Any = real
        for part in name.split("."):
            value = getattr(value, part)
    calls = [node for node in ast.walk(ast.parse(CUDA.read_text())) if isinstance(node, ast.Call)]
    ours = [call for call in calls if ast.unparse(call.func).startswith("cudart.")]
    assert len(ours) > 15
    for call in ours:
        if not any(isinstance(argument, ast.Starred) for argument in call.args):
            function = getattr(real, ast.unparse(call.func).removeprefix("cudart."))
            inspect.signature(function).bind(*call.args, **{word.arg or "": word for word in call.keywords})


def test_the_fake_cuda_offers_nothing_that_the_real_one_does_not() -> None:
    real = pytest.importorskip("cuda.bindings.runtime")
    module = fake_cuda.cuda_module(fake_cuda.FakeGpu())
    for name, function in vars(module).items():
        if inspect.isfunction(function):
            assert list(inspect.signature(function).parameters) == list(
                inspect.signature(getattr(real, name)).parameters
            ), name
    for owner in classes(module):
        assert all(hasattr(getattr(real, owner.__name__), name) for name in vars(owner) if not name.startswith("_"))


def names_by_function(text: str, known: set[str]) -> list[list[ast.Attribute]]:
    """The attributes that each function and class body names, those that are `known` to TensorRT."""
    found: dict[ast.AST, list[ast.Attribute]] = {}

    def visit(node: ast.AST, owner: ast.AST) -> None:
        if isinstance(node, ast.Attribute) and node.attr in known:
            found.setdefault(owner, []).append(node)
        inner = node if isinstance(node, ast.FunctionDef | ast.ClassDef) else owner
        for child in ast.iter_child_nodes(node):
            visit(child, inner)

    visit(ast.parse(text), ast.Module())
    return list(found.values())


def misspelt(text: str, names: Sequence[ast.Attribute]) -> str:
    """The source with a letter more at the end of each of these names."""
    lines = [line.encode() for line in text.splitlines()]
    for name in sorted(names, key=lambda name: (name.end_lineno or 0, name.end_col_offset or 0), reverse=True):
        row, end = (name.end_lineno or 0) - 1, name.end_col_offset or 0
        lines[row] = lines[row][:end] + b"x" + lines[row][end:]
    return b"\n".join(lines).decode() + "\n"


def dotted_names(path: Path, root: str) -> set[str]:
    """The names behind `root.` in a module's source, such as `Dims` and `TensorIOMode.INPUT`."""
    chains = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    return {chain.removeprefix(f"{root}.") for chain in chains if chain.startswith(f"{root}.") and "(" not in chain}


def classes(module: ModuleType) -> list[type]:
    return [value for value in vars(module).values() if isinstance(value, type)]


def stub_signatures(path: Path) -> dict[str, dict[str, list[list[str]]]]:
    """Class -> member -> the names of the parameters, one list for each overload; none for a variable."""
    found: dict[str, dict[str, list[list[str]]]] = {}
    for owner in ast.parse(path.read_text()).body:
        if not isinstance(owner, ast.ClassDef):
            continue
        members = found.setdefault(owner.name, {})
        for node in owner.body:
            if isinstance(node, ast.FunctionDef):
                star = ["*"] if node.args.vararg else []
                members.setdefault(node.name, []).append([*(argument.arg for argument in node.args.args), *star])
            elif isinstance(node, ast.AnnAssign):
                members.setdefault(ast.unparse(node.target), [])
            elif isinstance(node, ast.ClassDef):
                members.setdefault(node.name, [])
    return found
