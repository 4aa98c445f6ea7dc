"""ncnn itself: a network out of its two files, run in float32 on the processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ncnn
import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import InputError, unknown_name
from edgeprune.io.arrays import Array, Feeds

_HALVES = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_packed", "use_bf16_storage")


class NcnnSession:
    """A loaded network. Blobs have no batch."""

    def __init__(
        self,
        param: Path,
        weights: Path,
        threads: int = 1,
        *,
        spinning: bool = False,
        settings: Sequence[tuple[str, str]] = (),
    ) -> None:
        """`settings`: fields of ncnn's Option with whole numbers, such as ("use_winograd_convolution", "0").

        InputError if ncnn cannot load the files, or has no such setting.
        """
        self._net: Any = ncnn.Net()
        option = self._net.opt
        option.num_threads = threads
        option.use_vulkan_compute = False
        option.lightmode = True  # what was read is freed within a run
        if not spinning:
            option.openmp_blocktime = 0  # milliseconds for which idle threads spin
        for name in _HALVES:  # left alone, it stores weights and blobs in 16 bits where the processor can
            if hasattr(option, name):
                setattr(option, name, False)
        for name, value in settings:
            _set(option, name, value)
        for path, load in ((param, self._net.load_param), (weights, self._net.load_model)):
            if not path.is_file():
                raise InputError("no such file", where=path, expected="ncnn's .param, and its .bin beside it")
            if load(str(path)) != 0:
                raise InputError(f"ncnn {ncnn.__version__} cannot load it", where=path, expected="a network of ncnn's")

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(self._net.input_names())

    @property
    def output_names(self) -> tuple[str, ...]:
        """The blobs that no layer reads."""
        return tuple(self._net.output_names())

    @property
    def layers(self) -> int:
        return len(self._net.layers())

    def blobs(self, values: Mapping[str, NDArray[np.generic]]) -> dict[str, Any]:
        """Inputs, without their batch, as ncnn holds them."""
        return {name: _blob(value) for name, value in values.items()}

    def extract(self, blobs: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        """One run; InputError if ncnn fails in it. Its outputs are ncnn's own, and live as long as they are held."""
        extractor = self._net.create_extractor()
        for name, blob in blobs.items():
            if extractor.input(name, blob) != 0:
                raise InputError(f"ncnn has no input {name!r}", expected=f"one of {', '.join(self.input_names)}")
        found = []
        for name in outputs:
            code, blob = extractor.extract(name)
            if code != 0:
                raise InputError(f"ncnn cannot compute {name!r} (code {code})", where="ncnn")
            found.append(blob)
        return found

    def run(self, values: Mapping[str, NDArray[np.generic]], outputs: Sequence[str]) -> list[Array]:
        """Outputs without their batch."""
        return [np.array(blob) for blob in self.extract(self.blobs(values), outputs)]

    def close(self) -> None:
        """Free the network; a second call does nothing."""
        if self._net is not None:
            self._net.clear()
            self._net = None


def _blob(value: NDArray[np.generic]) -> Any:
    """A copy in ncnn's memory. The array has to have a name here: a Mat reads an array's memory, but does not keep the
    array, so that of one that nobody else holds it would copy what is there by then."""
    held = np.ascontiguousarray(value, np.float32)
    return ncnn.Mat(held).clone()


def _set(option: Any, name: str, value: str) -> None:
    known = [field for field in dir(option) if isinstance(getattr(option, field), int)]  # a bool is an int as well
    if name not in known:
        raise unknown_name("setting of ncnn", name, known)
    if name == "use_bf16_storage" and value != "0":  # findings/ncnn_groups_are_garbage_in_bf16.sh
        raise InputError(
            "with use_bf16_storage ncnn gives garbage for convolutions in groups (seen with 1.0.20261020 on x86)",
            expected="use_bf16_storage=0",
        )
    if not value.isdecimal():
        raise InputError(f"ncnn's {name} is {value!r}", expected="a whole number; 1 for on, 0 for off")
    setattr(option, name, type(getattr(option, name))(int(value)))


def run_file(path: Path, feeds: Feeds) -> dict[str, Array]:
    """A written `.param`'s outputs for inputs with a batch of 1, which the outputs have, too."""
    session = NcnnSession(path, path.with_suffix(".bin"))
    try:
        values = {name: np.asarray(value)[0] for name, value in feeds.items()}
        outputs = session.run(values, session.output_names)
        return {name: output[np.newaxis] for name, output in zip(session.output_names, outputs, strict=True)}
    finally:
        session.close()
