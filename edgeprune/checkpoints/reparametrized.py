"""Weights that a checkpoint holds as the parts they are computed from -> the weights that a plain network has.

    masks (torch.nn.utils.prune)    X = X_orig * X_mask
    weight norm                     X = g * v / |v|, the length taken over all axes that g has no size in
    spectral norm                   X = X_orig / (u . X_orig . v), X_orig as a matrix with its first (transposed
                                    convolution: second) axis as rows

The parts are named as hooks name them (X_g, X_v; X_orig, X_u, X_v) or as torch.nn.utils.parametrizations does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from edgeprune.errors import InputError

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class _Norm(NamedTuple):
    """A way to compute a weight from parts: how their names end, and, for parametrizations, what stands before."""

    what: str
    ends: tuple[str, ...]
    """The first one tells where a weight of this kind is."""
    apply: Callable[..., Tensor | None]


def _weight_normed(g: Tensor, v: Tensor) -> Tensor | None:
    if g.dim() == 0:
        return torch.mul(v, g / torch.linalg.vector_norm(v))
    if g.dim() != v.dim() or any(size not in (1, whole) for size, whole in zip(g.shape, v.shape, strict=True)):
        return None
    axes = [axis for axis, size in enumerate(g.shape) if size == 1]
    lengths = torch.linalg.vector_norm(v, dim=axes, keepdim=True)
    return torch.mul(v, g / lengths) if axes else None


def _spectral_normed(u: Tensor, weight: Tensor, v: Tensor) -> Tensor | None:
    sigmas = []
    for axis in (0, 1) if weight.dim() > 1 else ():
        matrix = weight.movedim(axis, 0).flatten(1)
        if matrix.shape == (u.numel(), v.numel()):
            sigmas.append(u.flatten() @ matrix @ v.flatten())
    # Where both axes have the same size, u and v belong to the one for which they are near the largest singular value.
    return weight / max(sigmas, key=lambda sigma: float(sigma.abs())) if sigmas else None


_NORMS = (
    _Norm("weight_norm", ("_g", "_v"), _weight_normed),
    _Norm("weight_norm", (".original0", ".original1"), _weight_normed),
    _Norm("spectral_norm", ("_u", "_orig", "_v"), _spectral_normed),
    _Norm("spectral_norm", (".0._u", ".original", ".0._v"), _spectral_normed),
)


def plain_weights(tensors: dict[str, Tensor], path: Path, notes: list[str]) -> dict[str, Tensor]:
    """The tensors with all parts put together; the same dict where there are none. Says in `notes` what was applied."""
    masked = _masks_applied(tensors, path, notes)
    for what in dict.fromkeys(norm.what for norm in _NORMS):
        before = len(masked)
        norms = [norm for norm in _NORMS if norm.what == what]
        count = 0
        for norm in norms:
            masked, applied = _applied(masked, norm)
            count += applied
        if len(masked) < before:
            notes.append(f"applied {what} to {count} weights")
    return masked


def _applied(tensors: dict[str, Tensor], norm: _Norm) -> tuple[dict[str, Tensor], int]:
    """Weights of one kind computed; what has such names by chance (shapes that do not go together) stays as it is."""
    first = norm.ends[0]
    made, parts = {}, set()
    for stem in (key.removesuffix(first) for key in tensors if key.endswith(first)):
        keys = [stem + end for end in norm.ends]
        name = stem.replace("parametrizations.", "") if first.startswith(".") else stem
        if any(key not in tensors for key in keys) or name in tensors:
            continue
        if first.startswith(".") and ".parametrizations." not in f".{stem}":
            continue
        if not all(_is_computable(tensors[key]) for key in keys):
            continue
        weight = norm.apply(*(tensors[key] for key in keys))
        if weight is not None:
            made[name] = weight
            parts.update(keys)
    return ({key: value for key, value in tensors.items() if key not in parts} | made if made else tensors), len(made)


def _is_computable(tensor: Tensor) -> bool:
    return tensor.dtype in _FLOATS and tensor.layout == torch.strided and not tensor.is_meta


def _masks_applied(tensors: dict[str, Tensor], path: Path, notes: list[str]) -> dict[str, Tensor]:
    """X_orig and X_mask, as torch.nn.utils.prune saves them -> X, their product."""
    masked = [key.removesuffix("_mask") for key in tensors if key.endswith("_mask")]
    masked = [name for name in masked if f"{name}_orig" in tensors]
    if not masked:
        return tensors
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
    zeros = sum(int((tensors[f"{name}_mask"] == 0).sum()) for name in masked)
    notes.append(f"applied {len(masked)} pruning masks ({zeros} weights are zero)")
    return result
