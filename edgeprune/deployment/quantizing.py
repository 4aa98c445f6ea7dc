"""Write a network in another precision in a runtime's own format, and hold it to FP32 in ONNX Runtime on images.

Works without torch where the images are a .npy file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto

from edgeprune.deployment.converting import Converted, written
from edgeprune.errors import InputError
from edgeprune.exporters.conversions import Conversion, ConvertOptions, Ran, with_fixed_sizes
from edgeprune.io.arrays import Array, Feeds
from edgeprune.onnx_files.inputs import static_batch
from edgeprune.precision.formats import PrecisionRecord, require_precise, tolerance
from edgeprune.precision.quantization import require_full_precision
from edgeprune.profiling.half_range import half_remarks
from edgeprune.profiling.precise_models import Compared, compare
from edgeprune.profiling.samples import CALIBRATED_ON, COMPARED_ON, Floats, Samples, load_samples
from edgeprune.runners.base import RunOptions
from edgeprune.runners.onnxruntime.runner import OrtRunner

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
    GateError if the outputs differ by more than the precision's tolerance, or FP16 cannot hold what is computed.
    """
    options.check()
    bits = conversion.int8_weight_bits(options.weight_bits) if options.precision == "int8" else None
    require_full_precision(model, options.precision, where)
    fixed = with_fixed_sizes(model, options.input_size, where=where)
    samples = load_samples(
        fixed, calibration.data, calibration.seed, calibrate=calibration.images, compare=calibration.compare
    )
    remarks = samples.warnings(options.precision)
    if options.precision == "fp16":
        remarks += half_remarks(where, fixed, samples.compare, static_batch(fixed) or 1, samples.told)
    expected = full_precision_outputs(fixed, samples.compare)
    files = conversion.convert(fixed, replace(options, batches=samples.calibrate))
    with written(files, conversion) as path:
        ran, notes = conversion.run_all(path, samples.compare), conversion.notes(path)
    compared = compared_with(expected, ran, samples)
    limit = tolerance(options.precision)
    record = PrecisionRecord(
        conversion.name,
        where,
        options.precision,
        tolerance=limit,
        passed=compared.max_rel <= limit,
        data=samples.told,
        weight_bits=bits,
        formats=dict(ran.formats),
        **compared._asdict(),
    )
    require_precise([record])
    kept = record.remarks() if options.precision == "int8" else _FP16_REMARK
    told = (*notes, *remarks, *kept)
    return Converted(files, _max_abs(expected, ran), compared.max_rel, limit, told, record)


def full_precision_outputs(model: ModelProto, batches: tuple[Feeds, ...]) -> list[dict[str, Array]]:
    """What ONNX Runtime gives for each of the inputs, by name."""
    with OrtRunner(model, RunOptions()) as runner:
        return [runner.run(feeds) for feeds in batches]


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
