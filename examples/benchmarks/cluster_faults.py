"""A split network on local workers, while one of them is killed, frozen, or sent nonsense.

    python examples/benchmarks/cluster_faults.py [--runs 200] [--frames 10000] [--json FILE]

Every result is compared with the whole model's on the same input, which no two requests share. Printed are wrong
results, requests that failed, how long the service was gone, and what damaged frames did to a worker and its memory.
Exit code 3 if a result was wrong or late, a worker died of a frame, the service was gone for more than 2 s, or memory
grew by more than 50 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from onnx import TensorProto, helper, numpy_helper

from edgeprune.bundles.names import MODEL
from edgeprune.cluster.client import Cluster, ClusterOptions
from edgeprune.cluster.local import LocalWorkers
from edgeprune.cluster.requests import ClusterError
from edgeprune.cluster.serving import digest_of
from edgeprune.cluster.transport.frames import encode
from edgeprune.cluster.transport.messages import Attempt, Tensor
from edgeprune.cluster.transport.network import Network, open_session
from edgeprune.io.arrays import Feeds
from edgeprune.pipeline.output import Output
from edgeprune.pipeline.split import SplitOptions, split
from edgeprune.runners.onnxruntime.runner import OrtRunner

CHANNELS, SIZE, LAYERS, DEVICES = 32, 16, 4, 3
DEADLINE_S, MOST_GONE_S, MOST_GROWTH = 5.0, 2.0, 50 * 2**20


def write_network(path: Path, channels: int = CHANNELS, size: int = SIZE, layers: int = LAYERS) -> None:
    """Grouped convolutions in a row."""
    rng = np.random.default_rng(0)
    nodes, held, value = [], [], "x"
    for layer in range(layers):
        weight = rng.standard_normal((channels, channels // 8, 3, 3)).astype(np.float32) / 6
        held.append(numpy_helper.from_array(weight, f"w{layer}"))
        nodes.append(helper.make_node("Conv", [value, f"w{layer}"], [f"c{layer}"], group=8, pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Softplus", [f"c{layer}"], [f"r{layer}"]))
        value = f"r{layer}"
    nodes.append(helper.make_node("Identity", [value], ["y"]))
    shape = [1, channels, size, size]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "rows", ends[:1], ends[1:], held)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    path.write_bytes(model.SerializeToString())


class Load:
    """Requests, one after another, each checked."""

    def __init__(self, cluster: Cluster, whole: OrtRunner) -> None:
        self.cluster, self.whole = cluster, whole
        self.wrong = self.failed = self.late = self.count = 0
        self.longest_s = 0.0

    def run(self, count: int, at: dict[int, Callable[[], object]] | None = None) -> None:
        """`count` requests; before the n-th, what `at` has for n."""
        for number in range(count):
            (at or {}).get(number, lambda: None)()
            self.count += 1
            feeds = self.feeds(self.count)
            start = time.monotonic()
            try:
                found = self.cluster.run(feeds, timeout_s=DEADLINE_S)["y"]
            except ClusterError:
                self.failed += 1
                found = None
            took = time.monotonic() - start
            self.longest_s = max(self.longest_s, took)
            self.late += took > DEADLINE_S + 0.5
            if found is not None:
                want = self.whole.run(feeds)["y"]
                self.wrong += bool(np.abs(found - want).max() > 1e-5 * np.ptp(want))

    @staticmethod
    def feeds(number: int) -> Feeds:
        x = np.random.default_rng(number).standard_normal((1, CHANNELS, SIZE, SIZE))
        return {"x": x.astype(np.float32)}

    def row(self) -> dict[str, Any]:
        stats = self.cluster.stats
        return {
            "requests": self.count,
            "wrong": self.wrong,
            "failed": self.failed,
            "late": self.late,
            "tried_again": stats.repeated,
            "longest_s": self.longest_s,
            "p50_ms": stats.percentile(50),
        }


def wait_until_ready(cluster: Cluster) -> float:
    start = time.monotonic()
    while cluster.faults and time.monotonic() - start < 60:
        time.sleep(0.01)
    return time.monotonic() - start


def faulty(bundle: Path, runs: int, kind: str) -> dict[str, Any]:
    """Half of the runs, then a fault of the first worker, the other half, its return, and as many runs again."""
    names = [f"device{number}" for number in range(1, DEVICES)]
    options = ClusterOptions(start_timeout_s=60)
    with (
        OrtRunner(bundle / MODEL) as whole,
        LocalWorkers(bundle, names) as workers,
        Cluster(bundle, workers.addresses, options=options) as cluster,
    ):
        load, process = Load(cluster, whole), workers.processes["device1"]
        if kind == "killed":
            load.run(runs, {runs // 2: process.kill})
            workers.start("device1")
        else:
            load.run(runs, {runs // 2: lambda: os.kill(process.pid, signal.SIGSTOP)})
            os.kill(process.pid, signal.SIGCONT)
        row = {"back_after_s": wait_until_ready(cluster)}
        tried = cluster.stats.repeated
        load.run(runs)
        return {"fault": kind, **load.row(), **row, "tried_again_after_return": cluster.stats.repeated - tried}


def nonsense(bundle: Path, frames: int) -> dict[str, Any]:
    """Damaged frames at a worker, while requests go on."""
    names = [f"device{number}" for number in range(1, DEVICES)]
    rng = np.random.default_rng(0)
    with (
        OrtRunner(bundle / MODEL) as whole,
        LocalWorkers(bundle, names) as workers,
        Cluster(bundle, workers.addresses, options=ClusterOptions(start_timeout_s=60)) as cluster,
    ):
        import zenoh

        load, worker = Load(cluster, whole), psutil.Process(workers.processes["device1"].pid)
        load.run(50)
        session: Any = open_session(Network((), (workers.addresses["device1"],)))
        time.sleep(1)
        array = np.zeros((1, CHANNELS // 2, SIZE, SIZE), np.float32)
        message = Tensor(digest_of(bundle), Attempt("ab", 1, 1), "split", 1, "x", "float32", array.shape, 1000)
        good = np.frombuffer(encode(1, 1, message, array), np.uint8)
        before, peak = worker.memory_info().rss, 0
        for number in range(frames):
            bad = good.copy()
            bad[rng.integers(0, 512, 4)] = rng.integers(0, 256, 4)
            cut = bad[: rng.integers(0, len(bad) + 1)] if number % 3 == 0 else bad
            key = f"edgeprune/device1/worker/device0/{number % 7:x}"
            session.put(key, cut.tobytes(), congestion_control=zenoh.CongestionControl.BLOCK)
            if number % 100 == 0:
                load.run(1)
                peak = max(peak, worker.memory_info().rss)
        load.run(50)
        growth = max(peak, worker.memory_info().rss) - before
        session.close()
        died = workers.processes["device1"].poll() is not None
        workers.stop("device1")  # it writes how many lines it left out
        log = workers.log("device1").read_text()
        refused = log.count("refused device0/")
        refused += sum(map(int, re.findall(r"device0/\S+: (\d+) more lines like these", log)))
        return {"fault": f"{frames} frames", **load.row(), "refused": refused, "growth_bytes": growth, "died": died}


def is_bad(row: dict[str, Any]) -> bool:
    return bool(
        row["wrong"]
        or row["late"]
        or row.get("died")
        or row["longest_s"] > MOST_GONE_S
        or row.get("growth_bytes", 0) > MOST_GROWTH
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_network(Path(folder) / "rows.onnx")
        bundle = Path(folder) / "split"
        split(Path(folder) / "rows.onnx", SplitOptions(str(DEVICES), force=True), Output(bundle))
        rows = [faulty(bundle, options.runs, kind) for kind in ("killed", "frozen")]
        rows.append(nonsense(bundle, options.frames))
    for row in rows:
        print(
            ", ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))
    return 3 if any(map(is_bad, rows)) else 0


if __name__ == "__main__":
    sys.exit(main())
