"""A split network on two cores beside the whole one on a single core, over loopback or over a real link's rate.

    python examples/benchmarks/cluster_links.py SPLIT [--link 1gbit] [--throughput] [--rounds 8] [--runs 10]
        [--compare N [--data imagefolder:DIR]] [--json FILE]

SPLIT is a bundle that was split over two devices (`edgeprune split ... --devices 2`). The host works on the first core,
the worker on the second, one thread each; the whole network runs in the host's process, on its core, between them in
turn. With --link each lives in a network namespace of its own, joined by a veth pair whose two ends `tc tbf` holds to
that rate (needs root and iproute2). With --throughput both devices run whole networks behind one queue, and frames a
second count.

With --compare nothing is timed: N inputs go through both, images of --data or else random ones, and the exit code is 3
if an output differs by more than 1e-5 of the range of the unsplit network's, or the split did not answer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from network_namespaces import ENDS, Pair, namespaces
from onnx import ModelProto

from edgeprune.bundles.bundle import open_bundle
from edgeprune.bundles.names import MODEL
from edgeprune.cluster.client import Cluster, ClusterOptions
from edgeprune.cluster.local import LocalWorkers
from edgeprune.io.arrays import Array, Feeds
from edgeprune.onnx_files.inputs import input_specs
from edgeprune.onnx_files.model import load_model
from edgeprune.partitioning.manifest import load_manifest
from edgeprune.profiling.environment import current_environment
from edgeprune.profiling.setup import random_feeds
from edgeprune.runners.base import RunOptions
from edgeprune.runners.onnxruntime.runner import OrtRunner

PORT = 7447
TOLERANCE = 1e-5
CORES = sorted(os.sched_getaffinity(0))


@contextlib.contextmanager
def worker_beyond_the_link(pair: Pair, folder: Path, name: str) -> Iterator[dict[str, str]]:
    """A worker in the second namespace, on the second core."""
    listen = f"tcp/{ENDS[1]}:{PORT}"
    words = [sys.executable, "-m", "edgeprune", "worker", "--name", name, "--listen", listen, "--bundle", str(folder)]
    inside = [*pair.inside(1), "taskset", "-c", str(CORES[1])]
    with tempfile.TemporaryFile() as log, subprocess.Popen([*inside, *words], stdout=log, stderr=log) as process:
        try:
            yield {name: listen}
        finally:
            process.terminate()


@contextlib.contextmanager
def local_worker(folder: Path, name: str) -> Iterator[dict[str, str]]:
    """A worker on loopback, on the second core."""
    os.sched_setaffinity(0, {CORES[1]})  # which the worker inherits
    with LocalWorkers(folder, [name]) as workers:
        os.sched_setaffinity(0, {CORES[0]})
        yield dict(workers.addresses)


def measured(folder: Path, addresses: dict[str, str], asked: argparse.Namespace) -> dict[str, Any]:
    """Whole and split in turn; times in ms, ratios a round."""
    os.sched_setaffinity(0, {CORES[0]})
    manifest, model = load_manifest(folder), load_model(open_bundle(folder).path(MODEL))
    options = ClusterOptions(start_timeout_s=60.0, host_works=asked.throughput, host=manifest.host)
    with (
        OrtRunner(model, RunOptions(1, spinning=False)) as whole,
        Cluster(folder, addresses, whole=asked.throughput, options=options) as cluster,
    ):
        inputs = [
            dict(zip(whole.input_names, random_feeds(input_specs(model), 1, seed), strict=True))
            for seed in range(asked.runs)
        ]
        expected = [whole.run(feeds) for feeds in inputs]
        got = [cluster.run(feeds) for feeds in inputs]
        rounds = [
            frames_round(whole, cluster, inputs) if asked.throughput else latency_round(whole, cluster, inputs)
            for _ in range(asked.rounds)
        ]
        stats = cluster.settled_stats()
    single, together = ([one[place] for one in rounds] for place in (0, 1))
    return {
        "split": str(folder.name),
        "link": asked.link or "loopback",
        "what": "frames a second" if asked.throughput else "p50 ms",
        "single": statistics.median(single),
        "two": statistics.median(together),
        "ratio": statistics.median(b / a if asked.throughput else a / b for a, b in zip(single, together, strict=True)),
        "max_difference_of_range": max(difference(e, g) for e, g in zip(expected, got, strict=True)),
        "bytes_per_inference": stats.bytes_per_inference,
        "answered": stats.answered,
        "failed": stats.failed,
        "tried_again": stats.repeated,
        "compute_ms": {name: ms / max(stats.answered, 1) for name, ms in stats.compute_ms.items()},
        "predicted": json.loads((folder / "partition.json").read_text())["predicted"],
        "environment": current_environment(1).cpu,
    }


def compared(folder: Path, addresses: dict[str, str], asked: argparse.Namespace) -> dict[str, Any]:
    """The largest difference of the outputs, of their range, over many inputs."""
    manifest, model = load_manifest(folder), load_model(open_bundle(folder).path(MODEL))
    options = ClusterOptions(start_timeout_s=60.0, host_works=False, host=manifest.host)
    worst, place, count = 0.0, 0, 0
    with (
        OrtRunner(model, RunOptions(1, spinning=False)) as whole,
        Cluster(folder, addresses, options=options) as cluster,
    ):
        for count, feeds in enumerate(inputs_of(model, asked.data, asked.compare), 1):
            off_by = difference(whole.run(feeds), cluster.run(feeds))
            if not off_by <= worst:  # one that is no number, too
                worst, place = off_by, count
        stats = cluster.settled_stats()
    return {
        "split": str(folder.name),
        "link": asked.link or "loopback",
        "inputs": count,
        "of": asked.data or "random numbers",
        "max_difference_of_range": worst,
        "of_input": place,
        "tolerance": TOLERANCE,
        "passed": worst <= TOLERANCE and count == asked.compare and stats.answered == count and not stats.repeated,
        "answered": stats.answered,
        "tried_again": stats.repeated,
        "bytes_per_inference": stats.bytes_per_inference,
    }


def inputs_of(model: ModelProto, data: str, count: int) -> Iterator[Feeds]:
    """Inputs of batch 1: test images, normalised as ever, or random ones."""
    specs = input_specs(model)
    if not data:
        for seed in range(count):
            yield dict(zip((spec.name for spec in specs), random_feeds(specs, 1, seed), strict=True))
        return
    from edgeprune.datasets.images import load_data, normalised  # these need torch

    _, *shape = specs[0].shape
    images = load_data(data, split="test", input_shape=tuple(shape), limit=count)
    for number in range(len(images)):
        yield {specs[0].name: normalised(images.images[number : number + 1], images).numpy()}


def latency_round(whole: OrtRunner, cluster: Cluster, inputs: list[Feeds]) -> tuple[float, float]:
    """Median ms of both."""
    times: tuple[list[float], list[float]] = ([], [])
    for run, taken in zip((whole.run, cluster.run), times, strict=True):
        for feeds in inputs:
            start = time.perf_counter()
            run(feeds)
            taken.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[0]), statistics.median(times[1])


def frames_round(whole: OrtRunner, cluster: Cluster, inputs: list[Feeds]) -> tuple[float, float]:
    """Frames a second of both."""
    start = time.perf_counter()
    for feeds in inputs:
        whole.run(feeds)
    alone = len(inputs) / (time.perf_counter() - start)
    start = time.perf_counter()
    count = sum(1 for _ in cluster.stream(inputs, in_flight=cluster.capacity))
    return alone, count / (time.perf_counter() - start)


def difference(expected: dict[str, Array], got: dict[str, Array]) -> float:
    """The largest one, of the range of the output that it is in."""
    return max(
        float(np.abs(got[name] - value).max() / max(float(np.ptp(value)), 1e-12)) for name, value in expected.items()
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", type=Path)
    parser.add_argument("--link", default="", help="rate as tc takes it: 1gbit, 100mbit; default: loopback")
    parser.add_argument("--throughput", action="store_true")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--compare", type=int, default=0, metavar="N", help="compare the outputs of so many inputs")
    parser.add_argument("--data", default="", help="imagefolder:DIR or cifar10:DIR, for --compare")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--inside", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    devices = [entry.name for entry in load_manifest(asked.split).devices]
    if len(devices) != 2 or len(CORES) < 2:
        parser.error(f"{asked.split} is split over {len(devices)} devices, {len(CORES)} cores are here: 2 of each")
    if asked.link and not asked.inside:
        with namespaces(asked.link) as pair, worker_beyond_the_link(pair, asked.split, devices[1]) as addresses:
            words = [sys.executable, *sys.argv, "--inside", addresses[devices[1]]]
            sys.exit(subprocess.run([*pair.inside(0), *words], check=False).returncode)
    run = compared if asked.compare else measured
    if asked.inside:
        found = run(asked.split, {devices[1]: asked.inside}, asked)
    else:
        with local_worker(asked.split, devices[1]) as addresses:
            found = run(asked.split, addresses, asked)
    text = json.dumps(found, indent=2)
    print(text)
    if asked.json:
        asked.json.write_text(text)
    return 0 if found.get("passed", True) else 3


if __name__ == "__main__":
    sys.exit(main())
