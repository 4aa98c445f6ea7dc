"""Number formats in which a network can be run, and how far one may take its outputs from FP32's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import msgspec

from edgeprune.errors import GateError
from edgeprune.io.formatting import some

Precision = Literal["fp32", "tf32", "fp16", "int8"]
"""fp32: all of its bits; tf32: numbers stay FP32, but the factors of products are rounded to 11 bits, as NVIDIA's
libraries do where they may; fp16, int8: weights and activations are kept in the format."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_TOLERANCES: dict[str, float] = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 1e-2, "int8": 0.15}


def tolerance(precision: str) -> float:
    """Largest difference from the FP32 model's outputs that passes, over their range (max_rel, as in the parity gate).

    TF32 and FP16 keep 11 bits of a number and INT8 at most 8, of activations with one scale a tensor: deep networks
    reach a few per cent of the logits' range without losing accuracy. More than the tolerance is a fault, not rounding.
    """
    return _TOLERANCES[precision]


def share_of_bytes(precision: str) -> float:
    """Bytes of a weight or an activation, as a share of FP32's."""
    return {"fp32": 1.0, "tf32": 1.0, "fp16": 0.5, "int8": 0.25}[precision]


class PrecisionRecord(msgspec.Struct, frozen=True):
    """One network on one target in another precision, compared with FP32 on ONNX Runtime's CPU provider."""

    target: str
    network: str
    """`dense` or `pruned`."""
    precision: str
    max_rel: float
    """Largest difference of an output from FP32's, over the largest absolute value of FP32's."""
    tolerance: float
    passed: bool
    agreement: float | None
    """Per cent of the inputs with the same largest output; null where the output is no list of classes."""
    n: int
    """Inputs that were compared."""
    data: str
    """Where they are from, and those that calibrated the model in INT8."""
    top1: float | None = None
    """Per cent, where the data has labels."""
    top1_fp32: float | None = None
    """The same images' in FP32."""
    file: str = ""
    """The converted model's name in the bundle; empty where the runtime converts."""
    weight_bits: int | None = None
    """Of INT8's weights: 7 where a processor without VNNI would cut sums of products of 8 bits."""
    formats: dict[str, str] = {}
    """Convolution or linear layer -> the number format in which the runtime computed it, read back from the runtime;
    empty where it does not tell."""
    kept_fp32: tuple[str, ...] = ()
    """Layers that were left in FP32, since they are faster so."""

    @property
    def other_layers(self) -> tuple[str, ...]:
        """The layers that the runtime computed in another format than this precision, though they were to be in it."""
        return tuple(
            name
            for name, format in self.formats.items()
            if format != self.precision and not (format == "fp32" and name in self.kept_fp32)
        )

    def remarks(self) -> tuple[str, ...]:
        """Sentences without an end on what did not run as it was asked for."""
        others, found = self.other_layers, []
        if self.kept_fp32:
            count = f"{len(self.kept_fp32)} layer{'s' if len(self.kept_fp32) > 1 else ''}"
            found.append(
                f"{self.target}, {self.network}: {count} stayed in fp32, where {self.precision} is slower: "
                f"{some(self.kept_fp32)}"
            )
        if not others:
            return tuple(found)
        kinds = " or ".join(sorted({self.formats[name] for name in others}))
        of = f"{len(others)} of {len(self.formats)} layers"
        found.append(f"{self.target}, {self.network}: {of} ran in {kinds}, not in {self.precision}: {some(others)}")
        return tuple(found)


def require_precise(records: Iterable[PrecisionRecord]) -> None:
    """GateError for networks that are outside their precision's tolerance."""
    failed = [
        f"{record.network} in {record.precision} on {record.target} differs by {record.max_rel:.2e} of the output's "
        f"range (tolerance {record.tolerance:g})"
        for record in records
        if not record.passed
    ]
    if failed:
        raise GateError(f"parity failed: {'; '.join(failed)}")
