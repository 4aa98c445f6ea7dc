"""Every method on the same work: the same trained networks, the same MACs, the same epochs of training.

python examples/benchmarks/methods.py --data imagefolder:cifar --baseline resnet20=resnet20.pt -o runs
    [--baseline resnet56=resnet56.pt] [--methods gconv,fpgm,csgd] [--epochs 3] [--macs 0.55] [--learning-rate 0.02]

A one-shot method prunes the checkpoint and fine-tunes it; a method that works while the network is trained gets the
checkpoint and the same epochs. Both are asked for the same share of the MACs. Then each result is exported to ONNX and
measured beside the dense network (one thread, batch 1).

Each command is printed before it is run, in a process of its own, and each result is kept in the output folder: run the
same line again after an interruption, or with more methods or networks, and only what is missing is done. With
--measure-again, what was trained is exported and measured again. The table (results.md) is written anew each time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    verb: str
    """prune: one-shot, then fine-tuning; train: at work while the network is trained."""
    flags: tuple[str, ...]


def rows(macs: float) -> tuple[Row, ...]:
    """Every method, asked for this share of the dense MACs; TMI-GKP knows no budget: its rate gives the share."""
    budget = ("--budget", f"macs={macs}")
    tmi = ("--method", "tmi-gkp", "--groups", "8", "--rate", "0.4375")
    return (
        Row("tmi-gkp (8 groups)", "prune", tmi),
        Row("gconv (searched groups)", "prune", ("--method", "gconv", *budget)),
        Row("L2 norm (one-shot)", "prune", ("--method", "sfp", *budget)),
        Row("fpgm (one-shot)", "prune", ("--method", "fpgm", *budget)),
        Row("sfp (soft)", "train", ("--method", "sfp", *budget)),
        Row("asfp (soft)", "train", ("--method", "asfp", *budget)),
        Row("fpgm (soft)", "train", ("--method", "fpgm", *budget)),
        Row("fpgm-mix (soft)", "train", ("--method", "fpgm-mix", *budget)),
        Row("lfpc", "train", ("--method", "lfpc", *budget)),
        Row("csgd", "train", ("--method", "csgd", *budget)),
    )


@dataclass(frozen=True)
class Bench:
    """What one run of this script is asked."""

    out: Path
    data: str
    epochs: int
    learning_rate: float
    measure_again: bool

    def result(self, network: str, checkpoint: Path, row: Row) -> dict[str, Any]:
        """The figures of one row on one network: read if they are there, else made."""
        folder = self.out / network / "".join(c if c.isalnum() else "-" for c in row.name)
        done = folder / "result.json"
        if not done.is_file():
            seconds = self.train(network, checkpoint, row, folder)
            write_whole(done, {"seconds": seconds, "epochs": self.epochs, **measure(folder)})
        elif self.measure_again:
            write_whole(done, {**json.loads(done.read_text()), **measure(folder)})
        return json.loads(done.read_text())  # type: ignore[no-any-return]

    def train(self, network: str, checkpoint: Path, row: Row, folder: Path) -> float:
        """Prune and train into the folder's `pruned`; returns the seconds that it took."""
        folder.mkdir(parents=True, exist_ok=True)
        start, pruned = folder / "start", folder / "pruned"
        started = time.perf_counter()
        training = ("--data", self.data, "--epochs", str(self.epochs), "--learning-rate", str(self.learning_rate))
        end = (*training, "-o", str(pruned), "--resume")
        if (pruned / "manifest.json").is_file():
            print(f"{pruned} is there already")
        elif row.verb == "prune":
            data = ("--data", self.data)
            edgeprune("prune", str(checkpoint), "--arch", network, *row.flags, *data, "-o", str(start), "--overwrite")
            edgeprune("train", "--from", str(start), *end)
        else:
            edgeprune("train", "--from", str(checkpoint), "--arch", network, *row.flags, *end)
        return time.perf_counter() - started


def measure(folder: Path) -> dict[str, Any]:
    """The figures of the folder's trained network, exported and tuned on this machine."""
    pruned, exported, profile = folder / "pruned", folder / "exported", folder / "profile.json"
    edgeprune("export", str(pruned), "-o", str(exported), "--tune", "--overwrite")
    edgeprune("profile", str(exported), "--json", str(profile), "--iterations", "50")
    measured = json.loads(profile.read_text())["results"][0]
    manifest = json.loads((pruned / "manifest.json").read_text())
    shutil.rmtree(exported)  # the figures are kept, not two networks a row
    return {
        "accuracy": manifest["accuracy"],
        "macs": manifest["macs"],
        "params": manifest["params"],
        "theoretical": measured["theoretical_speedup"],
        "realistic": measured["realistic_speedup"],
        "environment": environment(),
    }


def write_whole(path: Path, figures: dict[str, Any]) -> None:
    staged = path.with_suffix(".part")
    staged.write_text(json.dumps(figures, indent=1))
    staged.replace(path)


def edgeprune(*arguments: str) -> None:
    """Run one command of edgeprune in a process of its own; stop if it fails."""
    print("$ edgeprune", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "edgeprune.cli", *arguments], check=True)


def environment() -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("edgeprune", "torch", "onnxruntime"))
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{platform.system()} {platform.machine()}, {threads}, {versions}"


def table(network: str, results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """One network's table, in Markdown."""
    first = next(iter(results.values()))
    epochs = f"{first['epochs']} epoch{'s' if first['epochs'] > 1 else ''}"
    yield f"### {network}, {epochs}, dense {first['accuracy']['dense']:.2f}%"
    yield ""
    yield "| method | before training | after | MACs kept | parameters kept | theoretical | realistic | seconds |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, r in results.items():
        before = r["accuracy"].get("pruned_before_finetune")
        cells = (
            name,
            "-" if before is None else f"{before:.2f}",
            f"{r['accuracy']['pruned']:.2f}",
            *(f"{100 * r[what]['pruned'] / r[what]['dense']:.1f}%" for what in ("macs", "params")),
            *(f"{r[what]:.2f}x" for what in ("theoretical", "realistic")),
            f"{r['seconds']:.0f}",
        )
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield first["environment"]
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="imagefolder:DIR or cifar10:DIR")
    parser.add_argument(
        "--baseline", action="append", required=True, metavar="ARCH=CHECKPOINT", help="a trained network; repeatable"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--methods", default="", help="only the rows whose names start so, separated by commas")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--macs", type=float, default=0.55, help="share of the dense MACs to keep")
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--measure-again", action="store_true", help="export and measure what is trained already, too")
    asked = parser.parse_args()
    wanted = tuple(name.strip() for name in asked.methods.split(",") if name.strip()) or ("",)
    bench = Bench(asked.out, asked.data, asked.epochs, asked.learning_rate, asked.measure_again)
    baselines = dict(text.split("=", 1) for text in asked.baseline)
    lines: dict[str, list[str]] = {}
    for network, checkpoint in baselines.items():
        results: dict[str, dict[str, Any]] = {}
        for row in (row for row in rows(asked.macs) if row.name.startswith(wanted)):
            results[row.name] = bench.result(network, Path(checkpoint), row)
            lines[network] = list(table(network, results))
            (asked.out / "results.md").write_text("\n".join(line for part in lines.values() for line in part))
    print((asked.out / "results.md").read_text())


if __name__ == "__main__":
    main()
