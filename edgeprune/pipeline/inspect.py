"""What is in a checkpoint, an ONNX file or a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgeprune.bundles.bundle import Bundle, open_bundle
from edgeprune.bundles.names import (
    DENSE_MODEL,
    DENSE_WEIGHTS,
    LOWERING,
    MODEL,
    PARTITION,
    PLAIN_MODEL,
    PLAN,
    PROFILE,
    RUNTIMES,
    SOURCE_MODEL,
    WEIGHTS,
)
from edgeprune.errors import InputError

if TYPE_CHECKING:
    from onnx import ModelProto

_WHAT = {
    PLAN: "what was decided",
    WEIGHTS: "pruned weights",
    DENSE_WEIGHTS: "weights before pruning",
    MODEL: "the pruned network, to run",
    PLAIN_MODEL: "the same with each layer as planned: `tune` and `split` start from it",
    DENSE_MODEL: "the network before pruning",
    SOURCE_MODEL: "the ONNX file that was pruned, which says the architecture",
    LOWERING: "in which form each grouped layer of model.onnx is written, and why",
    PROFILE: "latencies",
    RUNTIMES: "the runtimes of a machine, and which is the fastest",
    PARTITION: "the split over devices",
}


class Inspection(msgspec.Struct, frozen=True):
    """`inspect --json`."""

    path: str
    kind: str
    """bundle, onnx or checkpoint."""
    facts: dict[str, str]
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    faults: tuple[str, ...] = ()


def inspect(path: Path, input_size: Sequence[int] = ()) -> Inspection:
    """Look at a file or folder; InputError if it is none of the three kinds. `input_size` is for an ONNX file that
    leaves more open than the batch."""
    if path.suffix == ".onnx" and not path.is_dir():
        return _onnx(path, input_size)
    if input_size:
        raise InputError("--input-size is for ONNX files", where=path, remedy="leave it out, or name the .onnx file")
    return _bundle(path) if path.is_dir() else _checkpoint(path)


def require_sound(inspection: Inspection) -> None:
    """InputError if a bundle's files are not what its manifest says."""
    if inspection.faults:
        faults = "; ".join(fault.rstrip(".") for fault in inspection.faults)
        raise InputError(f"the bundle is damaged: {faults}", where=inspection.path, remedy="write it again")


def _bundle(folder: Path) -> Inspection:
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    facts = {
        "written by": f"edgeprune {manifest.edgeprune_version}",
        "architecture": manifest.arch,
        "method": manifest.method,
        "seed": str(manifest.seed),
        "input shape": " x ".join(map(str, manifest.input_shape)),
    }
    if manifest.macs:
        facts["MACs"] = f"{manifest.macs.dense:,} dense, {manifest.macs.pruned:,} pruned"
    if manifest.params:
        facts["parameters"] = f"{manifest.params.dense:,} dense, {manifest.params.pruned:,} pruned"
    if manifest.parity:
        facts["parity"] = f"max_rel {manifest.parity.max_rel:.1e} (tolerance {manifest.parity.tolerance:.0e})"
    if manifest.gathers:
        facts["Gathers"] = f"{manifest.gathers.before_fold} before folding, {manifest.gathers.after_fold} after"
    faults = bundle.faults()
    facts |= _lowering(bundle, faults)
    facts |= {f"setting {name}": str(value) for name, value in sorted(manifest.settings.items())}
    facts["files"] = f"{len(manifest.files)}, {'all hashes right' if not faults else f'{len(faults)} FAULTS'}"
    rows = tuple(
        (name, (folder / name).stat().st_size if (folder / name).is_file() else 0, digest[:16], _WHAT.get(name, ""))
        for name, digest in sorted(manifest.files.items())
    )
    return Inspection(str(folder), "bundle", facts, ("file", "bytes", "sha256", "what"), rows, tuple(faults))


