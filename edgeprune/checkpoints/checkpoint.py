"""Checkpoints as people have them -> named tensors; and these into a model, or the reason why they do not fit.

Weights are looked for under `state_dict_ema`, `model_ema`, `state_dict`, `model_state_dict`, `model` and `net`, else at
the top; the wrappers' name parts `module` and `_orig_mod` are taken out; the masks of torch.nn.utils.prune are applied.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.checkpoints.arch_fit import fitting_arch
from edgeprune.checkpoints.checkpoint_file import read_object
from edgeprune.errors import InputError
from edgeprune.zoo import AUXILIARY_KEYS

_NESTS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net")
_WRAPPERS = frozenset({"module", "_orig_mod"})
"""Added by DataParallel and torch.compile around a model or a part of it."""
_COUNTERS = ("total_ops", "total_params")
"""Buffers that MAC counters leave in a model."""


@dataclass(frozen=True)
class LoadedState:
    """The weights of a checkpoint, by name."""

    tensors: dict[str, Tensor]
    key_used: str
    """Where in the file the weights lay, such as "state_dict"; empty for a bare state dict."""
    renamed: tuple[str, ...] = ()
    """What was changed on the way, as notes for the user."""
    epoch: int | None = None
    """The epoch that the file says it was saved after."""


@dataclass(frozen=True)
class LoadReport:
    """What was loaded into a model."""

    loaded: int
    missing: tuple[str, ...] = ()
    """Tensors of the model that the checkpoint lacks; the model keeps its own."""
    unexpected: tuple[str, ...] = ()
    """Tensors of the checkpoint that the model has no place for."""
    notes: tuple[str, ...] = field(default=())


def read_state_dict(path: Path) -> LoadedState:
    """Read the weights of a checkpoint, all finite; InputError if the file is none, or holds no sound weights."""
    content = read_object(path)
    weights, key_used = _weights_in(content, path)
    notes: list[str] = []
    tensors = {str(key): value for key, value in weights.items() if isinstance(value, Tensor)}
    if len(tensors) < len(weights):
        notes.append(f"left out {len(weights) - len(tensors)} entries that are no tensors")
    tensors = _without_counters(tensors, notes)
    tensors = _unwrapped(tensors, notes)
    tensors = _masks_applied(tensors, path, notes)
    for key, value in tensors.items():
        _check_tensor(key, value, path)
    return LoadedState(tensors, key_used, tuple(notes), _epoch_in(content))


def _weights_in(content: Any, path: Path) -> tuple[Mapping[Any, Any], str]:
    """The innermost mapping that holds tensors under the known keys, and the keys that lead to it."""
    keys: list[str] = []
    while isinstance(content, Mapping):
        nest = next((key for key in _NESTS if isinstance(content.get(key), Mapping) and content[key]), None)
        if nest is None:
            break
        keys.append(nest)
        content = content[nest]
    if not isinstance(content, Mapping):
        raise InputError(f"holds a {type(content).__name__}, not weights by name", where=path, expected="a state dict")
    if not any(isinstance(value, Tensor) for value in content.values()):
        listed = ", ".join(repr(key) for key in list(content)[:6]) or "nothing"
        raise InputError(
            f"holds no tensors (top level: {listed})",
            where=path,
            expected=f"a state dict, bare or under {', '.join(_NESTS)}",
        )
    return content, ".".join(keys)


def _epoch_in(content: Any) -> int | None:
    value = content.get("epoch") if isinstance(content, Mapping) else None
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value else None


def _without_counters(tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    kept = {k: v for k, v in tensors.items() if k != "n_averaged" and k.rpartition(".")[2] not in _COUNTERS}
    if len(kept) < len(tensors):
        notes.append(f"left out {len(tensors) - len(kept)} counters")
    return kept


def unwrapped_name(key: str) -> str:
    """A tensor's or layer's name without the parts that DataParallel and torch.compile add."""
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def _unwrapped(tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """All keys without wrappers; unchanged where two keys would become one."""
    renamed = {unwrapped_name(key): value for key, value in tensors.items()}
    if len(renamed) < len(tensors):
        return tensors
    for wrapper in sorted(_WRAPPERS):
        count = sum(wrapper in key.split(".") for key in tensors)
        if count:
            notes.append(f"stripped '{wrapper}.' from {count} of {len(tensors)} keys")
    return renamed


def _masks_applied(tensors: dict[str, Tensor], path: Path, notes: list[str]) -> dict[str, Tensor]:
    """X_orig and X_mask, as torch.nn.utils.prune saves them -> X, their product."""
    masked = [key.removesuffix("_mask") for key in tensors if key.endswith("_mask")]
    masked = [name for name in masked if f"{name}_orig" in tensors]
    result = {k: v for k, v in tensors.items() if k.removesuffix("_orig").removesuffix("_mask") not in masked}
    for name in masked:
        weight, mask = tensors[f"{name}_orig"], tensors[f"{name}_mask"]
        if weight.shape != mask.shape:
            raise InputError(
                f"{name}_mask has shape {tuple(mask.shape)}",
                where=path,
                expected=f"{tuple(weight.shape)}, as {name}_orig",
            )
        result[name] = weight * mask.to(weight.dtype)
    if masked:
        zeros = sum(int((tensors[f"{name}_mask"] == 0).sum()) for name in masked)
        notes.append(f"applied {len(masked)} pruning masks ({zeros} weights are zero)")
    return result


def _check_tensor(key: str, value: Tensor, path: Path) -> None:
    if value.is_quantized or value.layout != torch.strided:
        kind = "quantised" if value.is_quantized else "sparse"
        raise InputError(f"{key} is {kind}", where=path, expected="dense floating-point weights")
    if value.is_floating_point():
        bad = value.numel() - int(value.isfinite().sum())
        if bad:
            raise InputError(
                f"{key} holds {bad} NaN or infinite values of {value.numel()}",
                where=path,
                expected="finite weights",
                remedy="take an earlier checkpoint: this training run had diverged",
            )


def load_into(model: nn.Module, state: LoadedState, *, where: object, allow_partial: bool = False) -> LoadReport:
    """Copy a checkpoint's weights into `model`, in place; every tensor of both must find its place.

    BatchNorm's num_batches_tracked may be missing. With `allow_partial`, other tensors may be missing from, or too many
    in, the checkpoint, as long as some fit; shapes must agree all the same. Raises InputError that says what does not
    fit, and which architecture would; the model is unchanged then.
    """
    own = {unwrapped_name(key): value for key, value in model.state_dict().items()}
    missing = [key for key in own if key not in state.tensors and not key.endswith("num_batches_tracked")]
    unexpected = [
        key
        for key in state.tensors
        if key not in own and not key.endswith("num_batches_tracked") and not key.startswith(AUXILIARY_KEYS)
    ]
    misshapen = [key for key, value in state.tensors.items() if key in own and own[key].shape != value.shape]
    common = [key for key in state.tensors if key in own]
    if misshapen or not common or (not allow_partial and (missing or unexpected)):
        shapes = {key: tuple(value.shape) for key, value in own.items()}
        raise _misfit(shapes, state, missing, unexpected, misshapen, where, allow_partial)
    with torch.no_grad():
        for key in common:
            own[key].copy_(state.tensors[key])
    notes = (
        [f"{len(missing)} tensors are not in the checkpoint and keep their initial values{few(missing)}"]
        if missing
        else []
    )
    notes += [f"{len(unexpected)} tensors of the checkpoint are not used{few(unexpected)}"] if unexpected else []
    return LoadReport(len(common), tuple(missing), tuple(unexpected), tuple(notes))


def _misfit(
    own: Mapping[str, tuple[int, ...]],
    state: LoadedState,
    missing: list[str],
    unexpected: list[str],
    misshapen: list[str],
    where: object,
    allow_partial: bool,
) -> InputError:
    what = []
    if misshapen:
        key = misshapen[0]
        got = tuple(state.tensors[key].shape)
        more = f" (and {len(misshapen) - 1} more)" if len(misshapen) > 1 else ""
        what.append(f"{key} has shape {got}, the network's {own[key]}{more}")
    if missing:
        near = difflib.get_close_matches(missing[0], unexpected, n=1, cutoff=0.5)
        hint = f", nearest in the checkpoint {near[0]}" if near else ""
        what.append(f"{len(missing)} of the network's {len(own)} tensors are missing{few(missing)}{hint}")
    if unexpected:
        what.append(
            f"{len(unexpected)} of its {len(state.tensors)} tensors are unknown to the network{few(unexpected)}"
        )
    arch = fitting_arch({key: tuple(value.shape) for key, value in state.tensors.items()})
    remedy = (
        f"it fits {arch}: use --arch {arch}" if arch else "check --arch, the number of classes and of input channels"
    )
    if not arch and not misshapen and not allow_partial and len(missing) < len(own) / 2:
        remedy += ", or accept what is there with --allow-partial"
    return InputError(f"does not fit the network: {', '.join(what)}", where=where, remedy=remedy)


def few(keys: Iterable[str]) -> str:
    listed = list(keys)
    return f" ({', '.join(listed[:2])}{', ...' if len(listed) > 2 else ''})"
