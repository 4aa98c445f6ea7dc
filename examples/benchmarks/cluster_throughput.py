"""Whole models on two workers of one core each beside one of them: inferences a second, in turn, in rounds.

    python examples/benchmarks/cluster_throughput.py [MODEL.onnx] [--size 3,224,224] [--rounds 5] [--seconds 4]

The client only hands out inputs (`host_works=False`). Without a model: grouped convolutions in a row, a few ms.
On a machine with two cores, the client and zenoh take a part of what the workers need; the load is printed beside.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from cluster_faults import write_network

from edgeprune.bundles.manifest import SCHEMA_VERSION, Manifest
from edgeprune.bundles.names import MODEL
from edgeprune.bundles.writing import write_manifest
from edgeprune.cluster.client import Cluster, ClusterOptions
from edgeprune.cluster.local import LocalWorkers
from edgeprune.io.arrays import Feeds
from edgeprune.onnx_files.inputs import input_specs, with_input_size
from edgeprune.onnx_files.model import load_model


def write_bundle(folder: Path, model: Path | None, size: tuple[int, ...]) -> Path:
    """A bundle with a model that is not split."""
    folder.mkdir()
    if model is None:
        write_network(folder / MODEL, channels=64, size=32, layers=12)
    else:
        loaded = with_input_size(load_model(model), size) if size else load_model(model)
        (folder / MODEL).write_bytes(loaded.SerializeToString())
    write_manifest(folder, Manifest(SCHEMA_VERSION, "0"))
    return folder


def inputs(bundle: Path) -> Feeds:
    rng = np.random.default_rng(0)
    specs = input_specs(load_model(bundle / MODEL))
    shapes = {spec.name: [dim if isinstance(dim, int) else 1 for dim in spec.shape] for spec in specs}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def rate(cluster: Cluster, feeds: Feeds, seconds: float) -> float:
    """Inferences a second."""
    start, done = time.perf_counter(), 0

    def until() -> Iterator[Feeds]:
        while time.perf_counter() - start < seconds:
            yield feeds

    for _ in cluster.stream(until(), in_flight=cluster.capacity):
        done += 1
    return done / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--size", default="")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    options = ClusterOptions(start_timeout_s=60, timeout_s=60, host="host", host_works=False)
    with tempfile.TemporaryDirectory() as folder:
        size = tuple(map(int, given.size.split(","))) if given.size else ()
        bundle = write_bundle(Path(folder) / "bundle", given.model, size)
        feeds, names = inputs(bundle), ["one", "two"]
        with LocalWorkers(bundle, names) as workers:
            addresses = workers.addresses
            with (
                Cluster(bundle, {"one": addresses["one"]}, whole=True, options=options) as alone,
                Cluster(bundle, addresses, whole=True, options=options) as both,
            ):
                for cluster in (alone, both):
                    rate(cluster, feeds, 1.0)
                rounds = [
                    (rate(alone, feeds, given.seconds), rate(both, feeds, given.seconds)) for _ in range(given.rounds)
                ]
    ratio = statistics.median(two / one for one, two in rounds)
    one, two = (statistics.median(values) for values in zip(*rounds, strict=True))
    load = os.getloadavg()[0]
    print(f"one worker {one:.1f}/s, two {two:.1f}/s: {ratio:.2f}x (median of {given.rounds} rounds; load {load:.1f})")
    if given.json:
        given.json.write_text(json.dumps({"one": one, "two": two, "ratio": ratio, "load": load, "rounds": rounds}))


if __name__ == "__main__":
    main()
