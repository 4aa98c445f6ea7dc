"""The library's front door: the steps of the command line as functions on models and folders."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeprune.bundles.bundle import Bundle, open_bundle
from edgeprune.datasets.images import Dataset, load_data
from edgeprune.deployment.clock import clock_for
from edgeprune.deployment.lower_bundle import LowerOptions
from edgeprune.deployment.options import DeployOptions
from edgeprune.devices.device_profile import channel_block_for
from edgeprune.devices.prices import prices_for
from edgeprune.errors import InputError
from edgeprune.exporters.options import ExportOptions
from edgeprune.io.arrays import Feeds
from edgeprune.lowering.record import LoweringRecord
from edgeprune.methods import amounts, load_method, require_images, require_taken
from edgeprune.methods.base import PruneRequest
from edgeprune.methods.budget import Budget
from edgeprune.pipeline.export import write_export
from edgeprune.pipeline.output import Output
from edgeprune.pipeline.profile import profile as profile_bundle
from edgeprune.pipeline.report import report
from edgeprune.pipeline.run import run_arrays
from edgeprune.pipeline.split import SplitOptions, split_over
from edgeprune.pipeline.tune import tune as tune_bundle
from edgeprune.profiling.profiler import ProfileOptions, ProfileResult
from edgeprune.profiling.sweeping.sweep import require_complete
from edgeprune.pruning.given_model import network_of
from edgeprune.pruning.healed import healed
from edgeprune.pruning.images import in_seeded_order
from edgeprune.pruning.network import Network
from edgeprune.pruning.options import CALIBRATION_IMAGES, DataOptions, Heal, PruneOptions
from edgeprune.pruning.pruned import Pruned, prune_network
from edgeprune.pruning.while_training import MethodChoice, train_network
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
    budget: Mapping[str, float | str] | str | None = None,
    layer_rates: Mapping[str, float] | None = None,
    share_partitions: bool = True,
    include_first: bool = False,
    include_shortcuts: bool = False,
    skip: Sequence[str] = (),
    align: int | Literal["auto", "none"] = "none",
    gathers: Literal["any", "none"] = "any",
    device_profile: str | Path = "",
    data: Dataset | str | None = None,
    heal: float | Literal["auto", "none"] = "auto",
    seed: int = 0,
) -> Pruned:
    """Prune a copy of `model`; `result.model` takes and gives what `model` does and can be fine-tuned like it.

    `example_input` has shape (N, C, H, W). `settings` are the method's own, as in `edgeprune list methods`; so are
    groups and rate where they are left out. `budget` is what may be left, such as {"macs": 0.5}; `layer_rates` gives
    layers, by name or pattern, rates of their own. `tickets` is a folder with checkpoints of earlier epochs. `align` is
    a multiple that channels a group, and of thinner layers, shall be; "auto" takes the channel block of
    `device_profile`, by default this machine's. gathers="none" leaves none: what needs one stays dense. `data` is for a
    method that chooses on images (gkp-cal): a `Dataset`, all of which is looked at, or a source as the command line
    names it. `heal`: minutes of training, without labels, to give what `model` gives on `data`; "auto": some, after
    such a method alone.
    Raises InputError for anything that cannot be pruned as asked.
    """
    if not isinstance(groups, int | None):
        raise InputError(f"groups={groups!r} is no integer", expected="2 or more")
    network = network_of(model, example_input)
    require_taken(method, tickets=tickets is not None, share_partitions=share_partitions)
    request = _request(
        method, seed, groups, share_partitions, rate=rate, settings=settings, budget=budget, layer_rates=layer_rates,
        include_first=include_first, include_shortcuts=include_shortcuts, skip=skip, align=align,
        device_profile=device_profile,
    )  # fmt: skip
    request, folder = replace(request, allows_gathers=gathers == "any"), Path(tickets) if tickets else None
    options = PruneOptions(method, request, _assignments(settings), folder, str(device_profile))
    require_images(load_method(method), given=data is not None)
    how = DataOptions(heal=Heal.parse(heal), seed=seed)
    if how.heal.minutes is not None and data is None:
        raise InputError(f"heal={heal} needs images, and there are none", remedy="pass data")
    seen = None if data is None else _seen(data, network, seed)
    return healed(prune_network(network, options, seen=seen, make_clock=clock_for), how, seen)


def _seen(data: Dataset | str, network: Network, seed: int) -> Dataset:
    """The images that a method looks at."""
    if not isinstance(data, str):
        return data
    return in_seeded_order(load_data(data, split="train", input_shape=network.input_shape), CALIBRATION_IMAGES, seed)


class MethodKeywords(TypedDict, total=False):
    """What any method may be told; as the arguments of `prune` of these names."""

    rate: float | None
    settings: Mapping[str, Any] | None
    budget: Mapping[str, float | str] | str | None
    layer_rates: Mapping[str, float] | None
    include_first: bool
    include_shortcuts: bool
    skip: Sequence[str]
    align: int | Literal["auto", "none"]
    device_profile: str | Path


def train(
    model: nn.Module,
    example_input: Tensor,
    data: Dataset | str,
    *,
    method: str,
    training: TrainSettings | None = None,
    **asked: Unpack[MethodKeywords],
) -> Pruned:
    """Train a copy of `model` with a method at work that ends in a plan (sfp, asfp, fpgm, fpgm-mix, lfpc, csgd).

    `data` is a `Dataset`, or a source as the command line names it, such as "imagefolder:DIR"; the other arguments are
    those of `prune`: rate, settings, budget, layer_rates, include_first, include_shortcuts, skip, align,
    device_profile. The result's `network` is the given model; its `model` is the small trained one. Without a method,
    `edgeprune.training.loop.fit` trains. Raises InputError for anything that cannot be done as asked.
    """
    _check_keywords("train", asked, MethodKeywords)
    network = network_of(model, example_input)
    training = training or TrainSettings()
    request = _request(method, training.seed, **asked)
    images = load_data(data, split="train", input_shape=network.input_shape) if isinstance(data, str) else data
    assignments, device_profile = _assignments(asked.get("settings")), str(asked.get("device_profile", ""))
    return train_network(network, images, training, MethodChoice(method, request, assignments, device_profile))


class ExportKeywords(TypedDict, total=False):
    """How `export` writes the files."""

    opset: int
    device_profile: str
    as_planned: bool
    tune: bool
    threads: int
    to: Sequence[str]
    seed: int


def export(
    pruned: Pruned,
    out: str | Path,
    *,
    devices: int | str = "",
    force: bool = False,
    overwrite: bool = False,
    **how: Unpack[ExportKeywords],
) -> Bundle:
    """Fold, export to ONNX, lower and verify a pruned network, and write the bundle `out`; GateError if parity fails,
    or a split over `devices` does not pay (unless `force`).

    Besides: opset (20); device_profile (this machine's), in whose cost table each layer is written in the form that is
    fastest; as_planned, in the groups that the plan has; tune, in the form that is measured to be fastest here, with
    `threads` (1); to, such as ["tflite"], formats in which both networks are written, too; seed (0).
    """
    _check_keywords("export", how, ExportKeywords)
    deploy, lowering = _how(**how)
    lowering.check()
    return write_export(pruned, deploy, lowering, SplitOptions(str(devices), force=force), Output(Path(out), overwrite))


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

    `target`: "cpu" (ONNX Runtime), "openvino-native", "litert" or "ncnn".
    """
    options = TuneOptions(threads, batch_size, target, default_path() if cache else None)
    return tune_bundle(Path(bundle), LowerOptions(device_profile, options))[1]


split = split_over


def run(bundle: str | Path, inputs: NDArray[np.generic] | Feeds, *, threads: int = 1) -> dict[str, NDArray[np.generic]]:
    """Outputs of a bundle, split or not, by name; `inputs`: (N, C, H, W), or several arrays by name."""
    return run_arrays(open_bundle(Path(bundle)), inputs, threads)[0]


def profile(
    bundle: str | Path, *, targets: Sequence[str] = ("cpu",), options: ProfileOptions | None = None
) -> ProfileResult:
    """Measure a bundle's dense and pruned models in turn, and keep the result in it.

    InputError if a target could not be measured; what could is kept all the same.
    """
    result = profile_bundle(Path(bundle), None, tuple(targets), options or ProfileOptions())
    require_complete(result)
    return result


def write_report(
    bundle: str | Path, *, formats: Sequence[str] = ("html", "md", "json"), run: Path | None = None
) -> list[Path]:
    """Write the report files into a bundle; returns their paths. `run`: what `run --json` wrote."""
    return report(Path(bundle), tuple(formats), run)


def _request(
    method: str,
    seed: int,
    groups: int | None = None,
    share_partitions: bool = True,
    /,
    *,
    rate: float | None = None,
    settings: Mapping[str, Any] | None = None,
    budget: Mapping[str, float | str] | str | None = None,
    layer_rates: Mapping[str, float] | None = None,
    include_first: bool = False,
    include_shortcuts: bool = False,
    skip: Sequence[str] = (),
    align: int | Literal["auto", "none"] = "none",
    device_profile: str | Path = "",
) -> PruneRequest:
    """What is asked of a method; InputError for what it does not take."""
    rates, limits = layer_rates or {}, Budget.of(budget)
    groups, rate = amounts(method, groups, rate, rates, limits, _assignments(settings))
    return PruneRequest(
        groups,
        rate,
        seed,
        share_partitions,
        include_first,
        include_shortcuts,
        tuple(skip),
        limits,
        tuple(rates.items()),
        channel_block_for(align, device_profile or limits.profile),
        prices_for(align, device_profile or limits.profile),
    )


def _how(
    *,
    opset: int = 20,
    device_profile: str = "",
    as_planned: bool = False,
    tune: bool = False,
    threads: int = 1,
    to: Sequence[str] = (),
    seed: int = 0,
) -> tuple[DeployOptions, LowerOptions]:
    """How to write the files, and each layer in them."""
    tuning = TuneOptions(threads=threads, cache=default_path()) if tune else None
    lowering = LowerOptions(device_profile, tuning, as_planned)
    return DeployOptions(ExportOptions(opset=opset), seed=seed, to=tuple(to)), lowering


def _check_keywords(function: str, given: Mapping[str, object], known: type) -> None:
    """TypeError for what the function does not take, under its own name."""
    if unknown := [name for name in given if name not in known.__annotations__]:
        raise TypeError(f"{function}() got an unexpected keyword argument {unknown[0]!r}")


def _assignments(settings: Mapping[str, Any] | None) -> tuple[str, ...]:
    return tuple(f"{name}={_text(value)}" for name, value in (settings or {}).items())


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _spelt_out(function: Callable[..., Any], source: Callable[..., Any]) -> inspect.Signature:
    """For help(): the signature of a function that hands its **keywords on to `source`, with their names."""
    own, handed_on = inspect.signature(function), inspect.signature(source).parameters.values()
    named = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    return own.replace(parameters=[*named, *(p for p in handed_on if p.kind is p.KEYWORD_ONLY)])


train.__signature__ = _spelt_out(train, _request)  # type: ignore[attr-defined]
export.__signature__ = _spelt_out(export, _how)  # type: ignore[attr-defined]
