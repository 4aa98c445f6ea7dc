"""How important each kernel is to GConv: the sum over its weights of their size, or of what they do to the loss."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Importance = Literal["l2", "l1", "taylor"]


def kernel_importance(
    kind: Importance, weight: NDArray[np.floating[Any]], gradient: NDArray[np.floating[Any]] | None = None
) -> NDArray[np.float64]:
    """(C_out, C_in) from a weight (C_out, C_in, *k): the kernels' L2 norm (6), L1 norm, or sum of |gradient * weight|.

    The gradient of the loss, of the weight's shape, is needed for taylor alone: |g w| is to first order what the loss
    changes by when that weight goes.
    """
    flat = weight.astype(np.float64).reshape(*weight.shape[:2], -1)
    if kind == "l2":
        return np.asarray(np.sqrt((flat**2).sum(axis=2)))
    if kind == "l1":
        return np.asarray(np.abs(flat).sum(axis=2))
    if gradient is None:
        raise ValueError("taylor importance needs gradients")
    return np.asarray(np.abs(flat * gradient.astype(np.float64).reshape(flat.shape)).sum(axis=2))
