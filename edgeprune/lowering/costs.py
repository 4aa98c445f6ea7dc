"""What each form of a layer costs on a device, predicted from the cost table of its profile.

The unit is a multiply-add of a convolution at full rate; for a choice between forms no other is needed. What all forms
of a layer share (reading its source, writing its output) is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from edgeprune.devices.channel_block import round_up
from edgeprune.devices.device_profile import DeviceProfile
from edgeprune.devices.figures import ConvolutionCosts, rate_from
from edgeprune.lowering.forms import GROUPED, Form, Shape, candidate_forms, executed_macs, shape_of
from edgeprune.lowering.layers import GroupedLayer
from edgeprune.lowering.record import LoweringRecord, layer_choices

WORTH = 0.97
"""A form is taken in place of the plan's own if it costs at most so much of it: the table is no more exact."""


def predict(layers: Mapping[str, GroupedLayer], profile: DeviceProfile) -> LoweringRecord:
    """The forms that the profile's cost table makes cheapest; those of the plan if it has none."""
    block, table = profile.channel_block.fp32, profile.convolution
    costs = {name: predicted_costs(layer, table, block) for name, layer in layers.items()} if table else {}
    forms = {name: cheapest(costs[name]) if table else GROUPED for name in layers}
    full_rate = profile.macs_per_s / profile.cores / 1e3
    shown = {name: {form: cost / full_rate for form, cost in own.items()} for name, own in costs.items()}
    missing = (f"{profile.name} has no table of what convolutions cost: every layer stays as planned",)
    return LoweringRecord(
        chosen_by="predicted",
        device=profile.name,
        threads=1,
        batch_size=1,
        runtime="",
        layers=layer_choices(layers, forms, shown),
        notes=() if table or not layers else missing,
    )


def predicted_costs(layer: GroupedLayer, costs: ConvolutionCosts, block: int) -> dict[Form, float]:
    """The candidate forms of a layer with their cost a sample, in multiply-adds at full rate."""
    return {
        form: _cost(layer, shape_of(layer, form), executed_macs(layer, form), costs, block)
        for form in candidate_forms(layer, block)
    }


def cheapest(costs: Mapping[Form, float]) -> Form:
    """The form to take: the cheapest, unless the plan's own costs about as much."""
    best = min(costs, key=lambda form: costs[form])
    return best if costs[best] <= WORTH * costs[GROUPED] else GROUPED


def _cost(layer: GroupedLayer, shape: Shape, macs: int, costs: ConvolutionCosts, block: int) -> float:
    positions = math.prod(layer.source_shape[1:])
    moved = shape.gathered * positions + shape.dropped * math.prod(layer.output_shape[1:])
    return macs / _rate(shape, costs, block) + costs.gather_macs(moved) + costs.macs_per_node * shape.nodes


def _rate(shape: Shape, costs: ConvolutionCosts, block: int) -> float:
    """Share of the full rate at which this convolution multiplies."""
    is_dense = shape.groups == 1 or shape.nodes > 1
    if not is_dense and (shape.inputs % block or shape.filters % block):
        return costs.off_block_rate
    # A dense convolution may have any width: it is filled up to the block, zeros included.
    filled = round_up(shape.filters, block)
    return rate_from(costs.rates, filled) * (shape.filters / filled) * (shape.inputs / round_up(shape.inputs, block))
