"""A pass over a network, layer by layer in forward order, in which each layer is changed on what it reads by then.

The dense network and the one that is being changed run side by side on the calibration images, node by node of the
traced graph: so both run once, however many layers there are, and of a tensor there is no more in memory than until its
last reader has run.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from edgeprune.datasets.images import Dataset, batches
from edgeprune.errors import InputError
from edgeprune.graph import Layer
from edgeprune.io.progress import track
from edgeprune.methods.base import Moments, Refit, Refitted
from edgeprune.modules.fx_nodes import result_of
from edgeprune.modules.norms import NORMS
from edgeprune.tracing.trace import trace

BATCH_SIZE = 128
Batches = list[Any]
IN_PLACE = {operator.iadd: operator.add, operator.imul: operator.mul, operator.isub: operator.sub}
SMALLEST_GAIN = 1e-2
"""Channels that BatchNorm makes smaller than so are not asked to make up for anything."""


class Layerwise:
    """A network whose layers can be replaced so, always in its original shape: zeros where nothing is read."""

    def __init__(self, model: nn.Module, images: Dataset) -> None:
        self.model = model
        """As replaced last; at first the model given, which is never changed."""
        self._images = images

    def __call__(self, names: Sequence[str], refit: Refit) -> None:
        """Replace the layers of these names. InputError for activations that are not finite."""
        inputs = [pixels for pixels, _ in batches(self._images, BATCH_SIZE)]
        one = _Pass(self.model, inputs, names)
        one.run(refit)
        self.model = one.model


class _Pass:
    """One pass; `model` is then the network with the changed layers."""

    def __init__(self, model: nn.Module, images: Sequence[Tensor], names: Sequence[str]) -> None:
        """`images`: batches (n, C, H, W) as the network reads them."""
        self.model = copy.deepcopy(model).eval()
        traced = trace(model, images[0][:1])
        self._layers = {name: traced.graph.layer(name) for name in names}
        self._module = traced.module
        _without_in_place(self._module)
        self._nodes = list(self._module.graph.nodes)
        self._modules = dict(self._module.named_modules())
        self._after = dict[str, nn.Module]()
        """Modules of the changed network, where they are other ones."""
        self._dense: dict[fx.Node, Batches] = {}
        self._pruned: dict[fx.Node, Batches] = {}
        self._readers = {node: len(node.users) for node in self._nodes}
        self._images = list(images)

    @torch.no_grad()
    def run(self, refit: Refit) -> None:
        self._refit, self._waiting = refit, set(self._layers)
        parts = track(self._nodes, "layer by layer", total=len(self._nodes))
        for node in parts:
            if self._waiting and node.op != "output":
                self._compute(node)

    # -- both networks, node by node -----------------------------------------------------------------------------------
    def _compute(self, node: fx.Node) -> None:
        if node in self._dense:
            return
        for source in node.all_input_nodes:
            self._compute(source)
        layer = self._layers.get(str(node.target)) if node.op == "call_module" else None
        if layer is not None:
            self._change(node, layer)
        else:
            self._dense[node] = self._ran(node, self._dense, self._modules)
            same = str(node.target) not in self._after or node.op != "call_module"
            if same and all(self._dense[n] is self._pruned[n] for n in node.all_input_nodes):
                self._pruned[node] = self._dense[node]
            else:
                self._pruned[node] = self._ran(node, self._pruned, self._modules | self._after)
        for source in node.all_input_nodes:
            self._readers[source] -= 1
            if not self._readers[source]:
                self._dense[source], self._pruned[source] = [], []

    def _ran(self, node: fx.Node, values: dict[fx.Node, Batches], modules: dict[str, nn.Module]) -> Batches:
        if node.op == "placeholder":
            return self._images
        found = []
        for number in range(len(self._images)):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n][number])  # noqa: B023
            found.append(result_of(node, args, kwargs, self._module, modules))
        return found

    # -- layers --------------------------------------------------------------------------------------------------------
    def _change(self, node: fx.Node, layer: Layer) -> None:
        source = node.all_input_nodes[0]
        module = self._modules[layer.name]
        assert isinstance(module, nn.Conv2d)
        dense = [module(x) for x in self._dense[source]]
        if not all(bool(y.isfinite().all()) for y in dense):
            raise InputError(
                f"{layer.name} gives NaN or infinite values on the calibration images", expected="finite activations"
            )
        wanted = self._aimed(node, layer, dense)
        changed = self._refit(layer, moments(module, self._pruned[source], wanted))
        new = copy.deepcopy(module)
        new.weight.copy_(torch.from_numpy(changed.weight))
        self._after[layer.name] = new
        self._store(layer, new, changed)
        self._waiting.discard(layer.name)
        self._dense[node], self._pruned[node] = dense, [new(x) for x in self._pruned[source]]

    def _store(self, layer: Layer, new: nn.Conv2d, refitted: Refitted) -> None:
        """Into the network that is handed out, too. What the mean lacks goes into a bias, or a BatchNorm's mean."""
        shift = torch.from_numpy(refitted.shift).to(new.weight)
        if new.bias is not None:
            new.bias.copy_(shift)  # the outputs wanted have the dense bias in them
        elif layer.norm:
            norm = copy.deepcopy(self._modules[layer.norm])
            mean = norm.running_mean
            if isinstance(mean, Tensor):
                mean.sub_(shift)
            self._after[layer.norm] = norm
            self.model.get_submodule(layer.norm).load_state_dict(norm.state_dict(), strict=False)
        self.model.get_submodule(layer.name).load_state_dict(new.state_dict())

    def _aimed(self, node: fx.Node, layer: Layer, dense: Batches) -> Batches:
        """What the layer shall give: the dense outputs, and at the end of a residual branch what the stream lacks as
        well, as far as the BatchNorm in between lets it through."""
        norm = self._modules[layer.norm] if layer.norm else None
        if not layer.ends_branch or not isinstance(norm, NORMS) or norm.running_var is None:
            return dense
        last, add = node, next(iter(node.users))
        while add.op == "call_module":
            last, add = add, next(iter(add.users))
        other = next((n for n in add.all_input_nodes if n is not last), None)
        if other is None:
            return dense
        self._compute(other)
        if self._dense[other] is self._pruned[other]:
            return dense
        gain = norm.weight if norm.weight is not None else torch.ones_like(norm.running_var)
        scale = gain / torch.sqrt(norm.running_var + norm.eps)
        inverse = torch.where(scale.abs() > SMALLEST_GAIN, 1 / scale, torch.zeros(())).reshape(1, -1, 1, 1)
        lacking = zip(dense, self._dense[other], self._pruned[other], strict=True)
        return [y + (x - z) * inverse for y, x, z in lacking]


