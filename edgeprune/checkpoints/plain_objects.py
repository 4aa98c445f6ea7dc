"""What a checkpoint may hold beside tensors, and what it is read as.

torch's safe unpickler looks each name in a file up in a table and calls what it finds there. It is given stand-ins of
ours under the names below: the class or function of that name is never imported, called or changed, so that nothing
in its constructor, its `__setstate__` or its `__reduce__` can run. What is needed (arrays, numbers, mappings) is kept
as plain data; of the rest it is enough that it is there.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_NUMBERS_AND_TEXT = re.compile(r"(?:[biufc]\d{1,2}|[SU]\d{1,6})")
"""The type codes whose values are bytes and nothing else: no pointers (O), records (V) or dates with units (M, m)."""


class Unread:
    """An object that is known to be plain data and that nothing asks for: what it holds is dropped."""

    def __new__(cls, *contents: object) -> Unread:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


class _Table:
    """A kind of dict: becomes an OrderedDict, which the unpickler fills."""

    def __new__(cls, *contents: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


class _Listing:
    """A kind of list: becomes a list, which the unpickler fills."""

    def __new__(cls, *contents: object) -> list[Any]:  # type: ignore[misc]
        return list(contents[0]) if contents and isinstance(contents[0], (list, tuple)) else []


class _ValueType:
    """numpy.dtype, as far as it means numbers or text."""

    def __init__(self, code: object = "", *options: object) -> None:
        self.code = code if isinstance(code, str) and _NUMBERS_AND_TEXT.fullmatch(code) else ""
        self.order = "="

    def __setstate__(self, state: object) -> None:
        """(version, byte order, ...): the rest describes records and pointers, which are not read."""
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">"):
            self.order = str(state[1])

    def read(self, content: object, count: int) -> NDArray[Any] | None:
        """`count` values out of the bytes, in this machine's byte order; None where they are no numbers or text."""
        if not self.code:
            return None
        raw = content.encode("latin1") if isinstance(content, str) else content
        dtype = np.dtype(self.order + self.code)
        if not isinstance(raw, bytes) or len(raw) != count * dtype.itemsize:
            raise ValueError("an array's bytes and its shape do not agree")
        return np.frombuffer(raw, dtype).astype(dtype.newbyteorder("="))


class Array:
    """numpy.ndarray: its values where they are numbers or text, else nothing."""

    def __init__(self, *contents: object) -> None:
        self.values: NDArray[Any] | None = None

    def __setstate__(self, state: object) -> None:
        """(version, shape, dtype, whether in Fortran order, bytes); objects come as a list and are not read."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("an array's state is not of five parts")
        _, shape, value_type, is_fortran, content = state
        if not isinstance(shape, tuple) or any(type(size) is not int or size < 0 for size in shape):
            raise ValueError("an array's shape is no list of sizes")
        if isinstance(value_type, _ValueType):
            flat = value_type.read(content, math.prod(shape))
            self.values = None if flat is None else flat.reshape(shape, order="F" if is_fortran else "C")

    def tensor(self) -> Tensor | None:
        """The same values as a tensor; None where they are no numbers."""
        if self.values is None or self.values.dtype.kind not in "biufc":
            return None
        try:
            return torch.from_numpy(np.ascontiguousarray(self.values).reshape(self.values.shape))
        except TypeError:  # a width that torch does not have, such as float128
            return None


def _new_array(*contents: object) -> Array:
    return Array()


def _filled_array(content: object = b"", value_type: object = None, shape: object = (), order: object = "C") -> Array:
    """How an array is written since pickle protocol 5."""
    array = Array()
    array.__setstate__((1, shape, value_type, order == "F", content))
    return array


def _number(value_type: object = None, content: object = b"") -> object:
    """numpy's scalar as a Python number or text."""
    values = value_type.read(content, 1) if isinstance(value_type, _ValueType) else None
    return Unread() if values is None else values[0].item()


def _sequence(*contents: object) -> tuple[Any, ...]:
    return tuple(contents[0]) if contents and isinstance(contents[0], (list, tuple)) else ()


def _no_bytes(*contents: object) -> bytes:
    return b""


def _untagged(value: object = None, *type_name: object) -> object:
    return value


class _Allowed(NamedTuple):
    names: str
    """In the file, a blank between them."""
    stand_in: Any
    """What is called in their place."""
    why: str
    """What such an object is, and so why it is data."""


