"""The commands of the README and the tour work, in order, for someone who has a checkpoint and pastes them; the pages
link to what exists."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from places import ROOT

from edgeprune.cli import app, main
from edgeprune.datasets.images import load_data
from edgeprune.training.evaluation import MetricResult, evaluate
from edgeprune.zoo import build

PAGES = [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]


def blocks(repository: Path, page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (repository / page).read_text(), re.DOTALL)


def commands(repository: Path, page: str) -> list[str]:
    return [line for block in blocks(repository, page, "sh") for line in block.splitlines() if line.strip()]


pytestmark = pytest.mark.usefixtures("brief_measuring")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the README takes for granted: model.pt, photos/, epochs/ and x.npy."""
    folder = tmp_path_factory.mktemp("readme")
    torch.manual_seed(0)
    torch.save(build("resnet20").model.state_dict(), folder / "model.pt")
    (folder / "epochs").mkdir()
    for epoch in (1, 2):
        torch.save(build("resnet20").model.state_dict(), folder / "epochs" / f"epoch_{epoch}.pt")
    pixels = np.random.default_rng(1).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        place = folder / "photos" / ("test" if number < 10 else "train") / f"class{number % 10}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number}.png")
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32))
    return folder


def test_shell_commands_work_in_order(repository: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's, then those of the tour that were not among them."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))
    monkeypatch.setattr("edgeprune.pruning.healed.AUTO_STEPS", range(2, 4))  # instead of some minutes
    readme, tour = commands(repository, "README.md"), commands(repository, "docs/tour.md")
    assert len(readme) >= 5
    assert len(tour) >= 20
    for command in dict.fromkeys([*readme, *tour]):
        words = shlex.split(command)
        assert words[0] == "edgeprune"
        assert main([*words[1:], "--quiet"]) == 0, command
    assert (workplace / "out" / "report.html").stat().st_size > 10_000
    assert np.load(workplace / "y.npy").shape == (1, 10)


@pytest.mark.parametrize(
    "page",
    [
        "training.md",
        "methods.md",
        "lowering.md",
        "splitting.md",
        "estimates.md",
        "report.md",
        "targets.md",
        "profiling.md",
        "evaluation.md",
        "devices.md",
    ],
)
def test_the_commands_of_the_other_pages_are_ones_that_the_command_line_takes(repository: Path, page: str) -> None:
    text = (repository / "docs" / page).read_text().replace("\\\n", " ")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    found = [shlex.split(line, comments=True) for line in map(str.strip, lines) if line.startswith("edgeprune")]
    assert len(found) >= 3
    for words in found:
        app.parse_args(words[1:], exit_on_error=False, print_error=False)


def test_the_python_snippet_works(repository: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (snippet,) = blocks(repository, "README.md", "python")
    (workplace / "snippet.py").write_text(snippet)
    monkeypatch.chdir(workplace)
    runpy.run_path("snippet.py", run_name="__main__")
    assert (workplace / "from_python" / "model.onnx").is_file()


def test_the_example_of_own_images_and_an_own_network_works(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = (repository / "docs" / "training.md").read_text().partition("## Your own images and network")[2]
    (tmp_path / "mine.py").write_text(re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0])
    monkeypatch.chdir(tmp_path)
    found = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)[0].splitlines()
    assert len(found) == 2
    for command in found:
        assert main([*shlex.split(command)[1:], "--quiet"]) == 0, command
    assert (tmp_path / "mine-pruned" / "weights.safetensors").is_file()


def test_the_example_of_an_own_metric_works(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "streets.py").write_text(blocks(repository, "docs/evaluation.md", "python")[0])
    data = load_data(f"{tmp_path / 'streets.py'}:images", split="test", input_shape=(3, 64, 64))
    result = evaluate(torch.nn.Conv2d(3, 4, 1), data)
    assert isinstance(result, MetricResult)
    assert result.metric == "mIoU"
    assert 0 <= result.value <= 1
    assert result.loss is not None


def test_the_example_script_works(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the smallest network of torchvision that it takes: its default one has been in the README's commands."""
    script = repository / "examples" / "prune_and_measure.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path), "squeezenet1_1"])
    runpy.run_path(str(script), run_name="__main__")
    assert "split and unsplit differ" in capsys.readouterr().out
    assert (tmp_path / "bundle" / "report.html").is_file()


def test_the_readme_is_read_in_five_minutes(repository: Path) -> None:
    text = (repository / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    assert "make demo" in text
    assert "make test" in text


@pytest.mark.parametrize("page", ["README.md", *PAGES])
def test_what_the_pages_link_to_exists(repository: Path, page: str) -> None:
    folder = (repository / page).parent
    for name in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (repository / page).read_text()):
        assert (folder / name).exists(), name
    for name, anchor in re.findall(r"\]\(([^)#:]*\.md)#([^)]*)\)", (repository / page).read_text()):
        assert anchor in anchors(folder / name), (name, anchor)


def anchors(page: Path) -> set[str]:
    """The names that a page's headings have in links."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_index(repository: Path) -> None:
    listed = re.findall(r"^\| \[([a-z]+\.md)\]", (repository / "docs" / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(
        path.name for path in (repository / "docs").glob("*.md") if path.name != "README.md"
    )


def test_a_newcomer_can_place_a_change(repository: Path) -> None:
    """Every file that the page on the code's structure names is there, and every folder is in its picture."""
    text = (repository / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (?:a|an) (.*?) \| (.*) \|$", text, re.MULTILINE)
    wanted = (
        "flag, method, form, runtime, format that networks are converted to, precision that a format is "
        "written in, ONNX operation for LiteRT, ONNX operation for ncnn, cause, plot, "
        "device, checkpoint format, ONNX operation in the importer, ONNX operation in the counter, way to divide a node "
        "over devices, way that a request can go, gate"
    )
    assert ", ".join(name for name, _ in rows) == wanted
    assert all(re.search(r"`[a-z_/]+/[^`]*`", place) for _, place in rows)
    for name in re.findall(r"`((?:edgeprune|device_profiles|examples|tests)/[^` ]*)`", text):
        assert (repository / name).exists(), name
    picture = re.findall(r"```text\n(.*?)```", text, re.DOTALL)[0]
    folders = [path.parent for path in (repository / "edgeprune").glob("*/__init__.py")]
    for folder in [*(path.name for path in folders), "exporters", "device_profiles"]:
        assert re.search(rf"\b{folder}/", picture), folder
