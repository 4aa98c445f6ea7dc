"""Write a network in another precision in a runtime's own format, and hold it to FP32 in ONNX Runtime on images.

Works without torch where the images are a .npy file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from onnx import ModelProto

from edgeprune.deployment.converting import Converted, require_finite, written
from edgeprune.errors import GateError, InputError
from edgeprune.exporters.conversions import Conversion, ConvertOptions, Ran, with_fixed_sizes
from edgeprune.io import progress
from edgeprune.io.arrays import Array, Feeds
from edgeprune.onnx_files.inputs import static_batch, with_input_size
from edgeprune.precision.formats import PrecisionRecord, require_precise, tolerance
from edgeprune.precision.mixed import fewest_in_fp32
from edgeprune.precision.quantization import require_full_precision
from edgeprune.profiling.half_range import half_remarks
from edgeprune.profiling.precise_models import Compared, compare
from edgeprune.profiling.samples import CALIBRATED_ON, COMPARED_ON, Floats, Samples, load_samples
from edgeprune.runners.base import RunOptions
from edgeprune.runners.onnxruntime.runner import OrtRunner

_FEW = 32
"""Inputs that tell how sensitive a layer is."""
Notes = tuple[str, ...]
_FP16_REMARK = (
    "FP16 was not run: processors compute such a file in FP32; what is known is that its values fit on these inputs",
)


@dataclass(frozen=True)
class Calibration:
    """What INT8 is calibrated on, and other precisions are compared with FP32 on."""

    data: str
    """As `edgeprune profile --data` takes it."""
    images: int = CALIBRATED_ON
    """At most, of the train split."""
    compare: int = COMPARED_ON
    """At most, of the test split."""
    seed: int = 0
    max_drop: float | None = None
    """Points of top-1 that INT8 may cost: layers stay in FP32 until it costs no more."""

    def check(self) -> None:
        """InputError where there is nothing to calibrate with."""
        if not self.data:
            raise InputError(
                "no inputs to calibrate with",
                where="convert",
                remedy="pass --data, such as imagefolder:DIR or a .npy file of inputs as the network takes them",
            )
        if self.images < 1:
            raise InputError(f"--calibration-images {self.images} is out of range", expected="1 or more")
        if self.max_drop is not None and not self.max_drop >= 0:
            raise InputError(f"--max-drop {self.max_drop:g} is out of range", expected="points, 0 or more")


def quantized(
    model: ModelProto,
    conversion: Conversion,
    options: ConvertOptions,
    calibration: Calibration,
    *,
    where: str = "ONNX model",
) -> Converted:
    """The network's files in INT8 or FP16, run on the images that it is compared on.

    InputError for a model that is quantised already, for what the format cannot hold, and for images that do not fit;
    GateError if the outputs differ by more than the precision's tolerance, INT8 costs more than `max_drop`, or FP16
    cannot hold what is computed.
    """
    options.check()
    require_full_precision(model, options.precision, where)
    trial = _Trial.of(model, conversion, options, calibration, where)
    kept: tuple[str, ...] = ()
    if calibration.max_drop is not None:
        kept = _kept_in_fp32(trial, calibration.max_drop, where)
    files, ran, notes = trial.convert(kept)
    compared = compared_with(trial.expected, ran, trial.samples)
    bits = conversion.int8_weight_bits(options.weight_bits) if options.precision == "int8" else None
    limit, told = tolerance(options.precision), trial.samples.told
    record = PrecisionRecord(
        conversion.name,
        where,
        options.precision,
        tolerance=limit,
        passed=compared.max_rel <= limit,
        data=told,
        weight_bits=bits,
        formats=dict(ran.formats),
        **compared._asdict(),
    )
    require_precise([record])
    remarks = trial.samples.warnings(options.precision)
    if options.precision == "fp16":
        batch = static_batch(trial.fixed) or 1
        remarks += (*half_remarks(where, trial.fixed, trial.samples.compare, batch, told), *_FP16_REMARK)
    else:
        remarks += record.remarks()
    near = _max_abs(trial.expected, ran), compared.max_rel, limit
    return Converted(files, *near, (*notes, *remarks), record)


@dataclass(frozen=True)
class _Trial:
    """One network that is written in a format with some layers in FP32 or others, and run."""

    model: ModelProto
    fixed: ModelProto
    """The same with all sizes fixed."""
    conversion: Conversion
    options: ConvertOptions
    samples: Samples
    expected: list[dict[str, Array]]
    """In FP32, of each of the inputs that are compared."""

    @staticmethod
    def of(
        model: ModelProto, conversion: Conversion, options: ConvertOptions, calibration: Calibration, where: str
    ) -> _Trial:
        fixed = with_fixed_sizes(model, options.input_size, where=where)
        source = fixed if conversion.fixes_sizes else with_input_size(model, options.input_size, where=where)
        wanted = {"calibrate": calibration.images, "compare": calibration.compare}
        samples = load_samples(fixed, calibration.data, calibration.seed, **wanted)
        expected = full_precision_outputs(fixed, samples.compare, where)
        return _Trial(source, fixed, conversion, options, samples, expected)

    def convert(self, fp32_layers: tuple[str, ...] = (), few: int = 0) -> tuple[Mapping[str, bytes], Ran, Notes]:
        """The files, what the runtime made of them, and what is to be known of them; with `few`, calibrated and run on
        so many inputs alone."""
        end = few or None
        how = replace(self.options, batches=self.samples.calibrate[:end], fp32_layers=fp32_layers)
        files = self.conversion.convert(self.model, how)
        with written(files, self.conversion) as path:
            return files, self._run(path, self.samples.compare[:end]), self.conversion.notes(path)

    def _run(self, path: Path, batches: tuple[Feeds, ...]) -> Ran:
        if self.conversion.run_on is not None:
            return self.conversion.run_on(path, batches)
        with OrtRunner(path, RunOptions(), precision=self.options.precision) as runner:
            return Ran(tuple(runner.run(feeds) for feeds in batches), runner.layer_formats())

    def drop(self, fp32_layers: tuple[str, ...]) -> float:
        """Points of top-1 that INT8 costs with these layers in FP32."""
        compared = compared_with(self.expected, self.convert(fp32_layers)[1], self.samples)
        assert compared.top1 is not None
        assert compared.top1_fp32 is not None
        return compared.top1_fp32 - compared.top1

    def error(self, fp32_layers: tuple[str, ...]) -> float:
        """Mean squared difference of the outputs from FP32's with these layers in FP32, on a few inputs."""
        outputs = self.convert(fp32_layers, few=_FEW)[1].outputs
        pairs = [
            (wanted[name], found[name])
            for wanted, found in zip(self.expected, outputs, strict=False)
            for name in wanted
        ]
        return float(np.mean([np.mean((found.astype(np.float64) - wanted) ** 2) for wanted, found in pairs]))


