"""ONNX Runtime with inputs and outputs that stay on its device: what is timed is computing, and copies are told apart.

A plain run of a session copies the inputs to the GPU and the outputs back, which takes longer than many a network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime

from edgeprune.io.arrays import Array, Feeds
from edgeprune.runners.gpu import median_ms
from edgeprune.runners.onnxruntime.providers import TARGETS
from edgeprune.runners.onnxruntime.runner import OrtRunner


class DeviceOrtRunner(OrtRunner):
    """An `OrtRunner` that is timed without copies. `run` copies, as a session does by itself."""

    def prepared(self, feeds: Feeds) -> Callable[[], object]:
        """One run on these inputs, which are on the device already, until its outputs are there."""
        return self._bound(feeds).run

    def copy_times(self, feeds: Feeds, iterations: int) -> tuple[float, float]:
        """Median milliseconds of copying the inputs to the device, and of copying the outputs back, by this computer's
        clock: from and to ordinary memory, as a plain run of a session copies them."""
        bound = self._bound(feeds)
        return median_ms(bound.copy_in, iterations), median_ms(bound.copy_out, iterations)

    def _bound(self, feeds: Feeds) -> BoundRun:
        """These inputs on the device, with room for the outputs, run once: what is wrong with them is said here."""
        outputs = self.run(feeds)
        number = int(dict(self.options.provider_options).get("device_id", 0))
        with self.errors_of_the_input():
            bound = BoundRun(self._session, feeds, outputs, (TARGETS[self.target].device, number))
            bound.run()
        return bound


class BoundRun:
    """A session with its inputs and outputs in the memory of one device."""

    def __init__(self, session: Any, feeds: Feeds, outputs: Feeds, device: tuple[str, int]) -> None:
        """`outputs` have the shapes and types of the outputs for these inputs; `device` is its kind and number."""
        self._session = session
        self._arrays = {name: np.ascontiguousarray(value) for name, value in feeds.items()}
        value_of, empty = onnxruntime.OrtValue.ortvalue_from_numpy, onnxruntime.OrtValue.ortvalue_from_shape_and_type
        # Copies: a value on the computer itself would share the caller's memory.
        self._inputs = {name: value_of(array.copy(), *device) for name, array in self._arrays.items()}
        self._outputs = {name: empty(list(value.shape), value.dtype, *device) for name, value in outputs.items()}
        self._binding = session.io_binding()
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)
        self._binding.synchronize_inputs()

    def run(self) -> None:
        """Compute, and wait until the outputs are there."""
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

    def copy_in(self) -> None:
        """Copy all inputs to the device."""
        for name, array in self._arrays.items():
            self._inputs[name].update_inplace(array)

    def copy_out(self) -> Sequence[Array]:
        """All outputs of the last run, in the computer's memory."""
        copied: Sequence[Array] = self._binding.copy_outputs_to_cpu()
        return copied
