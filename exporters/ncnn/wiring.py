"""Blobs as ncnn wants them: each read once at most, under a name without spaces.

A blob that several layers read goes through a layer Split, which gives each reader a blob of its own; an output of the
network that is read as well is one of these, so that it stays when ncnn frees what was read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from edgeprune.errors import InputError
from edgeprune.exporters.ncnn.layers import LONGEST_NAME, Layer, NcnnNetwork
from edgeprune.onnx_files.graph import fresh_name


def wired(layers: Sequence[Layer], inputs: Sequence[str], outputs: Sequence[str]) -> NcnnNetwork:
    """The network of these layers, which may read a blob as often as they like. InputError for names of inputs and
    outputs that ncnn cannot read."""
    for name in (*inputs, *outputs):
        if _legal(name) != name:
            raise InputError(
                f"ncnn cannot read the name {name!r}",
                where="ncnn",
                expected=f"inputs and outputs with names without spaces, of {LONGEST_NAME} letters at most",
            )
    named = _named(_split(_without_noops(layers, outputs), outputs), (*inputs, *outputs))
    return NcnnNetwork(named, tuple(inputs), tuple(outputs))


def _without_noops(layers: Sequence[Layer], outputs: Sequence[str]) -> list[Layer]:
    """Without what does nothing, unless an output is named by it."""
    meant: dict[str, str] = {}
    kept = []
    for layer in layers:
        layer = replace(layer, inputs=tuple(meant.get(value, value) for value in layer.inputs))
        if layer.kind == "Noop" and layer.outputs[0] not in outputs:
            meant[layer.outputs[0]] = layer.inputs[0]
        else:
            kept.append(layer)
    return kept


def _split(layers: Sequence[Layer], outputs: Sequence[str]) -> list[Layer]:
    """With a Split behind each layer of which a blob is read more often than once; to be an output counts as read."""
    reads = Counter(value for layer in layers for value in (*layer.inputs, *(set(outputs) & set(layer.outputs))))
    taken = {value for layer in layers for value in layer.outputs}
    copies: dict[str, Iterator[str]] = {}
    found: list[Layer] = []
    for layer in layers:
        inputs = tuple(next(copies[value]) if value in copies else value for value in layer.inputs)
        written, splits = list(layer.outputs), []
        for place, value in enumerate(layer.outputs):
            if reads[value] < 2:
                continue
            kept = [value] if value in outputs else []
            own = [fresh_name(f"{value}_read{number}", taken) for number in range(reads[value] - len(kept))]
            written[place] = fresh_name(f"{value}_written", taken) if kept else value
            splits.append(Layer("Split", f"split_{value}", (written[place],), (*kept, *own)))
            copies[value] = iter(own)
        found += [replace(layer, inputs=inputs, outputs=tuple(written)), *splits]
    return found


def _named(layers: Sequence[Layer], first: Iterable[str]) -> tuple[Layer, ...]:
    """With names that ncnn can read; those of inputs and outputs (`first`) stay."""
    taken, blobs = set[str](), dict[str, str]()
    for value in (*first, *(value for layer in layers for value in layer.outputs)):
        if value not in blobs:
            blobs[value] = fresh_name(_legal(value), taken)
    own = set[str]()
    return tuple(
        replace(
            layer,
            name=fresh_name(_legal(layer.name), own),
            inputs=tuple(blobs[value] for value in layer.inputs),
            outputs=tuple(blobs[value] for value in layer.outputs),
        )
        for layer in layers
    )


def _legal(name: str) -> str:
    """The name without what ends it in ncnn's file."""
    return re.sub(r"[^!-~]", "_", name)[:LONGEST_NAME] or "_"
