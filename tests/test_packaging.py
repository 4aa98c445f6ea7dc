"""The wheel: what is in it, that it works outside the repository, and that the light install needs no torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from fresh_imports import failed_imports
from shared_by_workers import made_once

# What the workstation has and a device has not; sys.modules[name] = None makes an import of it fail.
HEAVY = (
    "torch",
    "torchvision",
    "sklearn",
    "scipy",
    "matplotlib",
    "jinja2",
    "onnxsim",
    "onnxscript",
    "safetensors",
    "PIL",
)
DEVICE_SIDE = (
    "bundles.bundle",
    "calibration.machine",
    "cluster.local",
    "cluster.starting",
    "deployment.lower_bundle",
    "exporters.ncnn.network",
    "exporters.tflite.writer",
    "onnx_files.macs",
    "partitioning.executor",
    "pipeline.convert",
    "pipeline.inspect",
    "pipeline.list",
    "pipeline.profile",
    "pipeline.report",
    "pipeline.run",
    "pipeline.split",
    "pipeline.tune",
    "profiling.precise_models",
    "profiling.profiler",
    "profiling.sweeping.worker",
    "report",
    "runners.registry",
    "tuning.tuner",
)
LIGHT_ENTRY = ("torch", "onnxruntime", "onnx", "numpy", "scipy", "sklearn", "matplotlib")


@pytest.fixture(scope="session")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the repository, so that the build leaves nothing in it."""

    def build(folder: Path) -> None:
        source = folder / "source"
        skipped = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "tests", "demo")
        shutil.copytree(repository, source, ignore=skipped, dirs_exist_ok=True)
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
        subprocess.run(command, check=True, capture_output=True)

    return next(made_once(tmp_path_factory, "wheel", build).glob("edgeprune-*.whl"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's contents, as pip lays them out."""

    def unpack(folder: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)

    return made_once(tmp_path_factory, "site", unpack)


def run_python(code: str, site: Path, cwd: Path) -> str:
    """Run code far from the repository with the installed copy first on the path."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_wheel_holds_every_module_profile_and_template_under_one_name(wheel: Path, repository: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} == {
        "edgeprune",
        *{n.split("/")[0] for n in names if ".dist-info" in n},
    }
    for folder, inside in (("edgeprune", "edgeprune"), ("exporters", "edgeprune/exporters")):
        for path in (repository / folder).rglob("*.py"):
            assert f"{inside}/{path.relative_to(repository / folder).as_posix()}" in names
    profiles = {path.name for path in (repository / "device_profiles").glob("*.toml")}
    assert len(profiles) >= 10
    assert profiles == {Path(name).name for name in names if name.endswith(".toml")}
    assert "edgeprune/report/page/report.html" in names
    assert "edgeprune/py.typed" in names


def test_the_installed_copy_is_imported_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    code = (
        "import edgeprune, edgeprune.exporters, edgeprune.device_profiles; from edgeprune.devices.device_profile import *\n"
        "print(edgeprune.__file__, edgeprune.exporters.__file__, len(list_profiles()), load_profile('raspberry-pi-4').name)"
    )
    words = run_python(code, installed, tmp_path).split()
    assert all(word.startswith(str(installed)) for word in words[:2])
    assert int(words[2]) >= 10
    assert words[3] == "raspberry-pi-4"


@pytest.mark.parametrize("arguments", [["--help"], ["export", "--help"], ["list", "methods"], ["list", "devices"]])
def test_the_command_runs_from_the_installed_copy(installed: Path, tmp_path: Path, arguments: list[str]) -> None:
    output = run_python(f"from edgeprune.cli import main; raise SystemExit(main({arguments}))", installed, tmp_path)
    assert len(output.splitlines()) > 5


def test_help_and_import_load_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys, edgeprune; from edgeprune.cli import main; main(['--help']); main(['export', '--help'])\n"
        f"print('LOADED', [name for name in {LIGHT_ENTRY} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "LOADED []"


@pytest.fixture(scope="module")
def failed_on_a_device(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    modules = [f"edgeprune.{module}" for module in DEVICE_SIDE]
    before = f"sys.modules.update(dict.fromkeys({HEAVY}))"
    return failed_imports(modules, tmp_path_factory.mktemp("device"), before=before)


@pytest.mark.parametrize("module", DEVICE_SIDE)
def test_device_side_modules_need_no_workstation_package(module: str, failed_on_a_device: dict[str, str]) -> None:
    assert failed_on_a_device.get(f"edgeprune.{module}") is None


def test_a_verb_that_needs_the_workstation_says_what_to_install(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({HEAVY})); from edgeprune.cli import main\n"
        "sys.exit(main(['export', '--arch', 'resnet20', '--random-init', '-o', 'out']))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "pip install 'edgeprune[prune]'" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_everything_at_the_top_of_the_repository_is_listed_for_the_wheel(repository: Path) -> None:
    import tomllib

    listed = set(tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {"edgeprune"}
    for folder, name in (
        ("edgeprune", "edgeprune"),
        ("exporters", "edgeprune.exporters"),
        ("device_profiles", "edgeprune.device_profiles"),
    ):
        for path in (repository / folder).rglob("__init__.py"):
            parts = path.parent.relative_to(repository / folder).parts
            found.add(".".join((name, *parts)))
    assert found == listed
