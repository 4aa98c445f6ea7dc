"""The README's commands work, in order, for someone who has a checkpoint and pastes them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeprune.cli import app, main
from edgeprune.zoo import build


def blocks(repository: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (repository / "README.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the README takes for granted: model.pt, epochs/ and x.npy."""
    folder = tmp_path_factory.mktemp("readme")
    torch.manual_seed(0)
    torch.save(build("resnet20").model.state_dict(), folder / "model.pt")
    (folder / "epochs").mkdir()
    for epoch in (1, 2):
        torch.save(build("resnet20").model.state_dict(), folder / "epochs" / f"epoch_{epoch}.pt")
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32))
    return folder


def test_shell_commands_work_in_order(repository: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))
    commands = [line for block in blocks(repository, "sh") for line in block.splitlines() if line.strip()]
    assert len(commands) >= 10
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "edgeprune"
        assert main([*words[1:], "--quiet"]) == 0, command
    assert (workplace / "out" / "report.html").stat().st_size > 10_000
    assert np.load(workplace / "y.npy").shape == (1, 10)


@pytest.mark.parametrize(
    "page", ["training.md", "methods.md", "lowering.md", "estimates.md", "report.md", "targets.md", "profiling.md"]
)
def test_the_commands_of_the_other_pages_are_ones_that_the_command_line_takes(repository: Path, page: str) -> None:
    text = (repository / "docs" / page).read_text().replace("\\\n", " ")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("edgeprune")]
    assert len(commands) >= 3
    for words in commands:
        app.parse_args(words[1:], exit_on_error=False, print_error=False)


def test_the_python_snippet_works(repository: Path, workplace: Path) -> None:
    (snippet,) = blocks(repository, "python")
    subprocess.run([sys.executable, "-c", snippet], cwd=workplace, check=True)
    assert (workplace / "from_python" / "model.onnx").is_file()


def test_the_example_of_own_images_and_an_own_network_works(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = (repository / "docs" / "training.md").read_text().partition("## Your own images and network")[2]
    (tmp_path / "mine.py").write_text(re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0])
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)[0].splitlines()
    assert len(commands) == 2
    for command in commands:
        assert main([*shlex.split(command)[1:], "--quiet"]) == 0, command
    assert (tmp_path / "mine-pruned" / "weights.safetensors").is_file()


def test_the_example_script_works(repository: Path, tmp_path: Path) -> None:
    script = repository / "examples" / "prune_and_measure.py"
    result = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=True)
    assert "split and unsplit differ" in result.stdout
    assert (tmp_path / "bundle" / "report.html").is_file()


def test_files_that_the_readme_names_exist(repository: Path) -> None:
    text = (repository / "README.md").read_text()
    for name in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (repository / name).exists(), name
    for name in re.findall(r"`([a-z_]+\.py)`", text):
        assert list(repository.glob(f"edgeprune/**/{name}")), name
    assert "make demo" in text
    assert "make test" in text
