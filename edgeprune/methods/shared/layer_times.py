"""How long layers take that were never written: thinner ones and grouped ones, from what the dense ones take.

The dense layer's time, measured or estimated, times the ratio that a device profile's rates give: multiply-adds or
weights, whichever takes longer, activations, the Gather in front of a grouped layer, and the start of a node.
"""

from __future__ import annotations

import math

from edgeprune.devices.device_profile import DeviceProfile
from edgeprune.devices.kernels import conv_kernel
from edgeprune.graph import Layer
from edgeprune.methods.shared.alignment import Grouping

FLOAT_BYTES = 4


def relative_time(
    layer: Layer, inputs: int, filters: int, profile: DeviceProfile, grouping: Grouping | None = None
) -> float:
    """Share of the dense layer's time that it takes with so many input channels and filters (in groups).

    `grouping`: groups, and the input channels that each reads; with all inputs and filters.
    """
    if not inputs or not filters:
        return 0.0
    dense = _seconds(layer, layer.in_channels // layer.groups, layer.out_channels, layer.groups, profile)
    if grouping is not None:
        gathered = grouping.groups * grouping.kept * layer.input_positions
        own = _seconds(layer, grouping.kept, filters, grouping.groups, profile)
        return (own + _moved(2 * gathered, profile, gathering=True)) / dense
    groups = max(1, round(layer.groups * filters / layer.out_channels))
    return _seconds(layer, max(1, inputs // groups), filters, groups, profile) / dense


def _seconds(layer: Layer, inputs: int, filters: int, groups: int, profile: DeviceProfile) -> float:
    """`inputs`: a group."""
    costs, block = profile.execution, profile.channel_block.fp32
    width = max(1, round(math.sqrt(layer.positions)))
    size = math.prod(layer.kernel_size) * layer.features_per_channel
    kernel = conv_kernel((filters, inputs, *layer.kernel_size), groups, width, block)
    share = costs.share(kernel.kind, kernel.filters, kernel.width, kernel.depth) if costs else 1.0
    weights = filters * inputs * size
    compute = weights * layer.positions * kernel.fill / (profile.macs_per_s_of(1) * share)
    read = _moved(weights, profile)
    moving = _moved(layer.input_positions * inputs * groups + layer.positions * filters, profile)
    start = costs.dispatch_us.value * 1e-6 if costs else 0.0
    return max(compute, read) + moving + start


def _moved(elements: float, profile: DeviceProfile, *, gathering: bool = False) -> float:
    touched = elements * FLOAT_BYTES
    return touched / profile.bytes_per_s_of(1, touched, "gather" if gathering else "operation")