def _kept_in_fp32(trial: _Trial, max_drop: float, where: str) -> tuple[str, ...]:
    """The layers that INT8 leaves in FP32, so that it costs no more than that; GateError where it does all the same."""
    if trial.samples.labels is None:
        raise InputError("--max-drop needs labels", where="convert", expected="--data with labels")
    if trial.drop(()) <= max_drop:
        return ()
    layers = tuple(name for name, kind in trial.convert((), few=1)[1].formats.items() if kind == "int8")
    tracked = progress.track(layers, "how much each layer costs in INT8", total=len(layers))
    sensitivity = {name: trial.error(tuple(other for other in layers if other != name)) for name in tracked}
    found = fewest_in_fp32(sensitivity, trial.drop, max_drop)
    if found.drop > max_drop:
        raise GateError(
            f"{where}: INT8 costs {found.drop:.2f} points of top-1 with all {len(layers)} layers in FP32 "
            f"(--max-drop {max_drop:g}): what is between them costs it"
        )
    return found.fp32_layers


def full_precision_outputs(
    model: ModelProto, batches: tuple[Feeds, ...], where: object = "ONNX model"
) -> list[dict[str, Array]]:
    """What ONNX Runtime gives for each of the inputs, by name; InputError where that is not finite."""
    with OrtRunner(model, RunOptions()) as runner:
        found = [runner.run(feeds) for feeds in batches]
    for outputs in found:
        require_finite(outputs, where, "on --data")
    return found


def compared_with(expected: list[dict[str, Array]], ran: Ran, samples: Samples) -> Compared:
    """How far a written file's outputs are from these."""
    names = list(expected[0])

    def joined(outputs: Sequence[dict[str, Array]]) -> list[Floats]:
        return [np.concatenate([each[name] for each in outputs]).astype(np.float32) for name in names]

    return compare(joined(expected), joined(ran.outputs), samples.labels)


def _max_abs(expected: list[dict[str, Array]], ran: Ran) -> float:
    both = zip(expected, ran.outputs, strict=True)
    pairs = [(wanted[name], found[name]) for wanted, found in both for name in wanted]
    return max(float(np.abs(found.astype(np.float64) - wanted).max(initial=0.0)) for wanted, found in pairs)
