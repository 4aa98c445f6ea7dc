"""How long a network takes under a plan, before its weights are decided: measured here, or estimated for a device."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from onnx import ModelProto
from torch import nn

from edgeprune.devices.device_profile import DeviceProfile, load_profile
from edgeprune.devices.this_machine import default_profile_name
from edgeprune.exporters.to_onnx import to_onnx
from edgeprune.graph import Graph
from edgeprune.lowering.costs import predict
from edgeprune.lowering.forms import GROUPED
from edgeprune.lowering.layers import grouped_layers
from edgeprune.lowering.model import as_recorded
from edgeprune.methods.on_images import Clock
from edgeprune.onnx_files.inputs import input_specs
from edgeprune.plans.plan import Plan
from edgeprune.profiling.estimating.estimates import estimate, estimate_nodes, total_ms
from edgeprune.profiling.measurement import interleave
from edgeprune.profiling.setup import random_feeds
from edgeprune.pruning.network import Network
from edgeprune.pruning.options import PruneOptions
from edgeprune.rewriting.fold import fold
from edgeprune.rewriting.rewrite import rewrite
from edgeprune.runners.onnxruntime.runner import TimedOrtRunner
from edgeprune.tuning.cache import TuningCache
from edgeprune.tuning.options import TuneOptions
from edgeprune.tuning.timer import Timer

RUNS, SECONDS = 200, 8.0
"""Of a whole network, at most."""


def clock_for(network: Network, graph: Graph, options: PruneOptions) -> Clock:
    """The clock that a budget of time is counted by; InputError for an unknown device."""
    budget = options.request.budget
    if budget.latency_ms is not None:
        return EstimatedClock(network, graph, load_profile(budget.profile))
    return MeasuredClock(network, graph, load_profile(options.device_profile or default_profile_name()))


class _Exported:
    """A network as the ONNX files that plans make of it, each layer in its predicted form, for one image."""

    def __init__(self, network: Network, graph: Graph, profile: DeviceProfile) -> None:
        self._network, self._graph, self.profile = network, graph, profile

    @cached_property
    def dense(self) -> ModelProto:
        return self._exported(self._network.model)

    def pruned(self, plan: Plan) -> ModelProto:
        model = self._exported(rewrite(self._network.model, plan, self._graph))
        return as_recorded(model, predict(grouped_layers(model), self.profile))

    def _exported(self, model: nn.Module) -> ModelProto:
        example = self._network.example_input(2)
        exported: ModelProto = to_onnx(fold(model, example).module, example)
        return exported


class MeasuredClock(_Exported):
    """ONNX Runtime on this machine, one thread, one image."""

    @cached_property
    def layer_ms(self) -> Mapping[str, float]:
        timer = Timer(TuneOptions(), TuningCache.load(None, ""))
        found = timer.layer_times({GROUPED: self.dense})[GROUPED]
        return {name: time.total for name, time in found.items()}

    @cached_property
    def dense_ms(self) -> float:
        return self._measured({"dense": self.dense})["dense"]

    def pruned_ms(self, plan: Plan) -> float:
        """In a run beside the dense network, as a share of which it counts."""
        models = {"dense": self.dense, "pruned": self.pruned(plan)}
        taken = self._measured(models)
        return taken["pruned"] / taken["dense"] * self.dense_ms

    def _measured(self, models: Mapping[str, ModelProto]) -> dict[str, float]:
        options = TuneOptions().run_options()
        runners = {name: TimedOrtRunner(model, options) for name, model in models.items()}
        try:
            runs = {}
            for name, runner in runners.items():
                values = random_feeds(input_specs(models[name]), 1, 0)
                runs[name] = runner.prepared(dict(zip(runner.input_names, values, strict=True)))
            taken = interleave(runs, iterations=RUNS, time_limit_s=SECONDS)
        finally:
            for runner in runners.values():
                runner.close()
        return {name: measured.p50_ms for name, measured in taken.items()}


class EstimatedClock(_Exported):
    """What a device profile tells, one thread, one image; nothing is measured."""

    @cached_property
    def layer_ms(self) -> Mapping[str, float]:
        return {layer.name: layer.pruned_ms for layer in estimate(None, self.dense, self.profile).layers}

    @cached_property
    def dense_ms(self) -> float:
        return total_ms(estimate_nodes(self.dense, self.profile))

    def pruned_ms(self, plan: Plan) -> float:
        return total_ms(estimate_nodes(self.pruned(plan), self.profile))
