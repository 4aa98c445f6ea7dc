"""The demo: the whole path on real data that ships with scikit-learn, through the same functions as the CLI's verbs."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edgeprune.bundles.bundle import Bundle, open_bundle
from edgeprune.datasets.images import load_data, normalised
from edgeprune.deployment.candidates import ALL, RuntimeOptions
from edgeprune.deployment.lower_bundle import LowerOptions
from edgeprune.deployment.options import DeployOptions
from edgeprune.errors import GateError
from edgeprune.io import progress
from edgeprune.methods.base import PruneRequest
from edgeprune.pipeline.export import export
from edgeprune.pipeline.output import Output
from edgeprune.pipeline.profile import profile
from edgeprune.pipeline.report import report
from edgeprune.pipeline.run import run_arrays
from edgeprune.pipeline.runtimes import measure_runtimes
from edgeprune.pipeline.split import SplitOptions
from edgeprune.profiling.profiler import ProfileOptions
from edgeprune.pruning.options import DataOptions, NetworkSource, PruneOptions
from edgeprune.training.loop import RunFiles, TrainSettings, fit
from edgeprune.training.ranks import Ranks
from edgeprune.tuning.options import TuneOptions
from edgeprune.zoo import build

ARCH = "resnet8-w32"
INPUT_SHAPE = (1, 32, 32)
GROUPS, RATE = 2, 0.5
"""Two groups keep 16 channels a group in the narrowest layer: the block that AVX-512 kernels want."""
TRAINING = TrainSettings(epochs=8, batch_size=64, learning_rate=0.1, save_tickets=(1, 2, 3))
FINETUNE_EPOCHS, FINETUNE_LR = 6, 0.06
DEVICES = 2
SPLIT_TOLERANCE = 1e-5
PROFILE_SECONDS, RUNTIME_SECONDS = 8.0, 2.0
"""At most, for the profile and for each runtime: on a busy machine neither settles, and nobody waits for a demo."""


def run_demo(out: Path, *, overwrite: bool, seed: int) -> Bundle:
    """Train, prune, fine-tune, fold, tune, export, split, run, profile, compare runtimes and report; returns the
    bundle in `out`."""
    Ranks.here().check_alone("the demo")
    place = Output(out, overwrite)
    place.check()
    with tempfile.TemporaryDirectory(prefix="edgeprune-demo-") as folder:
        checkpoint, tickets = _train(Path(folder), seed)
        export(
            NetworkSource(ARCH, checkpoint, input_size=INPUT_SHAPE, seed=seed),
            PruneOptions(request=PruneRequest(groups=GROUPS, rate=RATE, seed=seed), tickets=tickets),
            DataOptions("digits", finetune_epochs=FINETUNE_EPOCHS, learning_rate=FINETUNE_LR, seed=seed),
            DeployOptions(seed=seed),
            LowerOptions(tune=TuneOptions(seed=seed)),
            SplitOptions(str(DEVICES), force=True),  # so small a network is faster on one
            place,
        )
    _compare_split(out)
    progress.note("profiling dense and pruned in turn")
    profile(out, None, ("cpu",), ProfileOptions(seed=seed, time_limit_s=PROFILE_SECONDS))
    runtimes = RuntimeOptions((), TuneOptions(seed=seed), time_limit_s=RUNTIME_SECONDS)
    measure_runtimes(out, RuntimeOptions.of(ALL, runtimes))
    report(out, ("html", "md", "json"))
    return open_bundle(out)


def _train(folder: Path, seed: int) -> tuple[Path, Path]:
    """A dense network's checkpoint, and the folder with its tickets."""
    torch.manual_seed(seed)
    model = build(ARCH, num_classes=10, in_channels=INPUT_SHAPE[0]).model
    data = load_data("digits", split="train", input_shape=INPUT_SHAPE)
    files = RunFiles(folder)
    result = fit(model, data, replace(TRAINING, seed=seed), files=files)
    checkpoint = folder / "digits.pt"
    torch.save({"state_dict": result.model.state_dict()}, checkpoint)
    return checkpoint, files.tickets


def _compare_split(out: Path) -> None:
    """Run the bundle split over devices and unsplit on real images; GateError if the outputs differ."""
    data = load_data("digits", split="test", input_shape=INPUT_SHAPE, limit=32)
    images = normalised(data.images, data).numpy()
    bundle = open_bundle(out)
    whole, _ = run_arrays(bundle, images, unsplit=True)
    parts, _ = run_arrays(bundle, images)
    difference = max(_relative(parts[name], whole[name]) for name in whole)
    progress.note(f"split over {DEVICES} devices: {difference:.1e} of the output's range from the unsplit model")
    if difference > SPLIT_TOLERANCE:
        raise GateError(
            f"the split model differs by {difference:.1e} of the output's range, tolerance {SPLIT_TOLERANCE}"
        )


def _relative(value: NDArray[np.generic], reference: NDArray[np.generic]) -> float:
    exact = reference.astype(np.float64)
    return float(np.abs(value.astype(np.float64) - exact).max() / np.abs(exact).max())
