"""torchvision's detectors: which they are, and why they are not taken as they are. Importing this needs no torch."""

from __future__ import annotations

from edgeprune.errors import InputError

REASON = "takes a list of images, resizes them and filters its boxes: its forward depends on the values of tensors"
EXPECTED = "a network from images (N, C, H, W) to tensors"
REMEDY = "wrap its backbone and head in a module of your own, as examples/detector.py does"


def check_no_detector(model: object, where: str) -> None:
    """InputError for one of torchvision's detectors, whoever built it."""
    kinds = [kind for kind in type(model).__mro__ if kind.__module__.startswith("torchvision.models.detection")]
    if kinds and hasattr(model, "transform"):
        raise InputError(f"torchvision's {kinds[0].__name__} {REASON}", where=where, expected=EXPECTED, remedy=REMEDY)
