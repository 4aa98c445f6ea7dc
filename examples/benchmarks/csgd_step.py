"""What a training step costs with C-SGD, beside plain SGD: forward, backward and step on the same random images.

python examples/benchmarks/csgd_step.py [--arch resnet56] [--batch-size 64] [--threads 2] [--repeats 40] [--rate 0.375]
    [--device cpu]

Plain and C-SGD steps take turns, each on its own copy of the network, and change places each time, so that whatever
else the machine does falls on both. Printed are the medians, the ratio of each pair's times, and the update alone.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from edgeprune.methods.base import MethodInput, PruneRequest
from edgeprune.methods.csgd.method import RATE, Settings, train
from edgeprune.pruning.network import layer_weights
from edgeprune.tracing.trace import trace
from edgeprune.training.hooks import Step
from edgeprune.zoo import build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet56")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)

    torch.manual_seed(0)
    built = build(options.arch)
    graph = trace(built.model, torch.randn(1, *built.input_shape)).graph
    given = MethodInput(graph, layer_weights(built.model), PruneRequest(rate=options.rate))
    hooks = train(given, Settings(clusters="even"), epochs=1).hooks

    images = torch.randn(options.batch_size, *built.input_shape).to(device, memory_format=torch.channels_last)
    labels = torch.zeros(options.batch_size, dtype=torch.int64, device=device)

    def prepared() -> tuple[torch.nn.Module, torch.optim.SGD]:
        model = copy.deepcopy(built.model).train().to(device).to(memory_format=torch.channels_last)
        return model, torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4, nesterov=True)

    (plain, plain_optimizer), (clustered, optimizer) = prepared(), prepared()
    hooks.begin(clustered, optimizer)
    hooks.before_batch(Step(1, 0, 1e-4, 0.5))

    def step(model: torch.nn.Module, its: torch.optim.SGD, before: Callable[[], None]) -> None:
        its.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        before()
        its.step()

    def update() -> None:
        hooks.before_update(Step(1, 0, 1e-4, 0.5))

    runs = {
        "SGD": lambda: step(plain, plain_optimizer, lambda: None),
        "C-SGD": lambda: step(clustered, optimizer, update),
    }
    times: dict[str, list[float]] = {name: [] for name in (*runs, "update")}
    for name in runs:
        seconds(runs[name], device)  # warm-up
    for repeat in range(options.repeats):
        for name in runs if repeat % 2 else reversed(runs):
            times[name].append(seconds(runs[name], device))
        times["update"].append(seconds(update, device))

    medians = {name: statistics.median(taken) for name, taken in times.items()}
    told = ", ".join(f"{name} {1e3 * median:.2f} ms" for name, median in medians.items())
    print(f"{options.arch}, batch {options.batch_size}, {options.device}, {options.threads} threads: {told}")
    pairs = sorted(csgd / sgd for csgd, sgd in zip(times["C-SGD"], times["SGD"], strict=True))
    quarter = len(pairs) // 4
    print(
        f"C-SGD / SGD: {medians['C-SGD'] / medians['SGD']:.3f} of the medians of {len(pairs)} steps; pair by pair "
        f"{statistics.median(pairs):.3f}, half of them {pairs[quarter]:.3f} to {pairs[-1 - quarter]:.3f}"
    )
    print(f"the update alone: {medians['update'] / medians['SGD']:.3f} of a plain step")


def seconds(run: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