def moments(conv: nn.Conv2d, read: Batches, wanted: Batches) -> Moments:
    """Streamed over batches: products in float32 about the first batch's means, sums in float64."""
    columns = conv.weight[0].numel()
    covariance, cross = np.zeros((columns, columns)), np.zeros((conv.out_channels, columns))
    sums, outputs, count = np.zeros(columns), np.zeros(conv.out_channels), 0
    centre = [part.mean(1, keepdim=True) for part in _columns(conv, read[0], wanted[0])]
    for x, y in zip(read, wanted, strict=True):
        u, out = (part - mean for part, mean in zip(_columns(conv, x, y), centre, strict=True))
        covariance += (u @ u.T).double().numpy()
        cross += (out @ u.T).double().numpy()
        sums += u.double().sum(1).numpy()
        outputs += out.double().sum(1).numpy()
        count += u.shape[1]
    sums, outputs = sums / count, outputs / count
    first_read, first_wanted = (mean.double().numpy()[:, 0] for mean in centre)
    return Moments(
        covariance / count - np.outer(sums, sums),
        cross / count - np.outer(outputs, sums),
        first_read + sums,
        first_wanted + outputs,
        count,
    )


def _columns(conv: nn.Conv2d, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(columns, n) of what a convolution reads at each position, and (filters, n) of what it shall give there."""
    u = F.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)  # type: ignore[arg-type]
    return u.transpose(0, 1).flatten(1), y.transpose(0, 1).flatten(1)


def _without_in_place(module: fx.GraphModule) -> None:
    """Nothing writes over a tensor that is still kept."""
    for part in module.modules():
        if getattr(part, "inplace", False):
            part.inplace = False  # type: ignore[assignment]
    for node in module.graph.nodes:
        if node.target in IN_PLACE:
            node.target = IN_PLACE[node.target]
        if node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
        if node.op == "call_method" and str(node.target).endswith("_"):
            node.target = str(node.target)[:-1]
