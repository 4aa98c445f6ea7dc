"""The published Python bindings of TensorRT, without TensorRT: what they offer, as stub files for mypy.

The bindings are compiled modules that want TensorRT's libraries. Empty libraries with the few symbols that the bindings
name are enough to import them, and so to list every class, method and enum member with its signature. `python
tests/support/published_bindings.py` fetches the bindings into a folder that git ignores; they are NVIDIA's, and not part of
this repository.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

VERSIONS = ("10.16.1.11", "11.4.0.106")
PACKAGE = "tensorrt-cu13-bindings"
ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / ".cache" / "tensorrt-bindings"

_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
_SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry",
    "getPluginRegistry",
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
)
# The package `tensorrt` of the wheels hands on what `tensorrt_bindings` has.
_PACKAGE_SOURCE = "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__ as __version__\n"


@dataclass(frozen=True)
class Bindings:
    """One version, importable in a process with `environment`, and described by the stub files below `stubs`."""

    version: str
    environment: dict[str, str]
    stubs: Path


def bindings(version: str, folder: Path) -> Bindings:
    """Make one version importable, in `folder`. The test is skipped where it is not fetched, or no C compiler is."""
    fetched = CACHE / version
    if not fetched.is_dir():
        pytest.skip(f"TensorRT {version}'s bindings are not fetched: run `make tensorrt-bindings` while online")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build empty libraries with")
    libraries, package, stubs = folder / "lib", folder / "package", folder / "stubs"
    _build_libraries(compiler, libraries, version.partition(".")[0])
    _write(package / "tensorrt" / "__init__.py", _PACKAGE_SOURCE)
    paths = os.pathsep.join([str(package), str(fetched), str(ROOT)])
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": paths}
    stubgen = Path(sys.executable).with_name("stubgen")
    modules = ["-m", "tensorrt_bindings", "-m", "tensorrt_bindings.tensorrt"]
    subprocess.run(
        [stubgen, "--quiet", "--inspect-mode", *modules, "--output", stubs],
        env=environment,
        check=True,
        capture_output=True,
    )
    path = stubs / "tensorrt_bindings" / "tensorrt.pyi"
    path.write_text(_mended(path.read_text()))
    _write(stubs / "tensorrt" / "__init__.pyi", _PACKAGE_SOURCE)
    return Bindings(version, environment, stubs)


def _build_libraries(compiler: str, folder: Path, major: str) -> None:
    """Empty libraries: each function returns null."""
    source = folder / "empty.c"
    _write(source, "".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in _SYMBOLS))
    for name in _LIBRARIES:
        output = folder / f"lib{name}.so.{major}"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", output, source], check=True)


def _mended(text: str) -> str:
    """What stubgen made of the bindings' docstrings, without what is no Python or hides Python's own names."""
    lines = []
    for line in text.splitlines():
        if line == "bool: DataType":  # a module's variable, for which every `-> bool` would be taken
            continue
        if line.lstrip().startswith("def ") and not _parses(line.strip()):
            line = line[: line.index("(")] + "(self, *args, **kwargs): ..."
        # The one signature that we need and that the docstring gives in C++, as `-> nvonnxparser::IParserError`.
        line = line.replace(
            "def get_error(self, *args, **kwargs): ...",
            "def get_error(self, index: typing.SupportsInt) -> ParserError: ...",
        )
        lines.append(line)
    return "\n".join(lines) + "\n"


def _parses(line: str) -> bool:
    try:
        ast.parse(line)
    except SyntaxError:
        return False
    return True


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def fetch(version: str) -> bool:
    """Download and unpack one version, unless it is there; whether it is there now."""
    if (CACHE / version).is_dir():
        return True
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--retries", "1", "--timeout", "20", "--only-binary", ":all:", "--dest", folder]
        command += [f"{PACKAGE}=={version}"]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return False
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            wheel.extractall(Path(folder) / "unpacked")
        (Path(folder) / "unpacked").replace(CACHE / version)
    return True


def main() -> None:
    for version in VERSIONS:
        there = fetch(version)
        print(f"{PACKAGE} {version}: {'there' if there else 'cannot be fetched, its contract test will be skipped'}")


if __name__ == "__main__":
    main()
