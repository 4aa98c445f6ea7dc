"""Healing: a pruned network distilled from the dense one, on images whose labels no one reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgeprune
from edgeprune.bundles.bundle import open_bundle
from edgeprune.cli import main
from edgeprune.datasets.images import Dataset, load_data
from edgeprune.errors import InputError
from edgeprune.pruning.distillation import Distilled, DistilSettings, distil, relative_error
from edgeprune.pruning.healed import settings_for
from edgeprune.pruning.options import DataOptions, Heal
from edgeprune.pruning.pruned import Pruned
from edgeprune.pruning.shared_features import SharedFeatures
from edgeprune.rewriting.rewrite import masked, rewrite
from edgeprune.tracing.trace import trace
from edgeprune.training.loop import TrainSettings, fit
from edgeprune.zoo import build

SHAPE = (1, 16, 16)


class Unread:
    """Labels that may be carried along, and tell nothing."""

    def __getitem__(self, chosen: object) -> Unread:
        return self

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"labels.{name} was read")

    def __len__(self) -> int:
        raise AssertionError("labels were counted")


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    """A small network for scans of digits."""
    torch.manual_seed(0)
    model = build("resnet8-w16", num_classes=10, in_channels=1, input_size=SHAPE[1:]).model
    train = load_data("digits", split="train", input_shape=SHAPE, num_classes=10)
    return fit(model, train, TrainSettings(epochs=4, learning_rate=0.1, batch_size=64)).model.eval()


@pytest.fixture(scope="module")
def images() -> Dataset:
    return replace(load_data("digits", split="train", input_shape=SHAPE).first(256), labels=Unread())


@pytest.fixture(scope="module")
def pruned(dense: nn.Module) -> Pruned:
    """Far from the dense network: its method looks at weights alone."""
    return edgeprune.prune(dense, torch.zeros(1, *SHAPE), method="gconv", groups=4)


def few(monkeypatch: pytest.MonkeyPatch, steps: int = 6) -> None:
    """Automatic runs of so many steps."""
    monkeypatch.setattr("edgeprune.pruning.healed.AUTO_STEPS", range(1, steps + 1))


def features(pruned: Pruned) -> SharedFeatures:
    return SharedFeatures.of(pruned.plan, pruned.graph)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def noise(count: int = 40, size: int = 16) -> Dataset:
    pixels = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    return Dataset("noise", pixels, Unread(), (), (0.0,) * 3, (1.0,) * 3)


# -- the training ------------------------------------------------------------------------------------------------------
def test_the_pruned_network_comes_nearer_to_the_dense_one_and_no_label_is_read(
    dense: nn.Module, pruned: Pruned, images: Dataset
) -> None:
    before = weights(pruned.model), weights(dense)
    result = distil(pruned.model, dense, images, features(pruned), DistilSettings(steps=40))
    assert result.record.kept
    assert result.record.steps == 40
    assert result.record.loss_after < 0.7 * result.record.loss_before
    test = load_data("digits", split="test", input_shape=SHAPE).images.float() / 127.5 - 1
    with torch.no_grad():
        wanted = dense(test)
        assert relative_error(result.model(test), wanted) < 0.7 * relative_error(pruned.model(test), wanted)
    assert same(weights(pruned.model), before[0])
    assert same(weights(dense), before[1])


def test_the_same_steps_give_the_same_bits(dense: nn.Module, pruned: Pruned, images: Dataset) -> None:
    settings = DistilSettings(steps=5, seed=3)
    first, second, other = (
        weights(distil(pruned.model, dense, images, features(pruned), how).model)
        for how in (settings, settings, replace(settings, seed=4))
    )
    assert same(first, second)
    assert not same(first, other)


def test_what_got_worse_is_not_kept(dense: nn.Module, pruned: Pruned, images: Dataset) -> None:
    settings = DistilSettings(steps=20, learning_rate=1e6)
    result = distil(pruned.model, dense, images, features(pruned), settings)
    assert not result.record.kept
    assert result.record.loss_after == result.record.loss_before
    assert same(weights(result.model), weights(pruned.model))
    assert "not healed" in result.record.words


def test_a_single_image_is_enough(dense: nn.Module, pruned: Pruned, images: Dataset) -> None:
    result = distil(pruned.model, dense, images.first(1), features(pruned), DistilSettings(steps=2))
    assert result.record.steps == 2


class Detector(nn.Module):
    """Two outputs of several axes, in a dictionary, beside a number."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.mid = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.boxes, self.scores = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.mid(self.body(x))
        return {"boxes": 100 * self.boxes(x), "scores": self.scores(x), "stride": 1}


