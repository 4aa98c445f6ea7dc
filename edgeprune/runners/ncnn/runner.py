"""ncnn: an ONNX model, written in ncnn's files first, or such files, on the processor in float32.

ncnn has no batch: samples run one after another, and the time of a batch is that of all of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from edgeprune.errors import InputError
from edgeprune.exporters.ncnn.network import ncnn_network
from edgeprune.exporters.ncnn.runtime import NcnnSession
from edgeprune.io.arrays import Array, Feeds
from edgeprune.onnx_files.graph import TensorSpec
from edgeprune.onnx_files.inputs import input_specs, output_specs
from edgeprune.onnx_files.model import as_model
from edgeprune.runners.base import NodeTime, RunOptions
from edgeprune.runners.cores import pinned
from edgeprune.runners.feeds import check_feeds
from edgeprune.runners.opened import OpenedRunner

PARAM = ".param"


class NcnnRunner(OpenedRunner):
    """A network in ncnn. A context manager, or call `close`.

    Of an ONNX model it has the names, and its shapes at batch 1; of `.param` files those names that they have.
    `RunOptions.provider_options` are fields of ncnn's Option; `graph_optimization` has no counterpart here.
    """

    target = "ncnn"
    provider = "ncnn CPU"

    def __init__(self, model: str | Path | bytes | ModelProto, options: RunOptions | None = None) -> None:
        """InputError if the model is none, or ncnn does not have what is in it."""
        super().__init__(options)
        self._session: NcnnSession | None
        if isinstance(model, str | Path) and Path(model).suffix == PARAM:
            self._session = self._loaded(Path(model))
            self._inputs = tuple(
                TensorSpec(name, (), "float32", states_shape=False) for name in self._session.input_names
            )
            self.output_names = self._session.output_names
        else:
            proto = as_model(model)
            self._inputs = input_specs(proto)
            self.output_names = tuple(spec.name for spec in output_specs(proto))
            self._session = self._converted(proto)
        self.input_names = tuple(spec.name for spec in self._inputs)
        self._layers = self._session.layers

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Outputs by name; InputError if an input is missing, unknown, or of the wrong shape or type."""
        session, samples = self._open(), self._samples(feeds)
        with pinned(self.options.pin):
            found = [session.run(sample, self.output_names) for sample in samples]
        return {name: np.stack(parts) for name, parts in zip(self.output_names, zip(*found, strict=True), strict=True)}

    def prepared(self, feeds: Feeds) -> Callable[[], object]:
        """See `ProfiledRunner`. Inputs are copied into ncnn's own memory now; a run makes an extractor of its own, in
        which nothing is left of a run before."""
        self.run(feeds)  # also starts the threads, on the cores that they are pinned to
        session, names = self._open(), self.output_names
        samples: list[dict[str, Any]] = [session.blobs(sample) for sample in self._samples(feeds)]
        return lambda: [session.extract(sample, names) for sample in samples]

    def profile_nodes(self, feeds: Feeds, iterations: int) -> Sequence[NodeTime]:
        """None: ncnn tells the times of layers in builds for benchmarking alone, and to nobody but the console."""
        return ()

    def original_node(self, name: str) -> str:
        """Layers have the names of the ONNX model's nodes."""
        return name

    def providers(self) -> dict[str, int]:
        """See `Runner`: ncnn's layers, inputs included."""
        return {self.provider: self._layers}

    def close(self) -> None:
        """Free the network; a second call does nothing."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _open(self) -> NcnnSession:
        if self._session is None:
            raise ValueError("the runner is closed")
        return self._session

    def _samples(self, feeds: Feeds) -> list[dict[str, Array]]:
        """The inputs of each sample, without the batch."""
        self._open()
        check_feeds(feeds, self._inputs)
        counts = {len(value) if value.ndim else 0 for value in feeds.values()}
        if len(counts) != 1 or 0 in counts:
            raise InputError("the inputs hold different numbers of samples, or none", where=f"target {self.target}")
        return [{name: value[place] for name, value in feeds.items()} for place in range(counts.pop())]

    def _converted(self, model: ModelProto) -> NcnnSession:
        network = ncnn_network(model)
        with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
            path = Path(folder) / f"model{PARAM}"
            path.write_text(network.param())
            path.with_suffix(".bin").write_bytes(network.weights())
            return self._loaded(path)

    def _loaded(self, path: Path) -> NcnnSession:
        with pinned(self.options.pin):
            return NcnnSession(
                path,
                path.with_suffix(".bin"),
                self.options.threads,
                spinning=self.options.spinning,
                settings=self.options.provider_options,
            )