def _lowering(bundle: Bundle, faults: list[str]) -> dict[str, str]:
    """The forms of the grouped layers, and by what they were chosen; nothing where a bundle does not say."""
    if not bundle.has(LOWERING) or any(fault.startswith(f"{LOWERING}:") for fault in faults):
        return {}
    from edgeprune.lowering.record import load_lowering
    from edgeprune.report.words.forms import chosen_words, count_words, executed_macs

    record = load_lowering(bundle.path(LOWERING))
    facts = {"forms": count_words(record), "forms chosen by": chosen_words(record)}
    executed = executed_macs(record, bundle.manifest)
    if executed is not None:
        facts["executed MACs"] = f"{executed:,} in these forms, filled-in zeros included"
    if record.networks:
        measured = (f"{network.what} {network.p50_ms:.3f} ms" for network in record.networks)
        facts["networks measured"] = f"{', '.join(measured)}; taken: {record.chosen}"
    return facts


def _onnx(path: Path, input_size: Sequence[int]) -> Inspection:
    from edgeprune.onnx_files.graph import opset
    from edgeprune.onnx_files.inputs import input_specs, output_specs, with_input_size
    from edgeprune.onnx_files.model import load_model

    model = load_model(path, require_conv=False)
    if input_size:
        model = with_input_size(model, input_size, where=path)
    facts = {
        "producer": model.producer_name,
        "opset": str(opset(model)),
        "IR version": str(model.ir_version),
        "inputs": ", ".join(f"{s.name} {tuple(s.shape)}" for s in input_specs(model)),
        "outputs": ", ".join(f"{s.name} {tuple(s.shape)}" for s in output_specs(model)),
        "nodes": str(len(model.graph.node)),
    }
    counted, rows = _counted(model, path)
    return Inspection(str(path), "onnx", facts | counted, ("node", "op", "groups", "MACs", "parameters"), rows)


def _counted(model: ModelProto, path: Path) -> tuple[dict[str, str], tuple[tuple[Any, ...], ...]]:
    """Multiply-adds and parameters of the whole and of each node; a sentence instead where they cannot be counted."""
    from edgeprune.onnx_files.graph import all_graphs, attributes
    from edgeprune.onnx_files.inputs import static_batch, with_input_size
    from edgeprune.onnx_files.macs import count_macs

    batch = static_batch(model) or 1
    try:
        count = count_macs(with_input_size(model, (), where=path), batch=batch)
    except InputError as error:
        return {f"MACs (batch {batch})": "not counted: " + "; ".join(filter(None, (error.what, error.remedy)))}, ()
    facts = {f"MACs (batch {batch})": f"{count.total:,}", "parameters": f"{count.params:,}"}
    if count.unsupported:
        facts["MACs not counted for"] = ", ".join(f"{op} ({n})" for op, n in sorted(count.unsupported.items()))
    convolutions = (node for graph in all_graphs(model.graph) for node in graph.node if node.op_type == "Conv")
    groups = {node.name: attributes(node).get("group", 1) for node in convolutions}
    return facts, tuple((n.name, n.op_type, groups.get(n.name, ""), n.macs, n.params) for n in count.per_node)


def _checkpoint(path: Path) -> Inspection:
    from edgeprune.checkpoints.checkpoint import read_state_dict

    state = read_state_dict(path)
    facts = {
        "tensors under": state.key_used or "(bare)",
        "renamed": "; ".join(state.renamed) or "nothing",
        "tensors": str(len(state.tensors)),
        "elements": f"{sum(t.numel() for t in state.tensors.values()):,}",
    }
    rows = tuple(
        (
            name,
            "x".join(map(str, t.shape)),
            str(t.dtype).removeprefix("torch."),
            f"{(t == 0).float().mean():.1%}" if t.numel() else "",
        )
        for name, t in state.tensors.items()
    )
    return Inspection(str(path), "checkpoint", facts, ("tensor", "shape", "type", "zeros"), rows)
