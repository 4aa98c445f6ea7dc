"""`edgeprune prune`."""

from __future__ import annotations

from pathlib import Path

from edgeprune.cli.flags.common import OutFlags, Seeded
from edgeprune.cli.flags.method import PruneFlags
from edgeprune.cli.flags.network import DataFlags, NetworkFlags


def prune(
    checkpoint: Path | None = None,
    /,
    *,
    network: NetworkFlags = NetworkFlags(),
    pruning: PruneFlags = PruneFlags(),
    data: DataFlags = DataFlags(),
    out: OutFlags,
    common: Seeded = Seeded(),
) -> None:
    """Decide what to prune, and write the plan and the pruned weights.

    **Examples**

    - `edgeprune prune model.pt --arch resnet20 --groups 8 --rate 0.4375 --tickets epochs/ -o pruned`
    - `edgeprune prune model.onnx --method fpgm --rate 0.3 -o pruned`
    - `edgeprune prune model.pt --arch resnet56 --method gconv --budget macs=0.5,params=0.6 -o pruned`
    - `edgeprune prune model.pt --arch resnet20 --method gkp-cal --data imagefolder:DIR --heal 10 -o pruned`

    Parameters
    ----------
    checkpoint
        Checkpoint (.pt, .pth, .th, .safetensors, ...; never unpickled), an ONNX file (no --arch), or a bundle of
        `edgeprune train`.
    """
    from edgeprune.cli.headline import layers
    from edgeprune.pipeline import prune as steps

    bundle, pruned = steps.prune(
        network.source(checkpoint, common.seed),
        pruning.options(common.seed, data.data),
        data.options(common.seed),
        out.output(),
    )
    layers(pruned, bundle)
    common.write(pruned.summary())
