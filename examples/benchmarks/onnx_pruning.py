"""One ONNX file, pruned by edgeprune and by onnxsim at as many multiply-adds: how far off are they, and how fast?

python examples/benchmarks/onnx_pruning.py model.onnx [--input-size 320,320] [--sparsity 0.3] [--images images.npy]
    [--methods sfp,fpgm,gconv] [--rounds 50] -o runs/onnx_pruning

onnxsim's apply_structured_pruning sets the multiply-adds, each of edgeprune's methods then meets them: a rate for
thinner layers, a budget for gconv. Nothing is fine-tuned. The error is that of the outputs on the images, by default
parts of two photos that come with scikit-learn, in 0 to 1: |y - y_file| / |y_file|, of the worst output. All files run
in turn in one loop, in ONNX Runtime with one thread and a batch of 1. table.md is what was measured.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxsim
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import ModelProto
from sklearn.datasets import load_sample_images

import edgeprune
from edgeprune.errors import InputError
from edgeprune.methods.base import PruneRequest
from edgeprune.methods.budget import Budget
from edgeprune.onnx_files.macs import count_macs
from edgeprune.onnx_files.model import load_model
from edgeprune.plans.costs import planned_macs
from edgeprune.profiling.environment import load_average
from edgeprune.profiling.measurement import interleave
from edgeprune.pruning.network import Network, load_network
from edgeprune.pruning.options import NetworkSource, PruneOptions
from edgeprune.pruning.pruned import Pruned, prune_network
from edgeprune.runners.base import RunOptions
from edgeprune.runners.opened import OpenedRunner
from edgeprune.runners.registry import open_runner
from edgeprune.runners.target import OpenOptions, Source

ATTEMPTS, CLOSE = 6, 0.01
"""How often a rate is tried, and how far from the asked multiply-adds the search ends."""
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Variant:
    """One file to be measured."""

    name: str
    path: Path
    macs: int
    unchanged: str
    """How many layers compute as much as before, of how many."""


def by_onnxsim(model: ModelProto, sparsity: float, path: Path) -> Variant:
    """The file that onnxsim makes of the simplified model; which layers it left alone, it does not tell."""
    simple, _ = onnxsim.simplify(model)
    pruned = onnxsim.apply_structured_pruning(simple, sparsity=sparsity)
    onnx.save(pruned, path)
    before, after = _layer_macs(simple), _layer_macs(pruned)
    same = sum(1 for one, other in zip(before, after, strict=True) if one == other)
    return Variant(f"onnxsim, sparsity {sparsity:g}", path, sum(after), f"{same} of {len(before)}")


def by_edgeprune(network: Network, method: str, macs: float, folder: Path) -> Variant:
    """The bundle that `edgeprune export` makes at this share of the multiply-adds."""
    name, _, block = method.partition("@")
    align = int(block or 1)
    pruned = _with_budget(network, macs, align) if name == "gconv" else _with_rate(network, name, macs, align)
    bundle = edgeprune.export(pruned, folder / method, overwrite=True)
    left = planned_macs(pruned.plan, pruned.graph)
    same = sum(1 for layer in pruned.graph.layers if left[layer.name] == layer.macs)
    unchanged = f"{same} of {len(pruned.graph.layers)}"
    return Variant(f"edgeprune, {method}", bundle.path("model.onnx"), pruned.macs.pruned, unchanged)


def _with_budget(network: Network, macs: float, align: int) -> Pruned:
    return prune_network(network, PruneOptions("gconv", PruneRequest(groups=2, budget=Budget(macs=macs), align=align)))


def _with_rate(network: Network, method: str, macs: float, align: int) -> Pruned:
    """One rate for all layers; multiply-adds go about with the square of the share of filters that stays."""
    share, tried = math.sqrt(macs), list[tuple[float, Pruned]]()
    for _ in range(ATTEMPTS):
        rate = min(max(1 - share, 0.001), 0.999)
        pruned = prune_network(network, PruneOptions(method, PruneRequest(rate=rate, align=align)))
        left = pruned.macs.pruned / pruned.macs.dense
        tried.append((abs(math.log(left / macs)), pruned))
        if abs(left / macs - 1) <= CLOSE:
            break
        share = min(share * math.sqrt(macs / left), 1.0)
    return min(tried, key=lambda found: found[0])[1]


def _layer_macs(model: ModelProto) -> list[int]:
    return [node.macs for node in count_macs(model).per_node if node.op_type in LAYERS]


def photos(shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """(8, C, H, W) four parts each of two photos, in 0 to 1."""
    _, height, width = shape
    parts = []
    for photo in load_sample_images().images:  # (H, W, 3)
        whole = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float() / 255
        for rows in whole.chunk(2, 2):
            parts += [F.interpolate(part, (height, width), mode="bilinear") for part in rows.chunk(2, 3)]
    return torch.cat(parts).numpy()


def failure(variant: Variant, images: NDArray[np.float32]) -> str:
    """Why a file cannot be run; empty if it can (onnxsim's cannot where convolutions share a bias)."""
    try:
        runner = open_runner("cpu", Source(variant.path), OpenOptions(RunOptions()))
        try:
            runner.run({runner.input_names[0]: images[:1]})
        finally:
            runner.close()
    except InputError as error:
        return str(error)
    return ""


def error(variant: OpenedRunner, source: OpenedRunner, images: NDArray[np.float32]) -> float:
    """|y - y_file| / |y_file| over all images, of the worst output."""
    given, wanted = ([runner.run({runner.input_names[0]: x[None]}) for x in images] for runner in (variant, source))
    worst = 0.0
    for old, new in zip(source.output_names, variant.output_names, strict=True):
        y, reference = (np.stack([run[name] for run in runs]) for runs, name in ((given, new), (wanted, old)))
        worst = max(worst, float(np.linalg.norm(y - reference) / np.linalg.norm(reference)))
    return worst


def measured(variants: Sequence[Variant], images: NDArray[np.float32], rounds: int) -> Iterator[str]:
    """The rows of the table; the first variant is the file itself."""
    with ExitStack() as stack:
        options = OpenOptions(RunOptions(threads=1, spinning=False))
        runners = [open_runner("cpu", Source(variant.path), options) for variant in variants]
        for runner in runners:
            stack.callback(runner.close)
        errors = [error(runner, runners[0], images) for runner in runners]
        runs = {
            v.name: runner.prepared({runner.input_names[0]: images[:1]})
            for v, runner in zip(variants, runners, strict=True)
        }
        times = interleave(runs, warmup=5, iterations=rounds)
    base = variants[0]
    yield "| file | MACs | fewer | p50 ms | faster | output error | layers as before |"
    yield "|---|---|---|---|---|---|---|"
    for variant, off in zip(variants, errors, strict=True):
        milliseconds = times[variant.name].p50_ms
        yield (
            f"| {variant.name} | {variant.macs / 1e6:.0f} M | {base.macs / variant.macs:.2f}x | {milliseconds:.2f} "
            f"| {times[base.name].p50_ms / milliseconds:.2f}x | {off:.2f} | {variant.unchanged} |"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="an ONNX file")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the pruned files and table.md")
    parser.add_argument("--input-size", default="", help="H,W where the file leaves them open")
    parser.add_argument("--sparsity", type=float, default=0.3, help="share of the filters that onnxsim shall remove")
    parser.add_argument("--methods", default="sfp,fpgm,gconv", help="of edgeprune; sfp@16: in blocks of 16")
    parser.add_argument("--images", type=Path, help=".npy with images (N, C, H, W), as the network takes them")
    parser.add_argument("--rounds", type=int, default=50, help="runs of every file")
    asked = parser.parse_args(arguments)
    size = tuple(int(number) for number in asked.input_size.split(",") if number)
    network = load_network(NetworkSource("", asked.model, input_size=size))
    assert network.onnx is not None
    images = photos(network.input_shape) if asked.images is None else np.load(asked.images).astype(np.float32)
    asked.out.mkdir(parents=True, exist_ok=True)
    source = asked.out / "source.onnx"
    onnx.save(network.onnx.model, source)
    original = load_model(source)
    dense = sum(_layer_macs(original))
    variants = [Variant("as it was", source, dense, "all")]
    variants.append(by_onnxsim(original, asked.sparsity, asked.out / "onnxsim.onnx"))
    for method in asked.methods.split(","):
        try:
            variants.append(by_edgeprune(network, method, variants[1].macs / dense, asked.out))
        except InputError as refusal:
            print(f"{method} left out: {refusal}", flush=True)
    broken = {variant: why for variant in variants if (why := failure(variant, images))}
    for variant, why in broken.items():
        print(f"{variant.name} left out, its file cannot be run: {why}", flush=True)
    variants = [variant for variant in variants if variant not in broken]
    lines = [*measured(variants, images, asked.rounds), "", f"load {load_average():.1f} while measuring"]
    (asked.out / "table.md").write_text("\n".join(lines) + "\n")
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
