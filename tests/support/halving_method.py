"""A method for tests: after each epoch it zeroes the filters with odd numbers inside every residual block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.graph import Graph
from edgeprune.methods import setting
from edgeprune.methods.base import MethodInput, MethodResult
from edgeprune.plans.method_record import FILE_NAME, MethodRecord, RecordTable
from edgeprune.plans.plan import LayerPlan, Plan, SetPlan
from edgeprune.training.hooks import TrainingHooks

SUMMARY = "odd filters go"
RATE = 0.5


@dataclass(frozen=True)
class Settings:
    stop_in: int = setting(0, "epoch in which the user stops the run")


class Hooks(TrainingHooks):
    def __init__(self, graph: Graph, stop_in: int) -> None:
        self.graph, self.stop_in, self.zeroed = graph, stop_in, torch.zeros(1)

    def begin(self, model: nn.Module, optimizer: torch.optim.SGD) -> None:
        self.model = model

    def after_epoch(self, epoch: int) -> None:
        if epoch == self.stop_in:
            raise KeyboardInterrupt
        with torch.no_grad():
            for name in inner_layers(self.graph):
                for key in (name, self.graph.layer(name).norm):
                    for parameter in self.model.get_submodule(key).parameters():
                        parameter[1::2] = 0
        self.zeroed += 1

    def state(self) -> Mapping[str, Tensor]:
        return {"zeroed": self.zeroed}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.zeroed = state["zeroed"].clone()

    def log(self) -> Mapping[str, Any]:
        return {"zeroed": int(self.zeroed)}


def inner_layers(graph: Graph) -> list[str]:
    return [layer.name for layer in graph.layers if layer.name.endswith("conv1") and "." in layer.name]


class Work:
    def __init__(self, given: MethodInput, settings: Settings) -> None:
        self.graph = given.graph
        self.hooks = Hooks(given.graph, settings.stop_in)

    def result(self, model: nn.Module) -> MethodResult:
        sets = tuple(
            SetPlan(layer.writes, tuple(range(0, layer.out_channels, 2)))
            for layer in map(self.graph.layer, inner_layers(self.graph))
        )
        layers = tuple(LayerPlan(layer.name) for layer in self.graph.layers)
        record = MethodRecord((RecordTable("Zeroed", ("times",), ((int(self.hooks.zeroed),),)),))
        return MethodResult(Plan("halving", {}, 0, layers, sets), {FILE_NAME: record.to_json()})


def train(given: MethodInput, settings: Settings, epochs: int) -> Work:
    return Work(given, settings)
