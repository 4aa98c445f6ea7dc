"""Arrays in .npy and .npz files, never unpickled."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import InputError
from edgeprune.io.files import write_atomically

Array = NDArray[np.generic]
Feeds = Mapping[str, Array]
"""Inputs by name."""
SMALLEST_RANGE = 5e-3
"""Smaller outputs are compared as if they were so large, since activations round absolutely: ONNX Runtime's Sigmoid is
off by up to 1.2e-7 near zero (findings/onnxruntime_sigmoid_is_not_monotonic_near_zero.sh)."""


def load_array(path: Path) -> NDArray[np.generic]:
    """An array from a .npy file, never unpickled; InputError if it is none."""
    with _checked(path):
        array = np.load(path, allow_pickle=False)
        if isinstance(array, np.ndarray):
            return array
        array.close()
    raise InputError("holds several arrays", where=path, expected="one array in a .npy file")


def load_arrays(path: Path) -> dict[str, Array]:
    """The arrays of a .npz file by name, or that of a .npy file under the name ""; InputError as `load_array`."""
    with _checked(path):
        held = np.load(path, allow_pickle=False)
        if isinstance(held, np.ndarray):
            return {"": held}
        with held:
            return {name: held[name] for name in held.files}


@contextmanager
def _checked(path: Path) -> Iterator[None]:
    """Whatever numpy raises on a file that it cannot read as an InputError: a damaged header is parsed as Python, the
    archive's parts are unpacked, and each of those steps has exceptions of its own."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", where=path, expected="a .npy file") from error
    except MemoryError as error:
        raise InputError("says that it holds more than fits in memory", where=path, expected="a .npy file") from error
    except Exception as error:
        raise InputError(
            "is not an array of numbers", where=path, expected="a .npy file written by numpy.save"
        ) from error


def save_arrays(path: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Write one array to a .npy file, or several by name to a .npz file, whole or not at all."""
    buffer = io.BytesIO()
    if path.suffix == ".npz":
        np.savez(buffer, allow_pickle=False, **dict(arrays))
    elif len(arrays) == 1:
        np.save(buffer, next(iter(arrays.values())), allow_pickle=False)
    else:
        raise InputError(
            f"the model has {len(arrays)} outputs", where=path, expected="a .npz file", remedy="pass --output Y.npz"
        )
    write_atomically(path, buffer.getvalue())


def output_range(values: NDArray[np.floating[Any]]) -> float:
    """What differences between two runs of a network are a share of: the largest absolute value, at least
    `SMALLEST_RANGE`; 1 where all are zero."""
    largest = float(np.max(np.abs(values), initial=0.0))
    return max(largest, SMALLEST_RANGE) if largest else 1.0
