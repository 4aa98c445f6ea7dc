"""Where in a checkpoint the weights lie."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from edgeprune.checkpoints.plain_objects import Array

AVERAGED = (
    "state_dict_ema", "model_ema", "ema_state_dict", "model_state_dict_ema", "params_ema", "ema_model", "ema", "g_ema",
    "generator_ema", "netG_ema", "averaged_model", "swa_model", "swa_state_dict", "teacher",
)  # fmt: skip
"""Weights averaged over the training run: they are what such a run is evaluated with, so they go first."""
PLAIN = (
    "state_dict", "model_state_dict", "model_state", "model_weights", "model", "net_state_dict", "net_state", "net",
    "network_state_dict", "network", "params", "parameters", "weights", "state", "module", "generator_state_dict",
    "generator", "netG", "params_g", "backbone", "encoder", "encoder_q", "student", "online_model",
)  # fmt: skip
"""Weights as they are, in the order in which they are taken."""
NESTS = AVERAGED + PLAIN

_NO_WEIGHTS = re.compile(r"optim|sched|scaler|rng|random|callback|loops|^amp$|grad", re.IGNORECASE)
"""Keys of what training needs beside the weights."""
_DEEPEST, _MOST_MAPPINGS = 5, 10_000


class Nest(NamedTuple):
    """A mapping in a checkpoint that holds tensors."""

    keys: tuple[str, ...]
    content: Mapping[Any, Any]

    @property
    def key(self) -> str:
        """The keys that lead to it, such as "model.state_dict"."""
        return ".".join(self.keys)


def nests_in(content: Any) -> list[Nest]:
    """All of them, what is taken for the weights first: under known keys, else at the top, else under other keys."""
    nests = list(_walk(content))
    arrays = [nest for nest in nests if any(_tensor(value, 1) is not None for value in nest.content.values())]
    return sorted(arrays or nests[:1], key=_rank)


def tensors_of(nest: Nest) -> dict[str, Tensor]:
    """The nest's tensors by name, NumPy's arrays as tensors; of a nest in nests is taken what lies directly in it."""
    found = {str(key): _tensor(value) for key, value in nest.content.items()}
    return {key: value for key, value in found.items() if value is not None}


def _tensor(value: object, dims: int = 0) -> Tensor | None:
    tensor = value.tensor() if isinstance(value, Array) else value
    return tensor if isinstance(tensor, Tensor) and tensor.dim() >= dims else None


def _walk(content: Any) -> Iterator[Nest]:
    """Each mapping with tensors in it once, breadth first."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    seen: set[int] = set()
    while waiting and len(seen) < _MOST_MAPPINGS:
        keys, value = waiting.pop(0)
        if id(value) in seen or len(keys) > _DEEPEST:
            continue
        seen.add(id(value))
        if isinstance(value, (list, tuple)):
            value = {str(index): item for index, item in enumerate(value[:8]) if isinstance(item, Mapping)}
        if not isinstance(value, Mapping):
            continue
        if any(_tensor(item) is not None for item in value.values()):
            yield Nest(keys, value)
        waiting += [
            ((*keys, key), item)
            for key, item in value.items()
            if isinstance(key, str) and isinstance(item, (Mapping, list, tuple)) and not _NO_WEIGHTS.search(key)
        ]


def _rank(nest: Nest) -> tuple[int, ...]:
    """Sorts nests: those of the table in its order, the deeper one first; then the top; then other keys, the one with
    the most numbers first."""
    ranks = [NESTS.index(key) if key in NESTS else len(NESTS) + 1 for key in nest.keys]
    if len(NESTS) + 1 not in ranks:
        return (*ranks, len(NESTS))
    return (len(NESTS) + 1, -sum(tensor.numel() for tensor in tensors_of(nest).values()))
