"""From a pruned network to the ONNX files of a bundle: fold, export, and hold each file against its network."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from edgeprune.bundles.manifest import SCHEMA_VERSION, GatherCount, Manifest, ParityRecord
from edgeprune.bundles.names import DENSE_MODEL, MODEL
from edgeprune.deployment.options import DeployOptions
from edgeprune.deployment.parity import measure_parity, random_inputs, require_parity
from edgeprune.errors import GateError, InputError, first_line
from edgeprune.exporters.to_onnx import to_onnx
from edgeprune.io import progress
from edgeprune.io.arrays import load_array
from edgeprune.io.formatting import some
from edgeprune.lowering.gathers import count_gathers
from edgeprune.modules.hooks import changing_hooks
from edgeprune.modules.outputs import tensors_in
from edgeprune.onnx_files.model import save_onnx
from edgeprune.pruning.network import Network, environment
from edgeprune.pruning.pruned import Pruned, save_pruned
from edgeprune.rewriting.fold import fold
from edgeprune.rewriting.rewrite import masked


def export_into(stage: Path, pruned: Pruned, deploy: DeployOptions) -> Manifest:
    """Write the plan, the weights and both ONNX files into a staged bundle; returns its manifest, without the hashes.

    GateError if an exported file does not compute what its network computes.
    """
    deploy = _with_names(deploy, pruned.network)
    inputs = _parity_inputs(deploy, pruned.network.input_shape)
    save_pruned(pruned, stage)
    progress.note("exporting and verifying the dense baseline")
    dense = pruned.network.model
    try:
        _export_one(dense, dense, stage / DENSE_MODEL, deploy, inputs)
    except InputError:
        _check_batch(dense, inputs["random"])  # which may be the true reason
        raise
    progress.note("exporting and verifying the pruned network")
    reference = masked(pruned.model, dense, pruned.plan, pruned.graph)
    gathers, parity = _export_one(pruned.model, reference, stage / MODEL, deploy, inputs)
    manifest = manifest_of(pruned)
    return msgspec.structs.replace(manifest, parity=parity, gathers=gathers, opset=deploy.onnx.opset)


def _with_names(deploy: DeployOptions, network: Network) -> DeployOptions:
    """An imported network keeps the names of its file's input and outputs."""
    if network.onnx is None:
        return deploy
    names = dataclasses.replace(
        deploy.onnx, input_name=network.onnx.input_name, output_names=network.onnx.output_names
    )  # fmt: skip
    return dataclasses.replace(deploy, onnx=names)


def manifest_of(pruned: Pruned) -> Manifest:
    """What a bundle's manifest says of a pruned network."""
    return Manifest(
        schema_version=SCHEMA_VERSION,
        edgeprune_version=metadata.version("edgeprune"),
        arch=pruned.network.public_arch,
        method=pruned.plan.method,
        settings=pruned.plan.settings,
        seed=pruned.plan.seed,
        input_shape=pruned.network.input_shape,
        num_classes=pruned.network.num_classes,
        macs=pruned.macs,
        params=pruned.params,
        accuracy=pruned.accuracy,
        calibration_images=pruned.calibration_images,
        healing=pruned.healing,
        environment=environment(),
        notes=pruned.result.notes,
    )


def _export_one(
    model: torch.nn.Module,
    reference: torch.nn.Module,
    path: Path,
    deploy: DeployOptions,
    inputs: Mapping[str, NDArray[np.float32]],
) -> tuple[GatherCount, ParityRecord]:
    example = torch.from_numpy(inputs["random"])
    folded = fold(model, example)
    onnx_model = to_onnx(folded.module, example, deploy.onnx)
    gathers = GatherCount(folded.gathers_before, count_gathers(onnx_model))
    save_onnx(onnx_model, path)
    parity = measure_parity(path, inputs, _references(reference, inputs), deploy.tolerance)
    try:
        require_parity(parity)
    except GateError as error:
        raise GateError(f"{error}{_hook_words(reference, example)}") from error
    return gathers, parity


def _references(
    model: torch.nn.Module, inputs: Mapping[str, NDArray[np.float32]]
) -> dict[str, list[NDArray[np.float64]]]:
    """What a network gives in float64; in float32 where its forward fixes that, with casts such as `x.float()`."""
    batches = {name: torch.from_numpy(batch) for name, batch in inputs.items()}
    precise = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        try:
            return {name: _outputs(precise(batch.double())) for name, batch in batches.items()}
        except RuntimeError:  # layers and what they take have different types
            plain = copy.deepcopy(model).eval()
            outputs = {name: _outputs(plain(batch)) for name, batch in batches.items()}
            return {name: [part.astype(np.float64) for part in parts] for name, parts in outputs.items()}


def _hook_words(model: torch.nn.Module, example: torch.Tensor) -> str:
    """What may have been lost of a network: hooks that change its outputs. Empty where there are none."""
    if not (names := changing_hooks(model, example)):
        return ""
    return (
        f"; the forward hooks on {some(names)} change what it computes, and are lost where a layer is replaced or "
        "folded: write what they do into forward"
    )


def _check_batch(model: torch.nn.Module, batch: NDArray[np.float32]) -> None:
    """InputError if the network runs on a batch of 1 alone, and a dynamic one is asked for."""
    images = torch.from_numpy(batch)
    if len(batch) == 1 or (error := _failure(model, images)) is None or _failure(model, images[:1]) is not None:
        return
    raise InputError(
        f"the network runs on a batch of 1 alone: on {len(batch)} images, {first_line(error)}",
        expected="a network for any batch", remedy="pass --static-batch, which writes ONNX files for a batch of 1",
    )  # fmt: skip


def _failure(model: torch.nn.Module, images: torch.Tensor) -> Exception | None:
    """What the network raises on these images; None if it runs."""
    try:
        with torch.no_grad():
            model(images)
    except Exception as error:  # whatever a user's forward raises
        return error
    return None


def _outputs(value: object) -> list[NDArray[np.float64]]:
    """A model's outputs in order, whatever it returns them in."""
    return [tensor.numpy() for tensor in tensors_in(value)]


def _parity_inputs(deploy: DeployOptions, shape: tuple[int, ...]) -> dict[str, NDArray[np.float32]]:
    # The exporter's example batch: 2 where the batch is dynamic, since a 1 may be taken for a constant.
    batch = 2 if deploy.onnx.dynamic_batch else 1
    inputs = {"random": random_inputs(shape, deploy.seed, batch)}
    if deploy.inputs is not None:
        real = load_array(deploy.inputs).astype(np.float32)
        if real.shape[1:] != shape or not len(real):
            raise InputError(
                f"has shape {real.shape}",
                where=deploy.inputs,
                expected=f"(N, {', '.join(map(str, shape))}), N at least 1",
            )
        inputs["real"] = real if deploy.onnx.dynamic_batch else np.resize(real, (batch, *shape))
    return inputs
