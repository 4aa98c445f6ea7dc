"""Write a network in another runtime's format, and hold the files to what ONNX Runtime computes.

Works without torch. The network is converted as planned, unless the forms that layers have in a bundle's `model.onnx`
were measured in that runtime.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from onnx import ModelProto

from edgeprune.bundles.names import DENSE_MODEL, LOWERING, MODEL, PLAIN_MODEL, PLAN
from edgeprune.deployment.parity import TOLERANCE, differences
from edgeprune.errors import GateError, InputError
from edgeprune.exporters.conversions import Conversion, ConvertOptions, conversion_named, with_fixed_sizes
from edgeprune.io import progress
from edgeprune.io.arrays import Array
from edgeprune.lowering.record import load_lowering
from edgeprune.onnx_files.inputs import input_specs
from edgeprune.onnx_files.model import load_model
from edgeprune.precision.formats import PrecisionRecord
from edgeprune.profiling.agreement import allowed
from edgeprune.profiling.setup import random_feeds
from edgeprune.runners.base import RunOptions
from edgeprune.runners.onnxruntime.runner import OrtRunner


class ConvertedFile(msgspec.Struct, frozen=True):
    """What was written of one network, and how far it is from the ONNX file in ONNX Runtime."""

    path: str
    """Of the file that the runtime is given."""
    format: str
    io_layout: str
    """Empty where the format has one layout alone, that of ONNX."""
    bytes: int
    """Of all files that belong to it."""
    max_abs: float
    max_rel: float
    """Over the output's range, on random inputs."""
    tolerance: float
    notes: tuple[str, ...] = ()
    """What whoever runs it should know."""
    precision: str = "fp32"
    compared: PrecisionRecord | None = None
    """With FP32 in ONNX Runtime on images, where the file has another precision; `max_rel` is of these, too."""


@dataclass(frozen=True)
class Converted:
    """A network in another format, in memory."""

    files: Mapping[str, bytes]
    """Suffix -> contents; the first is the file that the runtime is given."""
    max_abs: float
    max_rel: float
    tolerance: float
    notes: tuple[str, ...] = ()
    """As `Conversion.notes`."""
    compared: PrecisionRecord | None = None

    def told(self, path: Path, conversion: Conversion, options: ConvertOptions) -> ConvertedFile:
        size = sum(map(len, self.files.values()))
        layout = options.io_layout if conversion.has_layouts else ""
        how_near = self.max_abs, self.max_rel, self.tolerance
        about = options.precision, self.compared
        return ConvertedFile(str(path), conversion.name, layout, size, *how_near, self.notes, *about)


def converted(
    model: ModelProto,
    conversion: Conversion,
    options: ConvertOptions,
    *,
    where: object = "ONNX model",
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> Converted:
    """The network's files in this format, run once on random inputs and compared with ONNX Runtime.

    InputError for what the format cannot hold, for sizes that are open, and for outputs that are not finite; GateError
    if they differ by more than `tolerance` of their range, or what a file that is quantised already may.
    """
    options.check()
    fixed = with_fixed_sizes(model, options.input_size, where=where)
    files = conversion.convert(fixed, options)
    specs = input_specs(fixed)
    batch = next((spec.shape[0] for spec in specs if spec.is_batched and isinstance(spec.shape[0], int)), 1)
    values = random_feeds(specs, int(batch), seed)
    feeds = {spec.name: value for spec, value in zip(specs, values, strict=True)}
    with OrtRunner(fixed, RunOptions()) as runner:
        wanted = runner.run(feeds)
    require_finite(wanted, where, "on random inputs")
    with written(files, conversion) as path:
        found, notes = conversion.run(path, feeds), conversion.notes(path)
    references = [output.astype(np.float64) for output in wanted.values()]
    tolerance = max(tolerance, allowed(fixed))
    max_abs, max_rel = differences([found[name] for name in wanted], references)
    if not max_rel <= tolerance:
        raise GateError(
            f"{where}: parity failed: in {conversion.runtime} the outputs differ from ONNX Runtime's by {max_rel:.2e} "
            f"of their range (tolerance {tolerance:.0e}, on random inputs)"
        )
    return Converted(files, max_abs, max_rel, tolerance, notes)


def require_finite(outputs: Mapping[str, Array], where: object, inputs: str) -> None:
    """InputError for outputs of ONNX Runtime that are NaN or infinite: nothing can be compared with them."""
    for name, output in outputs.items():
        if not np.isfinite(output).all():
            raise InputError(
                f"gives NaN or infinite values as {name!r}, in ONNX Runtime itself",
                where=where,
                expected=f"finite outputs to compare with, {inputs}",
            )


@contextmanager
def written(files: Mapping[str, bytes], conversion: Conversion) -> Iterator[Path]:
    """The main file's path, all of them lying beside each other inside of the block."""
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        for suffix, data in files.items():
            Path(folder, f"model{suffix}").write_bytes(data)
        yield Path(folder, f"model{conversion.suffix}")


Convert = Callable[[ModelProto, Conversion, ConvertOptions, str], Converted]
"""A model, the format, how to write it, and the name of what is written."""


def convert_into(stage: Path, names: Sequence[str], options: ConvertOptions, convert: Convert) -> list[ConvertedFile]:
    """Write a staged bundle's networks, pruned and dense, in these formats, too; InputError and GateError as
    `convert` raises them."""
    found = []
    kind = "" if options.precision == "fp32" else f".{options.precision}"
    for conversion in (conversion_named(name, options.precision) for name in names):
        for stem, source in _networks(stage, conversion):
            path = stage / conversion.path(f"{stem}{kind}")
            progress.note(f"writing and verifying {conversion.path(path.stem)}")
            told = replace(options, io_layout=conversion.layouts[0])
            told = replace(told, metadata=metadata_of(stage)) if stem == "model" else told
            result = convert(load_model(source), conversion, told, conversion.path(path.stem))
            path.parent.mkdir(exist_ok=True)
            for suffix, data in result.files.items():
                path.with_suffix(suffix).write_bytes(data)
            for note in result.notes:
                progress.note(f"{conversion.path(path.stem)}: {note}")
            found.append(result.told(path, conversion, options))
    return found


def metadata_of(folder: Path) -> dict[str, bytes]:
    """What a converted file says of where it comes from: the plan that the bundle was pruned by, if it has one."""
    plan = folder / PLAN
    return {PLAN: plan.read_bytes()} if plan.is_file() else {}


def pruned_model(folder: Path, conversion: Conversion) -> str:
    """Which of a bundle's ONNX files holds the pruned network as the format's runtime shall run it: as planned, unless
    the forms in `model.onnx` were measured there."""
    if not (folder / PLAIN_MODEL).is_file():
        return MODEL
    record = load_lowering(folder / LOWERING) if (folder / LOWERING).is_file() else None
    is_tuned = record is not None and record.chosen_by == "measured" and record.target == conversion.target
    return MODEL if is_tuned else PLAIN_MODEL


def _networks(stage: Path, conversion: Conversion) -> Iterator[tuple[str, Path]]:
    """The stems of the files to write, and the ONNX file that each comes from."""
    yield "model", stage / pruned_model(stage, conversion)
    if (stage / DENSE_MODEL).is_file():
        yield "dense", stage / DENSE_MODEL
