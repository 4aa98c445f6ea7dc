"""Checkpoints as people have them -> named tensors; and these into a model, or the reason why they do not fit.

Where in the file the weights lie is found by the table in nests.py; the wrappers' name parts such as `module` are
taken out; masks and norms are applied (reparametrized.py); a trainer's prefix goes once the network is known
(key_layout.py).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgeprune.checkpoints.arch_fit import fitting_arch
from edgeprune.checkpoints.checkpoint_file import read_object
from edgeprune.checkpoints.key_layout import fitted
from edgeprune.checkpoints.load_hooks import loaded_by_hooks
from edgeprune.checkpoints.nests import NESTS, Nest, nests_in, tensors_of
from edgeprune.checkpoints.reparametrized import plain_weights
from edgeprune.checkpoints.state import LoadedState, of_this_version, unwrapped, unwrapped_name
from edgeprune.errors import InputError
from edgeprune.zoo import AUXILIARY_KEYS

_COUNTERS = ("total_ops", "total_params")
"""Buffers that MAC counters leave in a model."""


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
    nests = nests_in(content)
    if not nests:
        raise _without_tensors(content, path)
    epoch = _epoch_in(content)
    state, *before = _readings(nests[0], path, epoch)
    for key, value in state.tensors.items():
        check_tensor(key, value, path)
    others = list(before)
    for nest in nests[1:]:
        try:
            others += _readings(nest, path, epoch)
        except InputError:  # it is not what was asked for
            continue
    if len(nests) > 1:
        others.append(_joined([state, *others], epoch))
    return LoadedState(state.tensors, state.key_used, state.renamed, epoch, others=tuple(others))


def _joined(states: Iterable[LoadedState], epoch: int | None) -> LoadedState:
    """For a network that was saved in parts, each under the name that it has in the network."""
    parts = {state.key_used: state for state in reversed(list(states)) if state.key_used}
    tensors = {f"{key}.{name}": value for key, state in parts.items() for name, value in state.tensors.items()}
    return LoadedState(tensors, " and ".join(sorted(parts)), (), epoch, is_joined=True)


def _readings(nest: Nest, path: Path, epoch: int | None) -> list[LoadedState]:
    """A nest's weights as a plain network has them, and, where that is another matter, as they lie in the file."""
    tensors = tensors_of(nest)
    notes: list[str] = []
    if len(tensors) < len(nest.content):
        notes.append(f"left out {len(nest.content) - len(tensors)} entries that are no tensors")
    tensors = _without_counters(tensors, notes)
    tensors = unwrapped(tensors, notes)
    applied: list[str] = []
    plain = of_this_version(plain_weights(tensors, path, applied), applied)
    state = LoadedState(plain, nest.key, (*notes, *applied), epoch)
    return [state] if plain is tensors else [state, LoadedState(tensors, nest.key, tuple(notes), epoch)]


def _without_tensors(content: Any, path: Path) -> InputError:
    if not isinstance(content, Mapping):
        kind = type(content).__name__.removeprefix("Unread") or "plain object"
        return InputError(f"holds a {kind}, not weights by name", where=path, expected="a state dict")
    listed = ", ".join(repr(key) for key in list(content)[:6]) or "nothing"
    return InputError(
        f"holds no tensors (top level: {listed})",
        where=path,
        expected=f"a state dict, bare or under one of {len(NESTS)} known keys such as state_dict, model and params",
    )


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


def check_tensor(key: str, value: Tensor, path: object) -> None:
    """Raise InputError unless a tensor is there, dense and finite."""
    if value.is_meta:
        raise InputError(
            f"{key} has a shape and no values (device 'meta')",
            where=path,
            expected="weights",
            remedy="save the network after its weights were loaded",
        )
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
    shapes = {key: tuple(value.shape) for key, value in own.items()}
    named = fitted(state, shapes, where=where)
    if named is not state:
        for key, value in named.tensors.items():
            check_tensor(key, value, where)
    misfit = _compared(model, own, named)
    if misfit.misshapen or not misfit.common or (not allow_partial and (misfit.missing or misfit.unexpected)):
        for reading in (named, *state.others):
            if loaded_by_hooks(model, reading.tensors):
                note = "loaded by the network's own rules for the names of its earlier versions"
                return LoadReport(len(reading.tensors), notes=(note,))
        raise _misfit(shapes, named, misfit, where, allow_partial)
    for key in misfit.common:
        _check_kind(key, own[key], named.tensors[key], where)
    with torch.no_grad():
        for key in misfit.common:
            own[key].copy_(named.tensors[key])
    notes = [line for line in named.renamed if line not in state.renamed]
    missing, unexpected = misfit.missing, misfit.unexpected
    if missing:
        notes.append(f"{len(missing)} tensors are not in the checkpoint and keep their initial values{few(missing)}")
    if unexpected:
        notes.append(f"{len(unexpected)} tensors of the checkpoint are not used{few(unexpected)}")
    return LoadReport(len(misfit.common), tuple(missing), tuple(unexpected), tuple(notes))


def _check_kind(key: str, own: Tensor, given: Tensor, where: object) -> None:
    """InputError for integers or complex numbers in the place of weights, which a copy would round without a word."""
    if own.is_floating_point() and not given.is_floating_point():
        raise InputError(
            f"{key} is {given.dtype}", where=where, expected="floating-point weights",
            remedy="give the checkpoint from before they were quantised, if that is what happened to them",
        )  # fmt: skip


class _Comparison(NamedTuple):
    """Names of a network's tensors and of a checkpoint's, sorted by where they are."""

    common: list[str]
    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]


def _compared(model: nn.Module, own: Mapping[str, Tensor], state: LoadedState) -> _Comparison:
    """A tensor that shares its memory with one that is there is not missing (safetensors writes it once), and a buffer
    that the network has but does not save is not unknown to it."""
    common = [key for key in state.tensors if key in own]
    counters = [key for key in common if key.endswith("num_batches_tracked")]
    common = [key for key in common if key not in counters or own[key].shape == state.tensors[key].shape]
    there = {(own[key].data_ptr(), own[key].shape) for key in common if own[key].numel()}
    missing = [
        key
        for key, value in own.items()
        if key not in state.tensors
        and not key.endswith("num_batches_tracked")
        and (value.data_ptr(), value.shape) not in there
    ]
    unsaved = {unwrapped_name(key) for key, _ in model.named_buffers()}
    unexpected = [
        key
        for key in state.tensors
        if key not in own
        and key not in unsaved
        and not key.endswith("num_batches_tracked")
        and not key.startswith(AUXILIARY_KEYS)
    ]
    return _Comparison(
        common, missing, unexpected, [key for key in common if own[key].shape != state.tensors[key].shape]
    )


def _misfit(
    own: Mapping[str, tuple[int, ...]],
    state: LoadedState,
    comparison: _Comparison,
    where: object,
    allow_partial: bool,
) -> InputError:
    _, missing, unexpected, misshapen = comparison
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
    if any("parametrizations." in key or key.endswith("_orig") for key in unexpected):
        remedy += "; or bake its parametrizations in before saving: torch.nn.utils.parametrize.remove_parametrizations"
    if not arch and not misshapen and not allow_partial and len(missing) < len(own) / 2:
        remedy += ", or accept what is there with --allow-partial"
    return InputError(f"does not fit the network: {', '.join(what)}", where=where, remedy=remedy)


def few(keys: Iterable[str]) -> str:
    listed = list(keys)
    return f" ({', '.join(listed[:2])}{', ...' if len(listed) > 2 else ''})"
