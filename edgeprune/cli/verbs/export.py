"""`edgeprune export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from edgeprune.cli.flags.common import OutFlags, Seeded
from edgeprune.cli.flags.kinds import EXPORT, Integer, OptionalInteger, OptionalPath, OptionalText, Switch, flags
from edgeprune.cli.flags.method import PruneFlags
from edgeprune.cli.flags.network import DataFlags, NetworkFlags
from edgeprune.errors import InputError

if TYPE_CHECKING:
    from edgeprune.deployment.lower_bundle import LowerOptions
    from edgeprune.deployment.options import DeployOptions
    from edgeprune.pipeline.split import SplitOptions


@Parameter(name="*", group=EXPORT)
@flags
class ExportFlags:
    """How to write and check the ONNX files."""

    opset: Integer = 20
    """ONNX opset, 18 or later."""
    static_batch: Switch = False
    """Fix the batch at 1 instead of leaving it dynamic."""
    parity_inputs: OptionalPath = None
    """.npy with real inputs (N,C,H,W) for the parity gate."""
    tolerance: float = 1e-4
    """Of the parity gate: difference over the output's range."""
    as_planned: Switch = False
    """Leave every layer in the groups that the plan has; by default each is written in the form (grouped, merged,
    split, padded or dense) that the device profile's cost table makes fastest."""
    tune: Switch = False
    """Measure on this machine which form of each layer is fastest, as `edgeprune tune` does."""
    threads: OptionalInteger = None
    """Of --tune: threads inside one operation, 1 by default."""
    to: OptionalText = ""
    """Write both networks for other runtimes, too, separated by commas: tflite, openvino or ncnn, as `edgeprune
    convert` does."""
    to_precision: Literal["fp32", "int8"] = "fp32"
    """Of --to: int8 is calibrated on --data, and told what it costs."""
    devices: OptionalText = ""
    """Split the network over N devices, or those in a TOML file."""
    force: Switch = False
    """Of --devices: split even where one device alone is predicted to be as fast."""
    goal: Annotated[Literal["latency", "throughput"], Parameter(name="--for")] = "latency"
    """Of --devices: what the split is to be good at, as for `edgeprune split`."""

    @property
    def formats(self) -> tuple[str, ...]:
        return tuple(part.strip() for part in self.to.split(",") if part.strip())

    def options(self, seed: int, data: str) -> DeployOptions:
        from edgeprune.deployment.options import DeployOptions
        from edgeprune.deployment.quantizing import Calibration
        from edgeprune.exporters.options import ExportOptions

        onnx = ExportOptions(opset=self.opset, dynamic_batch=not self.static_batch)
        return DeployOptions(
            onnx, self.tolerance, self.parity_inputs, seed, self.formats, self.to_precision, Calibration(data)
        )

    def lowering(self, device_profile: str) -> LowerOptions:
        from edgeprune.deployment.lower_bundle import LowerOptions
        from edgeprune.tuning.cache import default_path
        from edgeprune.tuning.options import TuneOptions

        if self.tune and self.as_planned:
            raise InputError("both --tune and --as-planned say how to write the layers", remedy="leave one of them out")
        if self.threads is not None and not self.tune:
            raise InputError("--threads says for how many threads to tune", remedy="pass --tune, or leave it out")
        threads = 1 if self.threads is None else self.threads
        tuning = TuneOptions(threads=threads, cache=default_path()) if self.tune else None
        return LowerOptions(device_profile, tuning, self.as_planned)

    def split(self, device_profile: str) -> SplitOptions:
        from edgeprune.pipeline.split import SplitOptions

        if self.force and not self.devices:
            raise InputError("--force says to split in any case", remedy="pass --devices, or leave it out")
        if self.goal != "latency" and not self.devices:
            raise InputError("--for says what to split for", remedy="pass --devices, or leave it out")
        return SplitOptions(self.devices, device_profile, self.goal, self.force)


def export(
    source: Path | None = None,
    /,
    *,
    network: NetworkFlags = NetworkFlags(),
    pruning: PruneFlags = PruneFlags(),
    data: DataFlags = DataFlags(),
    export: ExportFlags = ExportFlags(),
    out: OutFlags,
    common: Seeded = Seeded(),
) -> None:
    """The main job: from a checkpoint to a pruned, folded, verified ONNX model (or from a bundle of `prune`).

    **Examples**

    - `edgeprune export model.pt --arch resnet56 --groups 8 -o out`
    - `edgeprune export model.onnx --method fpgm --rate 0.3 -o out`
    - `edgeprune export --arch torchvision:resnet50 --random-init --groups 4 -o out`
    - `edgeprune export model.pt --arch resnet56 --groups 4 --align auto --tune -o out`
    - `edgeprune export model.pt --arch resnet20 --method gkp-cal --data imagefolder:DIR --heal 10 -o out`
    - `edgeprune export model.pt --arch resnet56 --groups 4 --to tflite,openvino -o out`
    - `edgeprune export model.pt --arch resnet56 --to tflite --to-precision int8 --data imagefolder:DIR -o out`
    - `edgeprune export pruned/ -o out --devices 2 --force`
    - `edgeprune export model.pt --arch resnet56 --groups 4 --rate 0.5 --for-devices 2 --exchange-weight 0.1 -o out`

    Parameters
    ----------
    source
        Checkpoint (never unpickled), an ONNX file (no --arch), or a bundle that `edgeprune prune` or `edgeprune train`
        wrote.
    """
    from edgeprune.cli.headline import layers
    from edgeprune.pipeline import export as steps

    seed = common.seed
    lowering, split = export.lowering(pruning.device), export.split(pruning.device)
    how = (data.options(seed), export.options(seed, data.data), lowering, split, out.output())
    wanted = pruning.options(seed, data.data, export.formats, export.to_precision)
    bundle, pruned = steps.export(network.source(source, seed), wanted, *how)
    layers(pruned, bundle)
    common.write(bundle.manifest)