def test_networks_with_several_outputs_are_healed() -> None:
    torch.manual_seed(0)
    model = Detector()
    with torch.no_grad():
        for _ in range(60):  # BatchNorm's statistics
            model(noise().images)
    model.eval()
    pruned = edgeprune.prune(model, torch.zeros(1, 3, 16, 16), method="gconv", groups=2)
    result = distil(pruned.model, model, noise(), features(pruned), DistilSettings(steps=40, batch_size=16))
    assert result.record.kept
    with torch.no_grad():
        found, before, wanted = (m(noise().images) for m in (result.model, pruned.model, model))
    for name in ("boxes", "scores"):
        assert relative_error(found[name], wanted[name]) < relative_error(before[name], wanted[name])


def test_values_that_are_not_finite_are_told(dense: nn.Module, pruned: Pruned, images: Dataset) -> None:
    broken = rewrite(dense, pruned.plan, pruned.graph).eval()
    with torch.no_grad():
        broken.linear.bias[0] = torch.nan
    with pytest.raises(InputError, match="NaN or infinite"):
        distil(broken, dense, images, features(pruned), DistilSettings(steps=2))


def test_what_cannot_be_trained_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """An add that writes over what a convolution has read: its gradients cannot be had."""

    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            x += self.a(x)
            return self.head(x.mean((2, 3)))

    few(monkeypatch)
    model, example = networks.settled(InPlace()), torch.zeros(1, 3, 16, 16)
    assert edgeprune.prune(model, example, method="gkp-cal", groups=4, data=noise()).healing is None
    with pytest.raises(InputError, match="cannot be trained.*heal none"):
        edgeprune.prune(model, example, method="gkp-cal", groups=4, data=noise(), heal=0.01)


# -- what is compared --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "make", [networks.Residual, networks.Concatenating, networks.Mobile, networks.Flattening, networks.Shuffled]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_channels_of_thinner_networks_are_found_in_the_dense_one(make: Callable[[], nn.Module], seed: int) -> None:
    """Against the same network in its original shape, with zeros: all that is shared is equal."""
    torch.manual_seed(0)
    model = networks.settled(make())
    example = torch.randn(2, 3, 16, 16)
    graph = trace(model, example).graph
    plan = networks.random_thin_plan(graph, 0.5, seed, merge=False)
    thinner = rewrite(model, plan, graph).eval()
    original = masked(thinner, model, plan, graph)
    shared = SharedFeatures.of(plan, graph)
    with torch.no_grad(), shared.read_by(thinner) as own, shared.read_by(original) as wanted:
        torch.testing.assert_close(thinner(example), original(example), rtol=1e-4, atol=1e-4)
        pairs = list(shared.pairs(own, wanted))
    assert len(pairs) >= 2
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


# -- when, and how long ------------------------------------------------------------------------------------------------
def test_it_is_done_where_the_method_looked_at_images_and_no_labels_are_trained_on() -> None:
    auto, none, minutes = Heal.parse("auto"), Heal.parse("none"), Heal.parse("2.5")
    assert minutes.minutes == 2.5
    for looks, finetunes, expected in ((True, False, True), (True, True, False), (False, False, False)):
        assert auto.applies(looks_at_images=looks, finetunes=finetunes) is expected
        assert not none.applies(looks_at_images=looks, finetunes=finetunes)
        assert minutes.applies(looks_at_images=looks, finetunes=finetunes)


def test_automatic_runs_are_bounded_by_work_and_memory() -> None:
    small, large = (
        trace(build(name).model, torch.zeros(1, 3, *size)).graph
        for name, size in (("resnet56", (32, 32)), ("torchvision:resnet50", (224, 224)))
    )
    few, many = settings_for(large), settings_for(small)
    assert few.batch_size < many.batch_size == 64
    assert few.steps >= 100
    work = [how.steps * how.batch_size * graph.macs for how, graph in ((few, large), (many, small))]
    assert work[0] == pytest.approx(work[1], rel=0.05)


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf"])
def test_other_values_are_refused(value: str) -> None:
    with pytest.raises(InputError, match=f"--heal {value}.*auto, none, or minutes"):
        Heal.parse(value)


