"""The library's front door: the steps of the command line as functions on models and folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeprune import pipeline
from edgeprune.bundles.bundle import Bundle, open_bundle
from edgeprune.datasets.images import Dataset, load_data
from edgeprune.deployment.lower_bundle import LowerOptions
from edgeprune.deployment.options import DeployOptions
from edgeprune.devices.device_profile import channel_block_for
from edgeprune.errors import InputError
from edgeprune.exporters.options import ExportOptions
from edgeprune.lowering.record import LoweringRecord
from edgeprune.methods import amounts, require_taken
from edgeprune.methods.base import Budget, PruneRequest
from edgeprune.partitioning.manifest import PartitionManifest
from edgeprune.pipeline.train import MethodChoice, train_network
from edgeprune.profiling.profiler import ProfileOptions, ProfileResult
from edgeprune.profiling.sweeping.sweep import require_complete
from edgeprune.pruning.network import Network
from edgeprune.pruning.options import PruneOptions
from edgeprune.pruning.pruned import Pruned, prune_network
from edgeprune.training.settings import TrainSettings
from edgeprune.tuning.cache import default_path
from edgeprune.tuning.options import TuneOptions


def prune(
    model: nn.Module,
    example_input: Tensor,
    *,
    method: str = "tmi-gkp",
    groups: int | None = None,
    rate: float | None = None,
    tickets: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    budget: Mapping[str, float] | None = None,
    layer_rates: Mapping[str, float] | None = None,
    share_partitions: bool = True,
    include_first: bool = False,
    include_shortcuts: bool = False,
    skip: Sequence[str] = (),
    align: int | Literal["auto", "none"] = "none",
    device_profile: str | Path = "",
    seed: int = 0,
) -> Pruned:
    """Prune a copy of `model`; `result.model` takes and gives what `model` does and can be fine-tuned like it.

    `example_input` has shape (N, C, H, W). `settings` are the method's own, as in `edgeprune list methods`; so are
    groups and rate where they are left out. `budget` is what may be left, such as {"macs": 0.5}; `layer_rates` gives
    layers, by name or pattern, rates of their own. `tickets` is a folder with checkpoints of earlier epochs. `align` is
    a multiple that channels a group, and of thinner layers, shall be; "auto" takes the channel block of
    `device_profile`, by default that of this machine. Raises InputError for anything that cannot be pruned as asked.
    """
    if not isinstance(groups, int | None):
        raise InputError(f"groups={groups!r} is no integer", expected="2 or more")
    network = _network(model, example_input)
    rates = layer_rates or {}
    limits = Budget(**(budget or {}))
    assignments = _assignments(settings)
    require_taken(method, tickets=tickets is not None, share_partitions=share_partitions)
    groups, rate = amounts(method, groups, rate, rates, limits, assignments)
    request = PruneRequest(
        groups,
        rate,
        seed,
        share_partitions,
        include_first,
        include_shortcuts,
        tuple(skip),
        limits,
        tuple(rates.items()),
        channel_block_for(align, device_profile),
    )
    return prune_network(
        network, PruneOptions(method, request, assignments, Path(tickets) if tickets else None, str(device_profile))
    )


def train(
    model: nn.Module,
    example_input: Tensor,
    data: Dataset | str,
    *,
    method: str,
    training: TrainSettings | None = None,
    rate: float | None = None,
    settings: Mapping[str, Any] | None = None,
    budget: Mapping[str, float] | None = None,
    layer_rates: Mapping[str, float] | None = None,
    include_first: bool = False,
    include_shortcuts: bool = False,
    skip: Sequence[str] = (),
    align: int | Literal["auto", "none"] = "none",
    device_profile: str | Path = "",
) -> Pruned:
    """Train a copy of `model` with a method at work that ends in a plan (sfp, asfp, fpgm, fpgm-mix, lfpc, csgd).

    `data` is a `Dataset`, or a source as the command line names it, such as "imagefolder:DIR"; the other arguments are
    those of `prune`. The result's `network` is the given model; its `model` is the small trained one. Without a method,
    `edgeprune.training.loop.fit` trains. Raises InputError for anything that cannot be done as asked.
    """
    network = _network(model, example_input)
    training = training or TrainSettings()
    limits = Budget(**(budget or {}))
    assignments = _assignments(settings)
    _, own_rate = amounts(method, None, rate, layer_rates or {}, limits, assignments)
    request = PruneRequest(
        rate=own_rate,
        seed=training.seed,
        include_first=include_first,
        include_shortcuts=include_shortcuts,
        skip=tuple(skip),
        budget=limits,
        layer_rates=tuple((layer_rates or {}).items()),
        align=channel_block_for(align, device_profile),
    )
    images = load_data(data, split="train", input_shape=network.input_shape) if isinstance(data, str) else data
    return train_network(network, images, training, MethodChoice(method, request, assignments, str(device_profile)))


def export(
    pruned: Pruned,
    out: str | Path,
    *,
    devices: int | str = "",
    opset: int = 20,
    device_profile: str = "",
    as_planned: bool = False,
    tune: bool = False,
    threads: int = 1,
    overwrite: bool = False,
    seed: int = 0,
) -> Bundle:
    """Fold, export to ONNX, lower and verify a pruned network, and write the bundle `out`; GateError if parity fails.

    Each layer is written in the form that the device profile's cost table makes fastest, with `tune` in the one that is
    measured to be (with `threads`), with `as_planned` in the groups that the plan has.
    """
    options = DeployOptions(ExportOptions(opset=opset), seed=seed)
    tuning = TuneOptions(threads=threads, cache=default_path()) if tune else None
    lowering = LowerOptions(device_profile, tuning, as_planned)
    lowering.check()
    place = pipeline.Output(Path(out), overwrite)
    return pipeline.write_export(pruned, options, lowering, pipeline.SplitOptions(str(devices)), place)


def tune(
    bundle: str | Path,
    *,
    threads: int = 1,
    batch_size: int = 1,
    target: str = "cpu",
    device_profile: str = "",
    cache: bool = True,
) -> LoweringRecord:
    """Measure on this machine which form of each layer is fastest, and write the bundle's model anew with them.

    `target`: "cpu" (ONNX Runtime) or "openvino-native".
    """
    options = TuneOptions(threads, batch_size, target, default_path() if cache else None)
    return pipeline.tune(Path(bundle), LowerOptions(device_profile, options))[1]


def split(model: str | Path, out: str | Path, *, devices: int | str, overwrite: bool = False) -> PartitionManifest:
    """Split the groups of an ONNX file or bundle over devices, into the bundle `out`."""
    return pipeline.split(Path(model), pipeline.SplitOptions(str(devices)), pipeline.Output(Path(out), overwrite))[1]


def run(bundle: str | Path, inputs: NDArray[np.float32], *, threads: int = 1) -> dict[str, NDArray[np.generic]]:
    """Outputs of a bundle, split or not, by name; `inputs` has shape (N, C, H, W)."""
    return pipeline.run_arrays(open_bundle(Path(bundle)), inputs, threads)[0]


def profile(
    bundle: str | Path, *, targets: Sequence[str] = ("cpu",), options: ProfileOptions | None = None
) -> ProfileResult:
    """Measure a bundle's dense and pruned models in turn, and keep the result in it.

    InputError if a target could not be measured; what could is kept all the same.
    """
    result = pipeline.profile(Path(bundle), None, tuple(targets), options or ProfileOptions())
    require_complete(result)
    return result


def write_report(bundle: str | Path, *, formats: Sequence[str] = ("html", "md", "json")) -> list[Path]:
    """Write the report files into a bundle; returns their paths."""
    return pipeline.report(Path(bundle), tuple(formats))


def _network(model: nn.Module, example_input: Tensor) -> Network:
    """The model as a network; InputError if it or its example input cannot be one."""
    if not isinstance(example_input, Tensor) or example_input.dim() != 4:
        got = tuple(getattr(example_input, "shape", ())) or type(example_input).__name__
        raise InputError(f"the example input is {got}", expected="a tensor of shape (N, C, H, W)")
    odd = next((n for n, p in model.named_parameters() if p.dtype is not torch.float32), "")
    if odd:
        raise InputError(
            f"{odd} is {model.get_parameter(odd).dtype}", expected="float32 weights", remedy="model.float()"
        )
    channels, height, width = example_input.shape[1:]
    return Network(type(model).__name__, model.eval(), (channels, height, width))


def _assignments(settings: Mapping[str, Any] | None) -> tuple[str, ...]:
    return tuple(f"{name}={_text(value)}" for name, value in (settings or {}).items())


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
