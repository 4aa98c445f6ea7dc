"""A pass over a network, layer by layer in forward order, in which each layer is changed on what it reads by then.

The dense network and the one that is being changed run side by side on the calibration images, node by node of the
traced graph: so both run once, however many layers there are, and of a tensor there is no more in memory than until its
last reader has run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from edgeprune.datasets.images import Dataset, batches
from edgeprune.errors import InputError
from edgeprune.graph import Graph, Layer
from edgeprune.io import progress
from edgeprune.methods.on_images import Moments, Refit, Refitted
from edgeprune.modules.fx_nodes import into_add, result_of
from edgeprune.modules.in_place import without_in_place
from edgeprune.modules.norms import NORMS
from edgeprune.modules.outputs import tensors_in
from edgeprune.pruning.moments import Fitted, moments
from edgeprune.pruning.past_activation import Behind, affine_of, fitted_behind, inverse_of, limits_of
from edgeprune.rewriting.branches import silence
from edgeprune.tracing.trace import trace

BATCH_SIZE = 128
LOOKED_AT = 256
"""Images on which choices are compared: they are fitted on all."""
TRIAL_MACS = 8e9
"""About the multiply-adds of one trial, which decide on how many images it runs."""
LEAST_TRIAL_IMAGES, MOST_TRIAL_IMAGES = 16, 256
Batches = list[Any]
UNLIKE, SPREAD = 0.5, 2.0
"""Deviations, and factor, from which on calibration images are unlike those of training."""


class Calibration:
    """A network on calibration images, whose layers can be replaced one after another; always in its original shape,
    with zeros where nothing is read."""

    def __init__(self, model: nn.Module, images: Dataset) -> None:
        self.model = model
        """As replaced last; at first the model given, which is never changed."""
        self._dense, self._images = model, images
        if float(images.images[:BATCH_SIZE].float().std()) == 0:
            progress.note("the calibration images all hold one value: nothing can be learnt from them, weights stay")

    def look(self, names: Collection[str], see: Callable[[Layer, Moments], None]) -> None:
        """What the layers of these names read and give in the dense network, on the first `LOOKED_AT` images.

        InputError as `refit`.
        """
        _Pass(self._dense, self._dense, self._batches(LOOKED_AT), names).run(see)

    def refit(
        self,
        names: Collection[str],
        refit: Refit,
        *,
        left_out: Collection[str] = (),
        start: nn.Module | None = None,
    ) -> None:
        """Replace the layers of these names, of `start` (in the dense network's shape) if that is given.

        `left_out`: the ends of branches that give nothing. InputError for activations that are not finite.
        """
        start = start or self.model
        if left_out:
            start = self._copied(start, left_out)
        one = _Pass(self._dense, start, self._batches(), names)
        one.run(refit)
        self.model = one.model

    @torch.no_grad()
    def divergence(self, changed: Mapping[str, Refitted], *, left_out: Collection[str] = ()) -> float:
        """How far the outputs are from the dense network's if these layers alone are changed: as `divergence_of`, on
        as many of the images as `TRIAL_MACS` allows."""
        images, wanted = self._trial
        model = self._copied(self._dense, left_out)
        for name, refitted in changed.items():
            replace(model, name, refitted, self._graph.layer(name).norm)
        return divergence_of(tensors_in(model(images)), wanted)

    @cached_property
    def _graph(self) -> Graph:
        return trace(self._dense, self._some(1)).graph

    @cached_property
    def _trial(self) -> tuple[Tensor, list[Tensor]]:
        count = int(min(max(TRIAL_MACS / max(self._graph.macs, 1), LEAST_TRIAL_IMAGES), MOST_TRIAL_IMAGES))
        images = self._some(count)
        return images, tensors_in(self._dense(images))

    def _copied(self, model: nn.Module, left_out: Collection[str]) -> nn.Module:
        """A copy in which these ends of branches give nothing."""
        model = copy.deepcopy(model)
        for name in left_out:
            silence(model, self._graph.layer(name))
        return model

    def _some(self, count: int) -> Tensor:
        return next(batches(self._images.first(count), count))[0]

    def _batches(self, most: int | None = None) -> list[Tensor]:
        images = self._images if most is None else self._images.first(most)
        return [pixels for pixels, _ in batches(images, BATCH_SIZE)]


def divergence_of(outputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Of class scores (N, classes) the mean Kullback-Leibler divergence from those wanted, in nats; of any other
    outputs the squared error as a share of the wanted outputs' variance, summed over outputs."""
    if len(wanted) == 1 and wanted[0].dim() == 2 and wanted[0].shape[1] > 1:
        have, target = (F.log_softmax(scores.double(), dim=1) for scores in (outputs[0], wanted[0]))
        return float(F.kl_div(have, target, log_target=True, reduction="batchmean"))
    shares = [
        float((have.double() - target.double()).square().mean() / target.double().var().clamp_min(1e-12))
        for have, target in zip(outputs, wanted, strict=True)
        if target.is_floating_point()
    ]
    return sum(shares)


def replace(model: nn.Module, name: str, refitted: Refitted, norm: str) -> None:
    """Put a layer's new weights into a model. What its output lacks of the mean goes into its bias, or else into the
    mean of the BatchNorm `norm` behind it; nowhere if there is neither."""
    module = model.get_submodule(name)
    assert isinstance(module, Fitted)
    module.weight.copy_(torch.from_numpy(refitted.weight).reshape(module.weight.shape))
    shift = torch.from_numpy(refitted.shift).to(module.weight)
    if module.bias is not None:
        module.bias.copy_(shift)  # the outputs wanted have the dense bias in them
    elif norm and isinstance(mean := model.get_submodule(norm).running_mean, Tensor):
        mean.sub_(shift)


class _Pass:
    """One pass; `model` is then the network with the changed layers."""

    def __init__(self, dense: nn.Module, start: nn.Module, images: Sequence[Tensor], names: Collection[str]) -> None:
        """`images`: batches (n, C, H, W) as the network reads them."""
        self.model = copy.deepcopy(start).eval()
        traced = trace(dense, images[0][:1])
        self._layers = {name: traced.graph.layer(name) for name in names}
        self._module = traced.module
        without_in_place(self._module)
        self._nodes = list(self._module.graph.nodes)
        self._modules = dict(self._module.named_modules())
        after = dict(self.model.named_modules())
        self._after = {name: after[name] for name in self._modules if name in after} if start is not dense else {}
        """Modules of the changed network, where they are other ones."""
        self._dense: dict[fx.Node, Batches] = {}
        self._pruned: dict[fx.Node, Batches] = {}
        self._readers = {node: len(node.users) for node in self._nodes}
        self._images = list(images)
        self._compared = start is not dense
        """Whether the first layer's outputs were held against its BatchNorm; once is enough."""

    @torch.no_grad()
    def run(self, act: Callable[[Layer, Moments], Refitted | None]) -> None:
        """`act` gives what a layer becomes, or None if it stays."""
        self._act, self._waiting = act, set(self._layers)
        for node in progress.track(self._nodes, "layer by layer", total=len(self._nodes)):
            if self._waiting and node.op != "output":
                self._compute(node)

    # -- both networks, node by node -----------------------------------------------------------------------------------
    def _compute(self, node: fx.Node) -> None:
        if node in self._dense:
            return
        for source in node.all_input_nodes:
            self._compute(source)
        layer = self._layers.get(str(node.target)) if node.op == "call_module" else None
        over = [source for source in node.all_input_nodes if self._readers[source] == 1]
        alike = all(self._dense[source] is self._pruned[source] for source in node.all_input_nodes)
        same = alike and layer is None and (str(node.target) not in self._after or node.op != "call_module")
        unshared = [source for source in over if self._dense[source] is not self._pruned[source]]
        self._dense[node] = self._ran(node, self._dense, self._modules, over if same else unshared)
        if layer is not None:
            self._change(node, layer)
            same = alike and layer.name not in self._after
        if same:
            self._pruned[node] = self._dense[node]
        else:
            self._pruned[node] = self._ran(node, self._pruned, self._modules | self._after, over)
        for source in node.all_input_nodes:
            self._readers[source] -= 1
            if not self._readers[source]:
                self._dense[source], self._pruned[source] = [], []

    def _ran(
        self, node: fx.Node, values: dict[fx.Node, Batches], modules: dict[str, nn.Module], over: Sequence[fx.Node]
    ) -> Batches:
        """What the node gives; of what is `over` with it, each batch goes as soon as it is read: all of them together
        would be most of the memory."""
        if node.op == "placeholder":
            return list(self._images)
        found = []
        for number in range(len(self._images)):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n][number])  # noqa: B023
            found.append(result_of(node, args, kwargs, self._module, modules))
            for source in over:
                values[source][number] = torch.empty(0)
        return found

    # -- layers --------------------------------------------------------------------------------------------------------
    def _change(self, node: fx.Node, layer: Layer) -> None:
        dense = self._dense[node]
        module = self._modules[layer.name]
        assert isinstance(module, Fitted)
        if not all(bool(y.isfinite().all()) for y in dense):
            raise InputError(
                f"{layer.name} gives NaN or infinite values on the calibration images", expected="finite activations"
            )
        self._compare(layer, dense)
        source, ending = node.all_input_nodes[0], self._ending(node, layer)
        wanted = self._aimed(layer, dense, ending)
        read = self._pruned[source]
        seen = moments(module, read, wanted)
        changed = self._act(layer, seen)
        self._waiting.discard(layer.name)
        if changed is None:
            return
        if isinstance(module, nn.Conv2d) and (how := self._behind(node, layer, ending)) is not None:
            changed = fitted_behind(module, changed, seen, read, wanted, how)
        replace(self.model, layer.name, changed, layer.norm)
        for name in (layer.name, layer.norm):
            if name:
                self._after[name] = self.model.get_submodule(name)

    def _compare(self, layer: Layer, dense: Batches) -> None:
        """Say if what the first layer with a BatchNorm gives is unlike what that saw in training: the images are then
        of another size, range or kind."""
        norm = self._modules[layer.norm] if layer.norm else None
        if self._compared or not isinstance(norm, NORMS) or norm.running_mean is None or norm.running_var is None:
            return
        self._compared = True
        values = torch.cat([y.transpose(0, 1).flatten(1) for y in dense[:4]], dim=1)
        deviation = torch.sqrt(norm.running_var + norm.eps)
        off = float(((values.mean(1) - norm.running_mean).abs() / deviation).median())
        spread = float((values.std(1) / deviation).median())
        if off > UNLIKE or not 1 / SPREAD < spread < SPREAD:
            progress.note(
                f"the calibration images are unlike those that the network was trained on: what {layer.name} gives "
                f"lies {off:.2g} deviations beside the mean that {layer.norm} keeps, and spreads {spread:.2g} times as "
                "wide; check their size, range and normalisation"
            )

    def _ending(self, node: fx.Node, layer: Layer) -> tuple[fx.Node, fx.Node] | None:
        """For the layer at the end of a residual branch: what it is added to, computed by now, and the addition."""
        if not layer.ends_branch:
            return None
        last, add = into_add(node)
        other = next((n for n in add.all_input_nodes if n is not last), None)
        if other is None or not self._can_compute(other):
            return None
        self._compute(other)
        return other, add

    def _can_compute(self, node: fx.Node) -> bool:
        """Whether it waits for no layer that is being changed: of two layers that end in one addition, as at a shortcut
        with a convolution, the one that comes first makes up for the other."""
        needed, seen = [node], {node}
        while needed:
            node = needed.pop()
            if node in self._dense:
                if node not in self._pruned:
                    return False
                continue
            needed += (new := set(node.all_input_nodes) - seen)
            seen |= new
        return True

    def _aimed(self, layer: Layer, dense: Batches, ending: tuple[fx.Node, fx.Node] | None) -> Batches:
        """What the layer shall give: the dense outputs, and at the end of a residual branch what the stream lacks as
        well, as far as the BatchNorm in between lets it through."""
        norm = affine_of(self._modules.get(layer.norm))
        if ending is None or norm is None or self._dense[ending[0]] is self._pruned[ending[0]]:
            return dense
        lacking = zip(dense, self._dense[ending[0]], self._pruned[ending[0]], strict=True)
        return [y + (x - z) * inverse_of(norm[0]) for y, x, z in lacking]

    def _behind(self, node: fx.Node, layer: Layer, ending: tuple[fx.Node, fx.Node] | None) -> Behind | None:
        """What hides some of the layer's outputs; None where nothing does, or others read them too."""
        last = next(iter(node.users)) if layer.norm else node
        norm = affine_of(self._modules.get(layer.norm))
        if ending is not None:
            last = ending[1]
        limits = [limits_of(reader, self._modules) for reader in last.users]
        if norm is None or len(limits) != 1 or limits[0] is None or len(node.users) != 1:
            return None
        return Behind(*norm, None if ending is None else self._pruned[ending[0]], limits[0])
