"""A client that runs one request after another and says of each what became of it; to be run in a network namespace.

    python steady_client.py BUNDLE ADDRESSES OPTIONS

ADDRESSES is JSON, device -> address; OPTIONS is JSON with fields of `ClusterOptions`. A line of JSON comes for each
request, the first one when all workers are ready; the client ends with its standard input.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import numpy as np

from edgeprune.bundles.names import MODEL
from edgeprune.cluster.client import Cluster, ClusterOptions
from edgeprune.cluster.requests import ClusterError
from edgeprune.onnx_files.inputs import input_specs
from edgeprune.onnx_files.model import load_model
from edgeprune.runners.onnxruntime.runner import OrtRunner

PAUSE_S = 0.005


def main() -> None:
    folder, addresses, options = Path(sys.argv[1]), json.loads(sys.argv[2]), ClusterOptions(**json.loads(sys.argv[3]))
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    (spec,) = input_specs(load_model(folder / MODEL))
    with OrtRunner(folder / MODEL) as whole, Cluster(folder, addresses, options=options) as cluster:
        number = 0
        while not stop.is_set():
            number += 1
            feeds = {spec.name: np.random.default_rng(number).standard_normal(spec.shape).astype(np.float32)}
            print(json.dumps(row_of(cluster, whole, feeds)), flush=True)
            time.sleep(PAUSE_S)


def row_of(cluster: Cluster, whole: OrtRunner, feeds: dict[str, np.ndarray]) -> dict[str, object]:
    """One request: how long it took, and by how much of the range its outputs are off, or why it has none."""
    want = whole.run(feeds)
    failed, off_by, start = "", 0.0, time.monotonic()
    try:
        got = cluster.run(feeds)
        off_by = max(float(np.abs(got[name] - value).max() / np.ptp(value)) for name, value in want.items())
    except ClusterError as error:
        failed = str(error)
    seconds, stats = time.monotonic() - start, cluster.stats
    return {
        "seconds": seconds,
        "off_by": off_by,
        "failed": failed,
        "tried_again": stats.repeated,
        "ms_of_worker": stats.compute_ms.get("device1", 0.0),
        "faults": cluster.faults,
    }


if __name__ == "__main__":
    main()
