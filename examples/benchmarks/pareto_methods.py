"""The methods of `pareto.py`: ours, Torch-Pruning's and onnxsim's, asked for the same share of the multiply-adds.

gkp-cal may be asked for a share of the latency in its place.
"""

from __future__ import annotations

import copy
import importlib
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import our_methods
import torch
import torch_pruning_baseline as torch_pruning
from onnx import ModelProto
from our_methods import By, Wanted
from torch import nn

import edgeprune
from edgeprune.bundles.names import MODEL
from edgeprune.datasets.images import Dataset, batches
from edgeprune.deployment.lower_bundle import LowerOptions
from edgeprune.devices.this_machine import is_importable, this_machine_block
from edgeprune.errors import InputError
from edgeprune.exporters.to_onnx import to_onnx
from edgeprune.graph import Graph
from edgeprune.onnx_files.macs import count_macs
from edgeprune.onnx_files.model import save_onnx
from edgeprune.pipeline.tune import tune as tune_bundle
from edgeprune.pruning.network import Network, load_network
from edgeprune.pruning.options import NetworkSource
from edgeprune.pruning.pruned import Pruned
from edgeprune.rewriting.fold import fold
from edgeprune.tracing.trace import trace
from edgeprune.tuning.options import TuneOptions

OURS = our_methods.NAMES
TORCH_PRUNING: Mapping[str, torch_pruning.Recipe] = {
    f"tp-{name}{suffix}": torch_pruning.Recipe(importance=importance, global_pruning=bool(suffix))
    for name, importance in (("magnitude", "GroupMagnitudeImportance"), ("fpgm", "FPGMImportance"))
    for suffix in ("", "-global")
}
ONNXSIM = {
    "onnxsim-l2": "apply_structured_pruning",
    "onnxsim-wanda": "apply_structured_wanda_pruning",
}
KNOWN = (*OURS, *TORCH_PRUNING, *ONNXSIM)
METHODS = (*KNOWN, "gkp-cal@1", "fpgm@1", "tp-magnitude@1", "tp-fpgm@1")
"""What is run if nothing is said; METHOD@BLOCK leaves channels in multiples of BLOCK, not of this machine's block."""
FAMILIES = ("edgeprune", "Torch-Pruning", "onnxsim")
AMOUNTS = tuple(number / 32 for number in range(1, 31))
"""Shares to remove that are tried until the multiply-adds are as asked."""
BATCH_SIZE = 64


def family(method: str) -> str:
    """Whose method it is, one of `FAMILIES`."""
    name = method.partition("@")[0]
    return FAMILIES[0] if name in OURS else FAMILIES[1] if name in TORCH_PRUNING else FAMILIES[2]


def is_known(method: str) -> bool:
    name, at, block = method.partition("@")
    return name in KNOWN and (not at or (block.isdigit() and name not in ONNXSIM))


def unavailable(method: str) -> str:
    """Why a method cannot be run here; empty if it can."""
    if family(method) == FAMILIES[1] and not torch_pruning.is_installed():
        return f"not installed: pip install --no-deps {torch_pruning.PACKAGE}"
    if family(method) == FAMILIES[2] and not is_importable("onnxsim"):
        return "not installed: pip install onnxsim"
    return ""


@dataclass(frozen=True)
class Candidate:
    """A pruned network."""

    model: nn.Module
    """In eval mode: what is evaluated, and trained on."""
    macs: int
    write: Callable[[Path], None]
    """Writes the ONNX file that is deployed."""
    pruned: Pruned | None = None
    """Of our methods: what can be healed."""


