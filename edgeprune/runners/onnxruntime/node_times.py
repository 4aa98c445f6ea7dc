"""Times of single nodes, out of the trace that ONNX Runtime writes while a session runs."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from edgeprune.io.arrays import Feeds
from edgeprune.onnx_files.graph import TensorSpec
from edgeprune.runners.base import NodeTime
from edgeprune.runners.feeds import check_feeds

Durations = dict[tuple[str, str, str], tuple[float, ...]]
"""(node, operation, provider) -> seconds of every run, in order of execution."""
_NODE_TIME = "_kernel_time"
"""Behind a node's name, in the name of the event that tells its time."""


class Recordable(Protocol):
    """A runner that can open a session in which the runtime records times."""

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def output_names(self) -> tuple[str, ...]: ...

    def recording_session(self, prefix: Path) -> Any: ...


class NodeRecorder:
    """A session whose runtime takes the time of every node, to be run in turn with others. `finish` ends it."""

    def __init__(self, runner: Recordable, feeds: Feeds) -> None:
        """InputError as for `OrtRunner.run`."""
        check_feeds(feeds, runner.input_specs)
        self._names, self._feeds = list(runner.output_names), dict(feeds)
        self._folder = tempfile.TemporaryDirectory(prefix="edgeprune-")
        try:
            self._session = runner.recording_session(Path(self._folder.name) / "nodes")
        except BaseException:
            self._folder.cleanup()
            raise

    def run(self) -> None:
        self._session.run(self._names, self._feeds)

    def finish(self, *, warmup: int = 2) -> list[NodeTime]:
        """The median time of every node over all runs but the first `warmup`, in order of execution."""
        return [NodeTime(*key, median(times) * 1e3) for key, times in self.durations(warmup=warmup).items()]

    def durations(self, *, warmup: int = 2) -> Durations:
        """The seconds of every run but the first `warmup`; as `finish`, but raw."""
        with self._folder:
            events = json.loads(Path(self._session.end_profiling()).read_text())
        return node_durations(events, warmup)


def node_durations(events: Sequence[Mapping[str, Any]], warmup: int) -> Durations:
    """Of the runs behind the warm-up, out of ONNX Runtime's trace, which tells microseconds."""
    starts = sorted(event["ts"] for event in events if event.get("name") == "model_run")[warmup:]
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_NODE_TIME) and event["ts"] >= starts[0]:
            args = event["args"]
            key = (event["name"].removesuffix(_NODE_TIME), args["op_name"], args.get("provider", ""))
            found[key].append(event["dur"] / 1e6)
    return {key: tuple(seconds) for key, seconds in found.items()}