def test_minutes_need_images(dense: nn.Module) -> None:
    with pytest.raises(InputError, match="--heal needs images.*--data"):
        DataOptions(heal=Heal(1.0)).check()
    DataOptions(heal=Heal()).check()
    with pytest.raises(InputError, match="heal=1 needs images"):
        edgeprune.prune(dense, torch.zeros(1, *SHAPE), groups=4, heal=1)


# -- in the flow -------------------------------------------------------------------------------------------------------
def test_gkp_cal_is_healed_by_default_from_what_none_gives(
    dense: nn.Module, images: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    few(monkeypatch)
    started_from = list[dict[str, Tensor]]()

    def seen(pruned: nn.Module, *more: Any) -> Distilled:
        started_from.append(weights(pruned))
        return distil(pruned, *more)

    monkeypatch.setattr("edgeprune.pruning.healed.distil", seen)
    arguments: dict[str, Any] = {"method": "gkp-cal", "groups": 4, "data": images.first(64)}
    found, unhealed = (edgeprune.prune(dense, torch.zeros(1, *SHAPE), heal=h, **arguments) for h in ("auto", "none"))
    assert found.healing is not None
    assert found.healing.steps == 6
    assert (unhealed.healing, unhealed.calibration_images) == (None, 64)
    assert found.plan == unhealed.plan
    assert len(started_from) == 1
    assert same(started_from[0], weights(unhealed.model))


@pytest.fixture(scope="module")
def checkpoint(dense: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dense") / "model.pt"
    torch.save(dense.state_dict(), path)
    return path


def command(checkpoint: Path, verb: str, out: Path, *more: str) -> list[str]:
    network = ("--arch", "resnet8-w16", "--input-size", "1,16,16")
    return [verb, str(checkpoint), *network, "--data", "digits", "-o", str(out), "--quiet", *more]


def test_it_is_told_in_json_and_manifest_and_goes_on_from_a_bundle(checkpoint: Path, tmp_path: Path) -> None:
    """By the clock, after a method that looks at no image; then once more on the bundle."""
    told, out = tmp_path / "told.json", tmp_path / "pruned"
    more = ("--groups", "4", "--heal", "0.02", "--calibration-images", "100", "--json", str(told))
    assert main(command(checkpoint, "prune", out, *more)) == 0
    summary, manifest = json.loads(told.read_text()), open_bundle(out).manifest
    assert summary["calibration_images"] == manifest.calibration_images == 100
    assert manifest.healing is not None
    assert summary["healing"]["steps"] == manifest.healing.steps > 0
    assert summary["healing"]["loss_after"] <= summary["healing"]["loss_before"]
    exported = tmp_path / "exported"
    assert main(["export", str(out), "-o", str(exported), "--quiet"]) == 0
    assert open_bundle(exported).manifest.healing == manifest.healing
    healed = tmp_path / "healed"
    more = ("--data", "digits", "--heal", "0.02", "--calibration-images", "100")
    assert main(["export", str(out), "-o", str(healed), *more, "--quiet"]) == 0
    again = open_bundle(healed).manifest.healing
    assert again is not None
    assert again.loss_before == pytest.approx(manifest.healing.loss_after, rel=0.05)


def test_fine_tuning_takes_the_place_of_automatic_healing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeprune.pruning.healed.distil", pytest.fail)
    more = ("--method", "gkp-cal", "--groups", "4", "--finetune-epochs", "1", "--calibration-images", "64")
    assert main(command(checkpoint, "prune", tmp_path / "tuned", *more)) == 0
    manifest = open_bundle(tmp_path / "tuned").manifest
    assert (manifest.calibration_images, manifest.healing) == (64, None)


def test_minutes_without_images_are_told_before_any_work(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["prune", str(checkpoint), "--arch", "resnet8-w16", "--heal", "5", "-o", str(tmp_path / "out")]
    assert main([*arguments, "--quiet"]) == 1
    assert "--heal needs images" in capsys.readouterr().err