_NUMPY_CORES = ("numpy.core", "numpy._core")
_PATHS = ("Path", "PurePath", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
_NUMBER_TYPES = (
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "bool", "bool_", "str_", "complex64", "complex128",
)  # fmt: skip
_OPTIMIZERS = (
    "sgd.SGD", "adam.Adam", "adamw.AdamW", "rmsprop.RMSprop", "adagrad.Adagrad", "nadam.NAdam", "radam.RAdam",
)  # fmt: skip
_LOSSES = (
    "CrossEntropyLoss", "NLLLoss", "BCELoss", "BCEWithLogitsLoss", "MSELoss", "L1Loss", "SmoothL1Loss", "KLDivLoss",
)  # fmt: skip
_CONTENT = (
    *(_Allowed(f"{core}.multiarray._reconstruct", _new_array, "makes an empty array") for core in _NUMPY_CORES),
    *(_Allowed(f"{core}.numeric._frombuffer", _filled_array, "bytes with a shape") for core in _NUMPY_CORES),
    *(_Allowed(f"{core}.multiarray.scalar", _number, "one number out of its bytes") for core in _NUMPY_CORES),
    _Allowed(
        "numpy.ndarray numpy.memmap numpy.matrix numpy.matrixlib.defmatrix.matrix",
        Array, "bytes with a shape",
    ),
    _Allowed("numpy.dtype", _ValueType, "a type's code; codes of pointers and records are not read"),
    _Allowed("collections.defaultdict builtins.dict", _Table, "a dict; what makes its defaults is dropped"),
    _Allowed(
        "easydict.EasyDict addict.addict.Dict yacs.config.CfgNode fvcore.common.config.CfgNode "
        "mmcv.utils.config.ConfigDict mmengine.config.config.ConfigDict "
        "pytorch_lightning.utilities.parsing.AttributeDict "
        "lightning_fabric.utilities.data.AttributeDict lightning.fabric.utilities.data.AttributeDict",
        _Table, "a dict of settings, read as a dict",
    ),
    _Allowed("collections.deque builtins.list", _Listing, "a list"),
    _Allowed("builtins.bytes", _no_bytes, "empty bytes; others are written otherwise"),
    _Allowed("builtins.frozenset builtins.tuple", _sequence, "its members, as a tuple"),
    _Allowed(
        "torch.jit._pickle.build_intlist torch.jit._pickle.build_doublelist torch.jit._pickle.build_boollist "
        "torch.jit._pickle.build_tensorlist",
        _Listing, "a TorchScript program's list",
    ),
    _Allowed("torch.jit._pickle.restore_type_tag", _untagged, "a TorchScript program's list or dict, with its type"),
)  # fmt: skip
_BESIDE = (
    _Allowed("argparse.Namespace types.SimpleNamespace", Unread, "a command line's arguments"),
    _Allowed(
        " ".join(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),
        Unread, "a path's parts; no file is touched",
    ),
    _Allowed(
        "datetime.datetime datetime.date datetime.time datetime.timedelta datetime.timezone",
        Unread, "a point in time",
    ),
    _Allowed("decimal.Decimal fractions.Fraction uuid.UUID ipaddress.IPv4Address", Unread, "a number in other clothes"),
    _Allowed("builtins.range builtins.slice", Unread, "bounds"),
    _Allowed("builtins.Ellipsis builtins.NotImplemented", Unread, "a constant"),
    _Allowed("builtins.type builtins.object", Unread, "None's type: type() itself is not called"),
    _Allowed(
        "builtins.int builtins.float builtins.bool builtins.str typing.Any",
        Unread, "a type by its name, such as a defaultdict's",
    ),
    _Allowed("re._compile time.struct_time", Unread, "a pattern, a time"),
    _Allowed("array.array array._array_reconstructor", Unread, "numbers"),
    _Allowed(" ".join(f"torch.optim.{name}" for name in _OPTIMIZERS), Unread, "an optimizer's numbers"),
    _Allowed(" ".join(f"torch.nn.modules.loss.{name}" for name in _LOSSES), Unread, "a loss's settings"),
    _Allowed("torch.amp.grad_scaler.GradScaler torch.cuda.amp.grad_scaler.GradScaler", Unread, "a scale"),
    _Allowed("collections.UserDict collections.ChainMap", Unread, "dicts in a wrapper"),
    _Allowed("torch.torch_version.TorchVersion torch.version.TorchVersion", Unread, "torch's version, a text"),
    _Allowed("torch.channels_last torch.contiguous_format torch.preserve_format", Unread, "a memory format's name"),
    _Allowed(" ".join(f"numpy.{name}" for name in _NUMBER_TYPES), Unread, "a number's type by its name"),
    _Allowed(
        "numpy.random._pickle.__randomstate_ctor numpy.random._pickle.__generator_ctor "
        "numpy.random._pickle.__bit_generator_ctor numpy.random._mt19937.MT19937 numpy.random._pcg64.PCG64 "
        "numpy.random.bit_generator.__pyx_unpickle_SeedSequence numpy.random.bit_generator.SeedSequence",
        Unread, "a random generator's state",
    ),
    _Allowed("numpy.ma.core._mareconstruct numpy.ma.MaskedArray numpy.ma.core.MaskedArray", Unread, "array with holes"),
    _Allowed(
        "torchvision.transforms.functional.InterpolationMode torchvision.transforms.InterpolationMode",
        Unread, "the name of a way to resize",
    ),
    _Allowed(
        "omegaconf.dictconfig.DictConfig omegaconf.listconfig.ListConfig omegaconf.base.ContainerMetadata "
        "omegaconf.base.Metadata omegaconf.base.SCMode omegaconf.nodes.AnyNode omegaconf.nodes.StringNode "
        "omegaconf.nodes.IntegerNode omegaconf.nodes.FloatNode omegaconf.nodes.BooleanNode omegaconf.nodes.PathNode",
        Unread, "settings of a run",
    ),
    _Allowed(
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint "
        "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
        Unread, "the type by whose name older Lightning files a callback's numbers",
    ),
)  # fmt: skip

STAND_INS: list[Any] = [(entry.stand_in, name) for entry in (*_CONTENT, *_BESIDE) for name in entry.names.split()]
"""(stand-in, name in the file), as torch.serialization.safe_globals takes them."""
