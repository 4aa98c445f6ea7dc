"""The two networks in another precision: converted for each target, and compared there with FP32 before they are timed.

Nothing takes the place of `model.onnx`: the converted files have names of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeprune.bundles.names import DENSE_MODEL, MODEL
from edgeprune.errors import GateError
from edgeprune.exporters.conversions import conversion_named, with_batch
from edgeprune.exporters.options import ConvertOptions
from edgeprune.exporters.tflite.record import path_for_batch
from edgeprune.io import progress
from edgeprune.io.arrays import Feeds
from edgeprune.onnx_files.inputs import static_batch
from edgeprune.onnx_files.model import load_model, save_onnx
from edgeprune.precision.formats import PrecisionRecord, require_precise, tolerance
from edgeprune.precision.half import to_half
from edgeprune.precision.quantization import to_int8
from edgeprune.precision.weight_bits import weight_bits
from edgeprune.profiling.batch import memory_checked
from edgeprune.profiling.half_range import half_remarks
from edgeprune.profiling.mixed_formats import may_mix, with_faster_layers
from edgeprune.profiling.samples import Floats, Samples, rebatched
from edgeprune.profiling.setup import ProfileOptions, Which
from edgeprune.runners import registry
from edgeprune.runners.base import ProfiledRunner
from edgeprune.runners.target import OpenOptions, Source, Target

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class PreciseModels:
    """What is run instead of the FP32 files."""

    files: Mapping[str, Mapping[Which, Path]] = field(default_factory=dict)
    """Target -> its converted files; targets that convert for themselves are left out."""
    records: tuple[PrecisionRecord, ...] = ()
    warnings: tuple[str, ...] = ()

    def refusal(self, target: str) -> GateError | None:
        """Why nothing is timed on this target: its outputs are outside the tolerance. None if they are not."""
        try:
            require_precise(record for record in self.records if record.target == target)
        except GateError as error:
            return error
        return None


def precise_models(
    networks_for: Callable[[Target], Mapping[Which, Path]],
    modules: Mapping[Which, nn.Module],
    targets: Sequence[str],
    options: ProfileOptions,
    samples: Samples,
    folder: Path,
    engines: Path | None = None,
) -> PreciseModels:
    """Convert the networks into `folder` as the targets need it, run them there, and compare them with FP32.

    `networks_for` tells the FP32 files that a target runs. InputError if a target cannot be used, or a network cannot
    be converted or run. What is outside the tolerance is recorded, and is no error here: on such a target nothing is
    timed.
    """
    precision, run = options.precision, options.run_options()
    wanted = {name: registry.require(name, precision) for name in targets}
    files: dict[str, dict[Which, Path]] = {
        name: {
            which: converted_for(target, path, which, options, samples, folder)
            for which, path in networks_for(target).items()
        }
        for name, target in wanted.items()
        if target.is_given(precision)
    }
    kept: dict[tuple[str, Which], tuple[str, ...]] = {}
    for target in wanted.values():
        for which, path in networks_for(target).items() if may_mix(target, options) else ():
            own = files[target.name]
            own[which], kept[target.name, which] = with_faster_layers(target, path, own[which], options, samples)
    records, remarks = [], list(samples.warnings(precision))
    for which, path in networks_for(registry.target_named("cpu")).items():
        if precision == "fp16":
            model = load_model(path)
            remarks += half_remarks(which, model, samples.compare, static_batch(model) or 1, samples.told)
        with closing(registry.open_runner("cpu", Source(path), OpenOptions(run))) as reference:
            names, expected = reference.input_names, _outputs(reference, samples)
        for name, target in wanted.items():
            file = files.get(name, networks_for(target))[which]
            source, how = Source(file, modules.get(which), names), OpenOptions(run, precision, engines)
            with memory_checked(name), closing(registry.open_runner(name, source, how)) as runner:
                compared = compare(expected, _outputs(runner, samples), samples.labels)
                formats = _layer_formats(runner)
            records.append(
                PrecisionRecord(
                    name,
                    which,
                    precision,
                    tolerance=tolerance(precision),
                    passed=compared.max_rel <= tolerance(precision),
                    data=samples.told,
                    file=file.name if name in files else "",
                    weight_bits=_weight_bits(target, options),
                    formats=formats,
                    kept_fp32=kept.get((name, which), ()),
                    **compared._asdict(),
                )
            )
    remarks += [text for record in records for text in record.remarks()]
    return PreciseModels(files, tuple(records), tuple(remarks))


class Compared(NamedTuple):
    """How far outputs are from others; per cent of the inputs, as in `PrecisionRecord`."""

    max_rel: float
    agreement: float | None
    n: int
    top1: float | None = None
    top1_fp32: float | None = None


def compare(expected: Sequence[Floats], got: Sequence[Floats], labels: NDArray[np.int64] | None = None) -> Compared:
    """Outputs of the FP32 network and of another, each (n, ...), the first one being the classes' where it is (n, c).

    max_rel is infinite where something is not finite.
    """
    largest = 0.0
    for reference, other in zip(expected, got, strict=True):
        difference = float(np.abs(other.astype(np.float64) - reference).max(initial=0.0))
        scale = float(np.abs(reference).max(initial=0.0)) or 1.0
        largest = max(largest, difference / scale if np.isfinite(difference) else np.inf)
    first, second = expected[0], got[0]
    if first.ndim != 2:
        return Compared(largest, None, len(first))
    before, after = first.argmax(1), second.argmax(1)
    agreement = 100 * float((before == after).mean())
    if labels is None:
        return Compared(largest, agreement, len(first))
    top1, top1_fp32 = (100 * float((found == labels).mean()) for found in (after, before))
    return Compared(largest, agreement, len(first), top1, top1_fp32)


def is_converted(name: str) -> bool:
    """Whether a file of a bundle is one of its networks in another precision."""
    return re.fullmatch(r"\w+\.(fp16|int8(-[a-z-]+)?)(\.batch-\d+)?\.(onnx|tflite)", name) is not None


def converted_for(
    target: Target, path: Path, which: Which, options: ProfileOptions, samples: Samples, folder: Path
) -> Path:
    """The file in the precision, in `folder`; the same for targets that want the same. Named as in a bundle: two loose
    files may have the same name."""
    precision, stem = options.precision, Path(DENSE_MODEL if which == "dense" else MODEL).stem
    if precision == "int8" and target.int8_format != "onnx":
        return _in_format(path, folder / f"{stem}.{precision}", target.int8_format, options, samples)
    symmetric = precision == "int8" and target.symmetric
    place = folder / f"{stem}.{precision}{'-symmetric' if symmetric else ''}.onnx"
    if not place.exists():
        model = load_model(path)
        progress.note(f"converting {path.name} to {precision}")
        if precision == "fp16":
            converted = to_half(model)
        else:
            converted = to_int8(model, samples.calibrate, symmetric=symmetric, bits=options.weight_bits)
        save_onnx(converted, place)
    return place


def _in_format(path: Path, stem: Path, format: str, options: ProfileOptions, samples: Samples) -> Path:
    """The network in INT8 in a runtime's own format, whose files are for one batch size each: one for single images,
    or the batch that the network fixes, and one for each other size that is measured."""
    conversion = conversion_named(format, "int8")
    model = load_model(path)
    first = static_batch(model) or 1
    place = stem.with_name(stem.name + conversion.suffix)
    for size in dict.fromkeys((first, *options.batch_sizes)):
        file = place if size == first else path_for_batch(place, size)
        if file.exists():
            continue
        progress.note(f"converting {path.name} to {options.precision} for {conversion.runtime}, batch {size}")
        how = ConvertOptions(precision="int8", batches=rebatched(samples.calibrate, size))
        for suffix, data in conversion.convert(with_batch(model, size, where=path), how).items():
            file.with_name(file.name.removesuffix(conversion.suffix) + suffix).write_bytes(data)
    return place


def _weight_bits(target: Target, options: ProfileOptions) -> int | None:
    if options.precision != "int8":
        return None
    return 8 if target.int8_format != "onnx" else weight_bits(options.weight_bits, symmetric=target.symmetric)


def _layer_formats(runner: ProfiledRunner) -> dict[str, str]:
    """In which format the runtime computed each layer; empty where it does not tell."""
    told: Callable[[], dict[str, str]] | None = getattr(runner, "layer_formats", None)
    return told() if told else {}


def _outputs(runner: ProfiledRunner, samples: Samples) -> list[Floats]:
    """Every output for all of the samples, in the runner's order."""
    batches = samples.compare
    fixed: int | None = getattr(runner, "fixed_batch", None)
    if fixed is not None:
        batches = rebatched(batches, fixed)
    taken = [list(runner.run(_renamed(feeds, runner)).values()) for feeds in batches]
    return [np.concatenate(parts) for parts in zip(*taken, strict=True)]


def _renamed(feeds: Feeds, runner: ProfiledRunner) -> Feeds:
    """The dense network's inputs may have other names than the pruned one's."""
    return dict(zip(runner.input_names, feeds.values(), strict=True))
