"""A bundle that edgeprune 0.1.0 wrote before its modules were put in order still opens, runs, and is worked on.

`bundle_0.1.0.zip` holds what these commands made (then zipped, files in order, without the folder's name):

    edgeprune export --arch resnet8-w4 --random-init --input-size 1,8,8 --num-classes 3 --groups 2 --rate 0.5
        --set schemes=spectral --devices 2 -o before
    edgeprune profile before --iterations 5 --warmup 1 --time-limit 1 --no-fresh-process
    edgeprune report before --format md,json
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgeprune.bundles.bundle import open_bundle
from edgeprune.cli import main
from edgeprune.lowering.record import load_lowering
from edgeprune.partitioning.manifest import load_partition
from edgeprune.plans.plan import load_plan
from edgeprune.profiling.result import load_profile_result

OUTPUTS = [
    [-0.22574634850025177, -0.10009768605232239, -0.20043496787548065],
    [-0.16977465152740479, -0.08301112055778503, -0.37301868200302124],
]
"""What that version computed for standard normal inputs of seed 0."""


@pytest.fixture
def before(tmp_path: Path) -> Path:
    folder = tmp_path / "before"
    with zipfile.ZipFile(Path(__file__).parent / "bundle_0.1.0.zip") as archive:
        archive.extractall(folder)
    return folder


def test_it_is_sound_and_every_part_is_read(before: Path) -> None:
    bundle = open_bundle(before)
    assert bundle.faults() == []
    assert bundle.manifest.method == "tmi-gkp"
    assert load_plan(bundle.path("plan.json")).grouped()
    assert load_lowering(bundle.path("lowering.json")).layers
    assert load_profile_result(bundle.path("profile.json")).results[0].layers
    assert load_partition(before).manifest.transfers


def test_it_computes_what_it_did(before: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32))
    assert main(["run", str(before), "--input", str(tmp_path / "x.npy"), "--output", str(tmp_path / "y.npy")]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), OUTPUTS, atol=1e-5)


def test_the_verbs_work_on_it(before: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.json"
    assert main(["inspect", str(before), "--quiet"]) == 0
    assert main(["report", str(before), "--format", "md,json,csv", "--quiet"]) == 0
    assert json.loads((before / "report.json").read_text())["profile"]["results"]
    assert main(["export", str(before), "-o", str(tmp_path / "again"), "--json", str(made), "--quiet"]) == 0
    again, old = json.loads(made.read_text()), open_bundle(before).manifest
    assert again["macs"] == {"dense": old.macs.dense, "pruned": old.macs.pruned} if old.macs else None
    assert again["files"]["plan.json"] == old.files["plan.json"]
