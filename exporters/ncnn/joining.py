"""Layers that ncnn computes as one: a convolution with the activation behind it, and a shuffle of channels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from edgeprune.exporters.ncnn.layers import Layer, Value

_WITH_ACTIVATION = frozenset(
    {"Convolution", "ConvolutionDepthWise", "Deconvolution", "DeconvolutionDepthWise", "InnerProduct"}
)
_RELU, _LEAKY, _CLIP, _SIGMOID, _HARD_SWISH = 1, 2, 3, 4, 6
_KIND, _FIGURES = 9, 10
_SWAPPED = 6
"""Permute's order that exchanges the two outer axes of four."""


def joined(layers: Sequence[Layer], outputs: Collection[str]) -> list[Layer]:
    """The same network in fewer layers; `outputs` are blobs that have to stay."""
    reads = Counter(value for layer in layers for value in layer.inputs)
    alone = {value for value, count in reads.items() if count == 1} - set(outputs)
    return _reshaped(_shuffled(_activated(layers, alone), alone), alone)


def _activated(layers: Sequence[Layer], alone: Collection[str]) -> list[Layer]:
    """With activations computed along by the layer in front, where nobody else reads what that writes."""
    found: list[Layer] = []
    writers: dict[str, int] = {}
    for layer in layers:
        source = layer.inputs[0] if len(layer.inputs) == 1 else ""
        place, along = writers.get(source), _along(layer)
        if place is not None and source in alone and along is not None and _KIND not in found[place].params:
            before = found[place]
            found[place] = replace(before, outputs=layer.outputs, params={**before.params, **along})
            continue
        if layer.kind in _WITH_ACTIVATION:
            writers[layer.outputs[0]] = len(found)
        found.append(layer)
    return found


def _along(layer: Layer) -> Mapping[int, Value] | None:
    """What tells a layer to compute this activation along; None for layers that are none."""
    given = layer.params
    match layer.kind:
        case "ReLU":
            return {_KIND: _LEAKY, _FIGURES: _floats(given, 0)} if given.get(0) else {_KIND: _RELU}
        case "Clip":
            return {_KIND: _CLIP, _FIGURES: _floats(given, 0, 1)}
        case "Sigmoid":
            return {_KIND: _SIGMOID}
        case "HardSwish":
            return {_KIND: _HARD_SWISH, _FIGURES: _floats(given, 0, 1)}
    return None


def _floats(params: Mapping[int, Value], *keys: int) -> tuple[float, ...]:
    return tuple(value for key in keys if isinstance(value := params[key], float))


def _shuffled(layers: Sequence[Layer], alone: Collection[str]) -> list[Layer]:
    """With channels dealt out in groups by ShuffleChannel instead of by two Reshapes around a Permute."""
    found: list[Layer] = []
    for layer in layers:
        first, second = found[-2:] if len(found) > 1 else (layer, layer)
        if _is_shuffle(first, second, layer, alone):
            groups = first.params[2]
            shuffle = Layer("ShuffleChannel", second.name, first.inputs, layer.outputs, {0: groups})
            found[-2:] = [shuffle]
        else:
            found.append(layer)
    return found


def _reshaped(layers: Sequence[Layer], alone: Collection[str]) -> list[Layer]:
    """With one Reshape for two in a row, and none that makes a row of what pooling over whole images gives: a row."""
    found: dict[str, Layer] = {}
    for layer in layers:
        for _ in range(2 if layer.kind == "Reshape" else 0):
            before = found.get(layer.inputs[0]) if layer.inputs[0] in alone else None
            if before is not None and before.kind == "Reshape":
                layer = replace(layer, inputs=found.pop(before.outputs[0]).inputs)
            elif before is not None and _gives_row(before) and set(layer.params) == {0}:
                layer = replace(found.pop(before.outputs[0]), outputs=layer.outputs)
        found[layer.outputs[0]] = layer
    return list(found.values())


def _gives_row(layer: Layer) -> bool:
    return layer.kind == "Pooling" and layer.params.get(4) == 1


def _is_shuffle(first: Layer, second: Layer, third: Layer, alone: Collection[str]) -> bool:
    kinds = (first.kind, second.kind, third.kind)
    chained = first.outputs == second.inputs and second.outputs == third.inputs
    if kinds != ("Reshape", "Permute", "Reshape") or not chained or not {*first.outputs, *second.outputs} <= set(alone):
        return False
    four, three = first.params, third.params
    if second.params[0] != _SWAPPED or 11 not in four or 11 in three or 2 not in three:
        return False
    match four[2], four[11]:
        case int(groups), int(each):
            return three[2] == groups * each and (four[0], four[1]) == (three[0], three[1])
    return False
