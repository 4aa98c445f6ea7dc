"""What each device does in a request, and which way a request goes, without a network."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.cluster.flow import Arrival, Flow, Progress, Sending, refusal, split_flow, whole_flow, whole_plan
from edgeprune.cluster.requests import Ways, choose_fallback, choose_least_loaded
from edgeprune.io.arrays import Array
from edgeprune.onnx_files.graph import TensorSpec
from edgeprune.onnx_files.inputs import input_specs, output_specs
from edgeprune.partitioning.manifest import load_partition
from edgeprune.runners.onnxruntime.runner import OrtRunner

X = TensorSpec("x", ("n", 2), "float32")
PAIR = np.zeros((3, 2), np.float32)


def flows_of(folder: Path) -> dict[str, Flow]:
    partition = load_partition(folder)

    def specs_of(name: str) -> tuple[tuple[TensorSpec, ...], tuple[str, ...]]:
        model = partition.models[name]
        return input_specs(model), tuple(spec.name for spec in output_specs(model))

    return {entry.name: split_flow(partition.manifest, entry.name, specs_of) for entry in partition.manifest.devices}


def run(folder: Path, feeds: dict[str, Array]) -> tuple[dict[str, Array], list[tuple[str, str, str]]]:
    """Play all devices: the host's results, and what was sent (from, to, tensor)."""
    partition = load_partition(folder)
    progress = {name: Progress(flow) for name, flow in flows_of(folder).items()}
    host = partition.manifest.host
    moves: list[tuple[str, str, str]] = []
    work: deque[tuple[str, dict[str, Array]]] = deque([(host, feeds)])
    while work:
        device, arrays = work.popleft()
        for sending, name, array in progress[device].hold(arrays.items()):
            moves.append((device, sending.to, name))
            work.append((sending.to, {name: array}))
        if step := progress[device].ready:
            with OrtRunner(partition.models[step.file]) as runner:
                work.append((device, runner.run(progress[device].take(step))))
    assert all(one.is_finished for one in progress.values())
    assert not any(one.held for one in progress.values())  # what is read for the last time is let go of
    return progress[host].results, moves


def test_a_chain_sends_each_tensor_from_where_it_is_made(chain_bundle: Path, of_chain: Any) -> None:
    results, moves = run(chain_bundle, of_chain.feeds(1))
    of_chain.check(1, results)
    assert sorted(moves) == [("host", "one", "r"), ("one", "host", "a"), ("one", "two", "a"), ("two", "host", "c")]


def test_a_star_computes_what_the_whole_network_does(star_bundle: Path, of_star: Any) -> None:
    results, _ = run(star_bundle, of_star.feeds(1))
    of_star.check(1, results)


def test_the_whole_model_elsewhere_is_a_flow_of_one_step() -> None:
    here = whole_flow("host", "host", "pi", (X,), ("y",))
    there = whole_flow("pi", "host", "pi", (X,), ("y",))
    alone = whole_flow("host", "host", "host", (X,), ("y",))
    assert here.sendings == {"x": (Sending("pi", 0),)}
    assert here.arrivals == {"y": Arrival("pi", 1, None)}
    assert (there.arrivals, there.sendings) == ({"x": Arrival("host", 0, X)}, {"y": (Sending("host", 1),)})
    assert (alone.peers, len(alone.steps)) == (frozenset(), 1)
    assert here.peers == {"pi"}


def test_a_tensor_without_a_place_is_refused() -> None:
    flow = whole_flow("pi", "host", "pi", (X,), ("y",))
    assert refusal(flow, "host", 0, "x", PAIR) == ""
    assert "no step of pi waits for" in refusal(flow, "host", 0, "z", PAIR)
    assert "comes from host, not from two" in refusal(flow, "two", 0, "x", PAIR)
    assert "stage 7 is unknown" in refusal(flow, "host", 7, "x", PAIR)
    for wrong in (PAIR.astype(np.float64), PAIR[:, :1], PAIR[0]):
        assert "expected float32 ('n', 2)" in refusal(flow, "host", 0, "x", wrong)


def test_a_request_falls_back_from_the_split_model_to_the_host_and_then_to_others() -> None:
    ways = Ways(True, ("host", "pi"), {})
    assert choose_fallback(ways, {}) == "split"
    assert choose_fallback(ways, {"split": "lost"}) == whole_plan("host")
    assert choose_fallback(Ways(False, ("pi",), {}), {}) == whole_plan("pi")
    assert choose_fallback(ways, {"split": "", whole_plan("host"): "", whole_plan("pi"): ""}) == ""


def test_whole_models_go_to_the_device_with_the_least_to_do() -> None:
    ways = Ways(False, ("host", "pi"), {"host": 1})
    assert choose_least_loaded(ways, {}) == whole_plan("pi")
    assert choose_least_loaded(ways, {whole_plan("pi"): "lost"}) == whole_plan("host")
    assert choose_least_loaded(Ways(False, ("host", "pi"), {"host": 2, "pi": 2}), {}) == ""
