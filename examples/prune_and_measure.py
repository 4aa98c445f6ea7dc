"""The main path of the command line, in Python: prune, export, split, run, profile, report.

python examples/prune_and_measure.py OUT_FOLDER [torchvision architecture]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torchvision

import edgeprune


def main(out: Path, arch: str = "resnet18") -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(arch, weights=None).eval()  # your own trained model here
    images = torch.randn(2, 3, 64, 64)

    pruned = edgeprune.prune(model, images, groups=4, rate=0.5, settings={"schemes": "spectral"})
    print(f"MACs: {pruned.macs.dense:,} -> {pruned.macs.pruned:,}")

    bundle = edgeprune.export(pruned, out / "bundle")
    print(f"parity: {bundle.manifest.parity}, Gathers: {bundle.manifest.gathers}")

    edgeprune.split(out / "bundle", out / "split", devices=2, force=True)
    whole = edgeprune.run(out / "bundle", images.numpy())["output"]
    parts = edgeprune.run(out / "split", images.numpy())["output"]
    print(f"split and unsplit differ by {np.abs(whole - parts).max():.1e}")

    for result in edgeprune.profile(out / "bundle").results:
        print(f"theory {result.theoretical_speedup:.2f}x, measured {result.realistic_speedup:.2f}x")
    print("open", edgeprune.write_report(out / "bundle")[0])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), *sys.argv[2:3])
