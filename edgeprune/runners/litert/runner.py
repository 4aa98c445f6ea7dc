"""A network in LiteRT, whose XNNPACK delegate runs every convolution of it, or it is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from edgeprune.errors import InputError, SlowPathError
from edgeprune.exporters.conversions import with_input_shapes
from edgeprune.exporters.tflite.delegation import Delegation, delegation_in
from edgeprune.exporters.tflite.interpreter import feed, fetch, invoke, open_interpreter
from edgeprune.exporters.tflite.layer_formats import layer_formats
from edgeprune.exporters.tflite.record import FileRecord, file_record, path_for_batch
from edgeprune.exporters.tflite.writer import to_tflite
from edgeprune.io.arrays import Array, Feeds
from edgeprune.io.formatting import some
from edgeprune.onnx_files.graph import TensorSpec
from edgeprune.onnx_files.inputs import input_specs, output_specs
from edgeprune.onnx_files.model import as_model
from edgeprune.runners.base import NodeTime, RunOptions
from edgeprune.runners.cores import pinned
from edgeprune.runners.feeds import check_feeds
from edgeprune.runners.opened import OpenedRunner

SUFFIX = ".tflite"
_CONVOLUTIONS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"})


@dataclass(frozen=True)
class _Loaded:
    """The network for inputs of one shape, as LiteRT's files are."""

    interpreter: Any
    record: FileRecord
    delegation: Delegation


class LiteRtRunner(OpenedRunner):
    """A .tflite file that edgeprune wrote, or an ONNX model, which is written anew when the shapes of its inputs
    change. A context manager, or call `close`.

    Inputs and outputs are named and shaped as the ONNX model's. `RunOptions.spinning` and `graph_optimization` have no
    counterpart here.
    """

    target = "litert"
    provider = "LiteRT XNNPACK"

    def __init__(self, model: str | Path | bytes | ModelProto, options: RunOptions | None = None) -> None:
        """InputError if the model is none, or cannot be written for LiteRT."""
        super().__init__(options)
        self._model: ModelProto | None = None
        self._file, self._where = b"", "ONNX model"
        self._loaded: dict[tuple[tuple[int, ...], ...], _Loaded] = {}
        self.fixed_batch: int | None = None
        """The only batch size that a file takes, but for those of files beside it (`path_for_batch`)."""
        self._formats: dict[str, str] = {}
        if isinstance(model, str | Path) and Path(model).suffix == SUFFIX:
            self._where = str(model)
            self._file = _read(Path(model))
            record = file_record(self._file, where=model)
            self._inputs = _specs(record)
            self.fixed_batch = record.inputs[0].shape[0] if record.inputs[0].shape else None
            self.output_names = tuple(port.name for port in record.outputs)
        else:
            self._model = as_model(model)
            self._inputs = input_specs(self._model)
            self.output_names = tuple(spec.name for spec in output_specs(self._model))
        self.input_names = tuple(spec.name for spec in self._inputs)

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Outputs by name; InputError if an input is missing, unknown, or of the wrong shape or type, or if a
        convolution would not be run by the delegate."""
        loaded = self._for(feeds)
        with pinned(self.options.pin):
            feed(loaded.interpreter, loaded.record, feeds)
            invoke(loaded.interpreter, where=self._where)
        outputs: dict[str, Array] = fetch(loaded.interpreter, loaded.record)
        return outputs

    def prepared(self, feeds: Feeds) -> Callable[[], object]:
        """See `ProfiledRunner`: the inputs are in LiteRT's memory, in its order of axes, before the call."""
        self.run(feeds)  # also starts the threads, on the cores that they are pinned to
        loaded = self._for(feeds)
        feed(loaded.interpreter, loaded.record, feeds)
        call: Callable[[], object] = loaded.interpreter.invoke
        return call

    def profile_nodes(self, feeds: Feeds, iterations: int) -> Sequence[NodeTime]:
        """None: the delegate runs the network as one node, and LiteRT's Python package tells no times inside of it."""
        self._file_for(feeds)
        if iterations < 1:
            raise InputError(f"--iterations {iterations} is out of range", expected="1 or more")
        return ()

    def original_node(self, name: str) -> str:
        return name

    def providers(self) -> dict[str, int]:
        """The network's operators that the delegate runs, and those that it left to LiteRT's own kernels; once it has
        run, since it is written for the inputs' shapes."""
        for loaded in self._loaded.values():
            left = len(loaded.delegation.left)
            counts = {self.provider: len(loaded.delegation.operators) - left, "LiteRT": left}
            return {name: count for name, count in counts.items() if count}
        return {}

    def layer_formats(self) -> dict[str, str]:
        """ONNX node -> the number format in which the file that ran last computes it, of convolutions and linear
        layers; every one of them is the delegate's."""
        return self._formats

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        self._loaded, self._file, self._model = {}, b"", None

    def _for(self, feeds: Feeds) -> _Loaded:
        """The network loaded for these inputs; only the last is kept."""
        if not self._file and self._model is None:
            raise ValueError("the runner is closed")
        data = self._file_for(feeds)
        shapes = {name: np.shape(feeds[name]) for name in self.input_names}
        key = tuple(shapes.values())
        if key not in self._loaded:
            self._loaded = {}  # its memory goes before the next one's is taken
            if self._model is not None:
                data = to_tflite(with_input_shapes(self._model, shapes))
            with pinned(self.options.pin):
                self._loaded = {key: self._load(data)}
            self._formats = layer_formats(data)
        return self._loaded[key]

    def _file_for(self, feeds: Feeds) -> bytes:
        """The file that takes these inputs: that which was given, or the one beside it for their batch size; nothing
        where it is to be written first. InputError if none takes them."""
        batch = np.shape(next(iter(feeds.values()), ()))[:1]
        if self.fixed_batch is not None and batch and batch[0] != self.fixed_batch:
            beside = path_for_batch(Path(self._where), batch[0])
            if beside.exists():
                data = _read(beside)
                check_feeds(feeds, _specs(file_record(data, where=beside)))
                return data
        check_feeds(feeds, self._inputs)
        return self._file

    def _load(self, data: bytes) -> _Loaded:
        record = file_record(data, where=self._where)
        interpreter = open_interpreter(data, self.options.threads, where=self._where)
        found = delegation_in(interpreter)
        left = [record.nodes[place] for place in found.left if found.operators[place] in _CONVOLUTIONS]
        if left:
            raise SlowPathError(
                f"{self._where}: LiteRT's XNNPACK delegate does not take {len(left)} of its convolutions "
                f"({some(left)}), which would run in a plain loop: choose another --target"
            )
        return _Loaded(interpreter, record, found)


def _specs(record: FileRecord) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(port.name, port.shape, "float32") for port in record.inputs)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path, expected="a .tflite file") from error
