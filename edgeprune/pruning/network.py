"""A network ready to be pruned: an architecture with the weights of a checkpoint, and its example input."""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeprune.bundles.bundle import Bundle, open_bundle
from edgeprune.bundles.names import DENSE_WEIGHTS, PLAN, SOURCE_MODEL
from edgeprune.checkpoints.arch_fit import shapes_of
from edgeprune.checkpoints.checkpoint import load_into, read_state_dict
from edgeprune.checkpoints.key_layout import fitted
from edgeprune.checkpoints.state import LoadedState
from edgeprune.checkpoints.tickets import read_tickets
from edgeprune.errors import InputError
from edgeprune.io import progress
from edgeprune.io.user_code import is_file_spec
from edgeprune.methods.base import Ticket
from edgeprune.modules.baked import baked
from edgeprune.modules.filters import FILTER_LAYERS, filters_of
from edgeprune.onnx_files.model import save_onnx
from edgeprune.onnx_import.importer import Imported, import_onnx
from edgeprune.pruning.options import NetworkSource
from edgeprune.zoo import build


@dataclass(frozen=True)
class Network:
    """A network in eval mode with its weights."""

    arch: str
    model: nn.Module
    input_shape: tuple[int, int, int]
    """(channels, height, width) of one sample."""
    asked_classes: int | None = None
    """That it was built for; None: as many as the architecture has by itself."""
    onnx: Imported | None = None
    """The ONNX file that it was imported from, if it was."""

    def example_input(self, batch: int = 2) -> Tensor:
        """Standard normal values of shape (batch, channels, height, width), always the same."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, *self.input_shape, generator=generator)

    @cached_property
    def num_classes(self) -> int:
        """Classes that it was built for; else the size of its output (N, classes). 0 where it has another output, as
        detectors and segmenters do, whose last layer says nothing of classes."""
        if self.asked_classes is not None:
            return self.asked_classes
        with torch.no_grad():
            try:
                output = self.model(self.example_input(1))
            except Exception:  # whatever it is, tracing will raise it again, and say so
                return 0
        return output.shape[1] if isinstance(output, Tensor) and output.ndim == 2 else 0

    @property
    def public_arch(self) -> str:
        """The architecture's name without the local path of a user's own file."""
        return public_arch(self.arch)


def public_arch(arch: str) -> str:
    """An architecture's name without the local path of a user's own file."""
    if not is_file_spec(arch):
        return arch
    file, _, factory = arch.rpartition(":")
    return f"{Path(file).name}:{factory}"


def load_network(source: NetworkSource) -> Network:
    """Build the architecture and load the checkpoint into it, saying which key was used and what was renamed.

    Raises InputError if the source is incomplete, or the checkpoint does not fit.
    """
    source.check()
    if source.is_onnx and source.checkpoint is not None:
        return _from_onnx(source.checkpoint, source.input_size)
    if source.checkpoint is not None and source.checkpoint.is_dir():
        bundle = open_bundle(source.checkpoint)
        source = _in_bundle(source, bundle)
        if (network := network_in(bundle)) is not None:
            load_into(network.model, read_state_dict(bundle.path(DENSE_WEIGHTS)), where=bundle.folder)
            return network
    state = None if source.checkpoint is None else read_state_dict(source.checkpoint)
    network = _built(source, source.num_classes)
    if state is None:
        return replace(network, model=baked(network.model))
    state = fitted(state, shapes_of(network.model), where=source.checkpoint)
    classes = _classes_in(state, network)
    if source.num_classes is None and classes is not None and _last_size(rebuilt := _built(source, classes)) == classes:
        progress.note(f"{source.checkpoint}: has {classes} classes, so the network is built with {classes}")
        network = rebuilt
    key = f"under {state.key_used!r}" if state.key_used else "bare"
    progress.note(f"{source.checkpoint}: {len(state.tensors)} tensors, {key}{''.join(f'; {r}' for r in state.renamed)}")
    # A checkpoint may hold what a weight is computed from, or the weight itself.
    model = network.model if set(network.model.state_dict()) <= set(state.tensors) else baked(network.model)
    report = load_into(model, state, where=source.checkpoint, allow_partial=source.allow_partial)
    for line in report.notes:
        progress.note(f"{source.checkpoint}: {line}")
    return replace(network, model=baked(model))


def network_in(bundle: Bundle) -> Network | None:
    """The network that the bundle's own ONNX file says, before pruning; None for an architecture that it only names."""
    if not bundle.has(SOURCE_MODEL):
        return None
    return replace(_from_onnx(bundle.path(SOURCE_MODEL)), arch=bundle.manifest.arch)


