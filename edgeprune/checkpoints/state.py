"""The weights of a checkpoint by name, as they are handed on."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from torch import Tensor

_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Added by DataParallel, torch.compile, FSDP and activation checkpointing around a model or a part of it."""
_OLD_NAMES = (
    (re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)"), r"\1\2", "torchvision's older DenseNets"),
)
"""Names of published checkpoints that their own library renames when it downloads them: pattern, new name, whose."""


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
    is_joined: bool = False
    """Whether these are several parts of the file, each under its key: {"encoder": ..., "decoder": ...}."""
    others: tuple[LoadedState, ...] = field(default=(), repr=False, compare=False)
    """What else in the file could be meant, in the order in which it is tried: the same weights before masks and norms
    were applied, and the weights that lie elsewhere in the file. Their values were not looked at yet."""


def unwrapped_name(key: str) -> str:
    """A tensor's or layer's name without the parts that wrappers such as DataParallel add."""
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def unwrapped(tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """All keys without wrappers; unchanged where two keys would become one."""
    renamed = {unwrapped_name(key): value for key, value in tensors.items()}
    if len(renamed) < len(tensors):
        return tensors
    for wrapper in sorted(_WRAPPERS):
        count = sum(wrapper in key.split(".") for key in tensors)
        if count:
            notes.append(f"stripped '{wrapper}.' from {count} of {len(tensors)} keys")
    return renamed


def of_this_version(tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """Old names as their library has them today; the same dict where there are none."""
    for pattern, replacement, whose in _OLD_NAMES:
        renamed = {pattern.sub(replacement, key): value for key, value in tensors.items()}
        if renamed.keys() != tensors.keys() and len(renamed) == len(tensors):
            notes.append(f"renamed the keys of {whose}")
            tensors = renamed
    return tensors
