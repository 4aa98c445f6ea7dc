"""`edgeprune convert`: an ONNX file, or a bundle's network, in another runtime's format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgeprune.bundles.bundle import open_bundle
from edgeprune.bundles.names import DENSE_MODEL, MODEL
from edgeprune.deployment.converting import ConvertedFile, converted, metadata_of, pruned_model
from edgeprune.deployment.quantizing import Calibration, quantized
from edgeprune.errors import InputError
from edgeprune.exporters.conversions import CONVERSIONS, Conversion, ConvertOptions, conversion_named
from edgeprune.io.files import check_file, write_atomically
from edgeprune.onnx_files.model import load_model


def convert(
    model: Path,
    to: str,
    out: Path,
    options: ConvertOptions,
    *,
    dense: bool = False,
    calibration: Calibration = Calibration(""),
) -> ConvertedFile:
    """Write the network in the format `to`, and hold it to what ONNX Runtime computes; nothing is written if it
    differs.

    Of a bundle it is the pruned network, as planned or in forms that were measured in that runtime, or with `dense` its
    baseline. Other precisions than FP32 want a `calibration`.
    InputError for what the format cannot hold; GateError if the outputs differ.
    """
    conversion = conversion_named(to, options.precision)
    conversion.check(options)
    if options.precision != "fp32":
        calibration.check()
    elif calibration.data:
        raise InputError(
            "--data is for other precisions", where="convert", remedy="pass --precision int8, or leave --data out"
        )
    if out.suffix != conversion.suffix:
        raise InputError("has another suffix", where=out, expected=f"a file NAME{conversion.suffix}")
    check_file(out)
    _check_beside(conversion, out)
    source, options = _source(model, conversion, options, dense=dense)
    if options.precision != "fp32":
        result = quantized(load_model(source), conversion, options, calibration, where=str(source))
    else:
        result = converted(load_model(source), conversion, options, where=source)
    for suffix, data in reversed(list(result.files.items())):  # the one that names the others last
        write_atomically(out.with_suffix(suffix), data)
    return result.told(out, conversion, options)


def _check_beside(conversion: Conversion, out: Path) -> None:
    """InputError where a file beside the one to write belongs to another format's."""
    for other in CONVERSIONS.values():
        shared = set(other.beside) & set(conversion.beside)
        if other != conversion and shared and (taken := out.with_suffix(other.suffix)).is_file():
            raise InputError(
                f"would replace {out.with_suffix(min(shared)).name}, which belongs to {taken.name}",
                where=out,
                expected="another name, or another folder",
            )


def _source(
    model: Path, conversion: Conversion, options: ConvertOptions, *, dense: bool
) -> tuple[Path, ConvertOptions]:
    """The ONNX file to convert, and what the result is to say of where it comes from."""
    if not model.is_dir():
        if dense:
            raise InputError("an ONNX file has no dense baseline", where=model, remedy="leave out --dense")
        return model, options
    bundle = open_bundle(model)
    if not bundle.has(MODEL):
        raise InputError(
            "holds no ONNX model yet", where=model, remedy=f"edgeprune export {model} -o OUT writes it"
        )  # fmt: skip
    if dense:
        return bundle.path(DENSE_MODEL), options
    return bundle.path(pruned_model(bundle.folder, conversion)), replace(options, metadata=metadata_of(model))