def save_source(network: Network, stage: Path) -> None:
    """Write the ONNX file that a network was imported from into a staged bundle: only it says the architecture."""
    if network.onnx is not None:
        save_onnx(network.onnx.model, stage / SOURCE_MODEL)


def _from_onnx(path: Path, input_size: tuple[int, ...] = ()) -> Network:
    imported = import_onnx(path, input_size)
    progress.note(f"{path}: imported, and held against ONNX Runtime")
    return Network(f"onnx:{path.name}", imported.module, imported.input_shape, onnx=imported)


def _in_bundle(source: NetworkSource, bundle: Bundle) -> NetworkSource:
    """The source with the weights of a bundle of `edgeprune train`, and its architecture where none is given."""
    if bundle.has(PLAN):
        raise InputError(
            "is pruned already", where=bundle.folder, expected="a checkpoint, or a bundle of `edgeprune train`",
            remedy="`edgeprune export` takes pruned bundles, and `edgeprune train --from` trains them on",
        )  # fmt: skip
    manifest = bundle.manifest
    return replace(
        source,
        arch=source.arch or bundle_arch(bundle),
        checkpoint=bundle.path(DENSE_WEIGHTS),
        input_size=source.input_size or manifest.input_shape,
        num_classes=source.num_classes or manifest.num_classes or None,
    )


def bundle_arch(bundle: Bundle) -> str:
    """The architecture that a bundle names; InputError if that is a user's own file: no bundle runs code."""
    arch = bundle.manifest.arch
    if is_file_spec(arch):
        raise InputError(
            f"its architecture is the file {arch}, which a bundle may not run by itself", where=bundle.folder,
            remedy="pass --arch path/to/file.py:factory",
        )  # fmt: skip
    return arch


def load_tickets(folder: Path, network: Network) -> list[Ticket]:
    """The tickets in `folder`, earliest epoch first; InputError if there are none, or they are of another network."""
    shapes = {f"{name}.weight": tuple(layer.weight.shape) for name, layer in _layers(network.model).items()}
    return [
        Ticket(t.epoch, t.path.name, {key.removesuffix(".weight"): t.tensors[key].float().numpy() for key in shapes})
        for t in read_tickets(folder, shapes)
    ]


def layer_weights(model: nn.Module) -> dict[str, NDArray[np.float32]]:
    """The weight of every convolution and linear layer, filters first, by the layer's name."""
    return {
        name: filters_of(module).detach().float().numpy()
        for name, module in model.named_modules()
        if isinstance(module, FILTER_LAYERS)
    }


def layer_biases(model: nn.Module) -> dict[str, NDArray[np.float32]]:
    """The bias of every convolution and linear layer that has one, by the layer's name."""
    return {
        name: module.bias.detach().float().numpy()
        for name, module in model.named_modules()
        if isinstance(module, FILTER_LAYERS) and module.bias is not None
    }


def environment() -> dict[str, str]:
    """Versions of what made a bundle."""
    names = ("edgeprune", "torch", "torchvision", "onnx", "onnxruntime", "onnxsim", "numpy", "scikit-learn")
    versions = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _built(source: NetworkSource, num_classes: int | None) -> Network:
    size = source.input_size
    torch.manual_seed(source.seed)
    built = build(
        source.arch,
        num_classes=num_classes,
        in_channels=size[0] if len(size) == 3 else 3,
        input_size=(size[-2], size[-1]) if size else None,
    )
    kinds = {type(m).__name__ for m in built.model.modules() if isinstance(m, (nn.Conv1d, nn.Conv3d))}
    if kinds and not any(isinstance(m, nn.Conv2d) for m in built.model.modules()):
        raise InputError(
            f"has no 2-D convolution: its convolutions are {' and '.join(sorted(kinds))}",
            where=public_arch(source.arch),
            expected="a network of images (N, C, H, W)",
            remedy="an ONNX file of it can be split and profiled (`edgeprune split`, `edgeprune profile`)",
        )
    return Network(source.arch, built.model, built.input_shape, num_classes)


def _classes_in(state: LoadedState, network: Network) -> int | None:
    """Rows of the checkpoint's last layer, where it is the network's last layer but for their number; else None."""
    layers = _layers(network.model)
    name = next(reversed(layers), "")
    weight = state.tensors.get(f"{name}.weight")
    own = layers[name].weight if name else None
    if weight is None or own is None or weight.shape[1:] != own.shape[1:] or len(weight) == len(own):
        return None
    return len(weight)


def _last_size(network: Network) -> int:
    """Rows of the last layer."""
    return len(next(reversed(_layers(network.model).values())).weight)


def _layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
