"""A network trained with a method at work that ends in a plan."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from edgeprune.datasets.images import Dataset
from edgeprune.errors import InputError
from edgeprune.graph import Graph
from edgeprune.methods import Trained, TrainedMethod, load_method, parse_settings
from edgeprune.methods.base import PruneRequest
from edgeprune.modules.hooks import check_own_hooks
from edgeprune.pruning.method_inputs import method_input
from edgeprune.pruning.network import Network
from edgeprune.pruning.pruned import Pruned, carried_out
from edgeprune.tracing.trace import trace
from edgeprune.training.loop import fit
from edgeprune.training.settings import TrainSettings


@dataclass(frozen=True)
class MethodChoice:
    """A method that works during training, and what it is told."""

    name: str
    request: PruneRequest
    assignments: tuple[str, ...] = ()
    """The method's own settings, each NAME=VALUE."""
    device_profile: str = ""
    """Device type that the network is for; empty: this machine's."""

    def settings(self) -> Any:
        """The method's settings; InputError if it cannot work during training, or for what it is not to be told."""
        self.request.check()
        if not isinstance(load_method(self.name), Trained):
            raise InputError(
                f"{self.name} decides on a network that is trained already", where="--method",
                remedy=f"train without a method, then `edgeprune prune DIR --method {self.name}`",
            )  # fmt: skip
        return parse_settings(self.name, self.assignments)

    def described(self) -> dict[str, Any]:
        """What must be the same to resume."""
        request = dataclasses.asdict(self.request)
        del request["prices"], request["mixing_price"]  # no method that works during training writes Gathers
        return {
            "method": self.name,
            "method_settings": dataclasses.asdict(self.settings()),
            "request": request,
        }


def train_network(network: Network, data: Dataset, training: TrainSettings, choice: MethodChoice) -> Pruned:
    """Train a copy of a network with a method at work, and cut out what it decided; nothing is written or measured."""
    choice.settings()
    graph = trace(network.model, network.example_input(1)).graph
    method = at_work(choice, network, graph, training.epochs)
    started = time.perf_counter()
    result = fit(network.model, data, training, hooks=method.hooks)
    return carried_out(method.result(result.model), result.model, network, graph, started, choice.device_profile)


def at_work(choice: MethodChoice, network: Network, graph: Graph, epochs: int) -> TrainedMethod:
    """The method, ready to be hooked into the training of this network."""
    check_own_hooks(network.model, network.example_input(1))
    method, settings = load_method(choice.name), choice.settings()
    assert isinstance(method, Trained)  # MethodChoice.settings refuses others
    return method.train(method_input(method, network.model, graph, choice.request), settings, epochs)
