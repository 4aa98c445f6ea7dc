"""Loading by a network's own rules: hooks and methods that take the names of earlier versions of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgeprune.checkpoints.state import unwrapped_name


def loaded_by_hooks(model: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Whether model.load_state_dict, which asks the model's own hooks, finds a place for every tensor of both.

    BatchNorm's num_batches_tracked may be missing. Where the answer is no, the model is unchanged.
    """
    own = model.state_dict()
    before = {key: value.clone() for key, value in own.items()}
    names = {unwrapped_name(key): key for key in own}
    try:
        result = model.load_state_dict(OrderedDict((names.get(k, k), v) for k, v in tensors.items()), strict=False)
        missing = [key for key in result.missing_keys if not key.endswith("num_batches_tracked")]
        loaded = not missing and not result.unexpected_keys
    except Exception:  # shapes that differ, and whatever a hook raises for names that it does not know
        loaded = False
    if not loaded:
        with torch.no_grad():
            for key, value in before.items():
                own[key].copy_(value)
    return loaded