@dataclass(frozen=True)
class Start:
    """What every method is given: one trained network, and images whose labels none reads."""

    network: Network
    images: Dataset
    cache: Path
    """Where tuning keeps what it measured."""
    sizes: dict[str, dict[float, int]] = field(default_factory=dict)
    """Of each way to prune that was asked for: amount -> multiply-adds left."""

    @cached_property
    def graph(self) -> Graph:
        return trace(self.network.model, self.network.example_input(1)).graph

    @property
    def macs(self) -> int:
        return self.graph.macs

    @property
    def fixed(self) -> tuple[str, ...]:
        """The layers whose channels a shortcut fills up with zeros, or that are added to such ones."""
        padded = {name for padding in self.graph.paddings for name in (padding.source, padding.target)}
        return tuple(layer.name for layer in self.graph.layers if layer.writes in padded)

    @cached_property
    def onnx(self) -> ModelProto:
        """The dense network's ONNX file, as it is deployed."""
        return exported(self.network.model, self.network)

    def candidate(self, method: str, share: float, by: By) -> Candidate:
        """The network pruned to about this share of its multiply-adds, or latency; InputError if the method cannot."""
        name, _, asked_block = method.partition("@")
        block = int(asked_block or this_machine_block())
        if name in OURS:
            found = self._ours(Wanted(name, share, by, block))
        elif name in TORCH_PRUNING:
            found = self._torch_pruning(TORCH_PRUNING[name], share, block)
        else:
            found = self._onnxsim(ONNXSIM[name], share)
        if by == "macs":
            our_methods.check_share(found.macs / self.macs, share)
        return found

    def _ours(self, wanted: Wanted) -> Candidate:
        pruned = our_methods.pruned(self.network, wanted, self.images)
        return Candidate(pruned.model, pruned.macs.pruned, partial(self._write_tuned, pruned), pruned)

    def _write_tuned(self, pruned: Pruned, path: Path) -> None:
        """Each grouped layer in the form that is fastest here."""
        with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
            bundle = edgeprune.export(pruned, Path(folder) / "bundle", as_planned=True)
            if pruned.plan.grouped():
                bundle, _ = tune_bundle(bundle.folder, LowerOptions(tune=TuneOptions(cache=self.cache)))
            shutil.copy(bundle.path(MODEL), path)

    def _torch_pruning(self, recipe: torch_pruning.Recipe, share: float, block: int) -> Candidate:
        """Torch-Pruning breaks networks whose zero-padded shortcuts no longer fit: what they join is left alone."""
        own = replace(recipe, round_to=block, ignored=self.fixed)
        amount = self._amount(str(own), share, lambda amount: torch_pruning.pruned(self.network, amount, own).macs)
        found = torch_pruning.pruned(self.network, amount, own)
        model = found.model.eval()
        return Candidate(model, found.macs, lambda path: save_onnx(exported(model, self.network), path))

    def _onnxsim(self, function: str, share: float) -> Candidate:
        """On the dense network's ONNX file, whose BatchNorms are folded; imported again to be trained."""
        onnxsim = importlib.import_module("onnxsim")
        simple, _ = onnxsim.simplify(self.onnx)
        by_norm = onnxsim.apply_structured_pruning  # leaves as many channels as the other
        amount = self._amount("onnxsim", share, lambda amount: count_macs(by_norm(simple, sparsity=amount)).total)
        feeds = [{simple.graph.input[0].name: images.numpy()} for images, _ in batches(self.images, BATCH_SIZE)]
        own: dict[str, Any] = {"calibration_data": feeds} if "wanda" in function else {}
        found = getattr(onnxsim, function)(simple, sparsity=amount, **own)
        with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
            save_onnx(found, Path(folder) / "pruned.onnx")
            imported = load_network(NetworkSource("", Path(folder) / "pruned.onnx"))
        return Candidate(imported.model, count_macs(found).total, lambda path: save_onnx(found, path))

    def _amount(self, way: str, share: float, macs: Callable[[float], int]) -> float:
        """The amount that leaves about this share of the multiply-adds."""
        if way not in self.sizes:
            self.sizes[way] = {amount: macs(amount) for amount in AMOUNTS}
        sizes = self.sizes[way]
        return min(sizes, key=lambda amount: abs(math.log(sizes[amount] / self.macs / share)))


def exported(model: nn.Module, network: Network) -> ModelProto:
    """A network in ONNX as edgeprune exports it: BatchNorms folded, any batch."""
    example = network.example_input(2)
    return to_onnx(fold(model, example).module, example)


def reestimated(model: nn.Module, images: Dataset) -> nn.Module:
    """A copy whose BatchNorms have the statistics of these images; InputError if it has none."""
    copied = copy.deepcopy(model).eval()
    norms = [module for module in copied.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        raise InputError("has no BatchNorm whose statistics could be estimated anew")
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    with torch.no_grad():
        for pixels, _ in batches(images, BATCH_SIZE):
            copied(pixels)
    return copied.eval()
