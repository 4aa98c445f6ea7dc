"""What the examples of this folder share: commands of edgeprune in a row, kept on disk, and a table at the end.

An experiment is a list of steps; a step is one command of the `edgeprune` command line, printed before it is run so
that it can be copied, and run in a process of its own. Steps whose result is there are skipped, and a training run
that was interrupted goes on after its last epoch: to continue an experiment, run the same line again.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

COMMANDS = "commands.json"
"""In the output folder: the command that each result was made with."""


# -- steps -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Step:
    """One command of edgeprune."""

    verb: str
    arguments: tuple[str, ...]
    folder: Path
    """The bundle that it writes, or adds a file to."""
    result: str = "manifest.json"
    """The file in `folder` that is there when the step is done."""

    @property
    def is_done(self) -> bool:
        return (self.folder / self.result).is_file()

    @property
    def words(self) -> tuple[str, ...]:
        """The command as it is typed."""
        if self.result == "manifest.json":
            return ("edgeprune", self.verb, *self.arguments, "-o", str(self.folder))
        return ("edgeprune", self.verb, str(self.folder), *self.arguments)

    @property
    def words_now(self) -> tuple[str, ...]:
        """The same, going on where a training run was interrupted."""
        return (*self.words, "--resume") if self.verb == "train" and self.folder.is_dir() else self.words


def run_steps(steps: Iterable[Step], out: Path) -> None:
    """Run what is not done yet. SystemExit if a command fails, or if what is there was made by another command."""
    known = _read_json(out / COMMANDS)
    for step in steps:
        name = (step.folder / step.result).relative_to(out).as_posix()
        command = shlex.join(_inside(word, out) for word in step.words)
        if known.get(name, command) != command:
            sys.exit(
                f"{step.folder} is of another command:\n  {known[name]}\nnow it would be\n  {command}\n"
                "choose another -o, or remove that folder and its line in commands.json"
            )
        if step.is_done:
            print(f"# done: {shlex.join(step.words)}", flush=True)
            continue
        known[name] = command
        out.mkdir(parents=True, exist_ok=True)
        (out / COMMANDS).write_text(json.dumps(known, indent=1))
        words = step.words_now
        print(f"$ {shlex.join(words)}", flush=True)
        code = subprocess.run([sys.executable, "-m", "edgeprune.cli", *words[1:]], check=False).returncode
        if code:
            sys.exit(f"it ended with exit code {code}; run the same line again to go on from here")


def _inside(word: str, out: Path) -> str:
    """Paths in the output folder without it, so that it may be named or placed otherwise next time."""
    return word.removeprefix(f"{out}/")


# -- training --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Training:
    """How to train: what the papers say of it, and its flags."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    milestones: tuple[int, ...] = ()
    """Epochs after which the learning rate is multiplied by `gamma`; none: it falls with a cosine."""
    gamma: float = 0.1
    momentum: float = 0.9

    def flags(self) -> tuple[str, ...]:
        schedule: tuple[str, ...] = ("--schedule", "cosine")
        if self.milestones:
            milestones = ",".join(str(epoch) for epoch in self.milestones)
            schedule = ("--schedule", "step", "--milestones", milestones, "--gamma", f"{self.gamma:g}")
        return (
            *("--epochs", str(self.epochs), "--batch-size", str(self.batch_size)),
            *("--learning-rate", f"{self.learning_rate:g}", *schedule),
            *("--momentum", f"{self.momentum:g}", "--weight-decay", f"{self.weight_decay:g}"),
        )

    def shortened(self, epochs: int) -> Training:
        """The same in fewer epochs, its milestones at the same shares of them."""
        milestones = {max(1, round(epochs * milestone / self.epochs)) for milestone in self.milestones}
        return replace(self, epochs=epochs, milestones=tuple(sorted(milestones)))


# -- what is asked, and what comes out -------------------------------------------------------------------------------
@dataclass(frozen=True)
class Asked:
    """What the command line asks of an example."""

    data: str
    out: Path
    networks: tuple[str, ...]
    short: bool = False
    checkpoints: Mapping[str, Path] = field(default_factory=dict)
    """Network -> a trained checkpoint, which is taken instead of training one."""

    def training(self, full: Training) -> Training:
        """The paper's training, or a few epochs of it. The digits are few: small batches give them enough steps."""
        if not self.short:
            return full
        return replace(full.shortened(20), batch_size=16) if self.data == "digits" else full.shortened(2)

    def network(self, name: str) -> tuple[str, ...]:
        """The flags for a network on this data; digits have 8x8 pixels, so that 32x32 would be a waste."""
        size = ("--input-size", "16,16") if self.data == "digits" else ()
        return ("--arch", name, *size, "--data", self.data)

    def finetuning(self, full: Training) -> tuple[str, ...]:
        """The arguments that train a pruned bundle on, which says its network itself."""
        return ("--data", self.data, *self.training(full).flags())

    def trained(self, network: str, full: Training, *flags: str) -> tuple[tuple[Step, ...], Path]:
        """The steps that give a trained network, none if the user has one; and where it is."""
        if network in self.checkpoints:
            return (), self.checkpoints[network]
        folder = self.folder(network, "dense")
        return (Step("train", (*self.network(network), *self.training(full).flags(), *flags), folder),), folder

    def folder(self, network: str, name: str) -> Path:
        """Where the results of one experiment on a network lie."""
        return self.out / _file_name(network) / _file_name(name)


@dataclass(frozen=True)
class Published:
    """What a paper reports: top-1 in per cent, and how many per cent of MACs and parameters were pruned away."""

    dense: float | None = None
    pruned: float | None = None
    macs_less: float | None = None
    params_less: float | None = None
    before_finetuning: float | None = None


@dataclass(frozen=True)
class Experiment:
    """A network pruned in one way, fine-tuned, exported and measured: one line of the table at the end."""

    name: str
    folder: Path
    before: tuple[Step, ...]
    """What gives the trained network; empty if the user has one."""
    pruning: tuple[str, ...]
    """Verb and arguments that write the pruned bundle."""
    published: Published = Published()
    dense: Path | None = None
    """The bundle of the trained network, where the method does not start from it."""
    finetuning: tuple[str, ...] = ()
    """Arguments of `train --from` the pruned bundle; empty: the pruning is all."""

    @property
    def exported(self) -> Path:
        return self.folder / "exported"

    @property
    def steps(self) -> tuple[Step, ...]:
        pruning = [Step(self.pruning[0], self.pruning[1:], self.folder / "pruned")]
        if self.finetuning:
            start = ("--from", str(pruning[0].folder))
            pruning.append(Step("train", (*start, *self.finetuning), self.folder / "finetuned"))
        return (
            *self.before,
            *pruning,
            Step("export", (str(pruning[-1].folder),), self.exported),
            Step("profile", ("--threads", "1", "--batch-size", "1"), self.exported, "profile.json"),
            Step("report", (), self.exported, "report.html"),
        )

    def row(self) -> tuple[str, ...]:
        """The cells of the table."""
        manifest, paper = _read_json(self.exported / "manifest.json"), self.published
        accuracy = manifest.get("accuracy") or {}
        dense = accuracy if self.dense is None else _read_json(self.dense / "manifest.json").get("accuracy") or {}
        measured = _read_json(self.exported / "profile.json").get("results", [{}])[0]
        return (
            self.name,
            _beside(dense.get("dense"), paper.dense, ".2f"),
            _beside(accuracy.get("pruned_before_finetune"), paper.before_finetuning, ".2f"),
            _beside(accuracy.get("pruned"), paper.pruned, ".2f"),
            _beside(_less(manifest.get("macs")), paper.macs_less, ".1f"),
            _beside(_less(manifest.get("params")), paper.params_less, ".1f"),
            _number(measured.get("theoretical_speedup"), ".2f"),
            _number(measured.get("realistic_speedup"), ".2f"),
        )


HEADINGS = (
    "experiment",
    "dense %",
    "before tuning %",
    "pruned %",
    "MACs less %",
    "params less %",
    "theory x",
    "measured x",
)


def table(experiments: Sequence[Experiment]) -> str:
    """Top-1, size and speed of each experiment, in brackets what the paper reports, in Markdown."""
    rows = (HEADINGS, *(experiment.row() for experiment in experiments))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text)


def _less(count: Mapping[str, int] | None) -> float | None:
    return None if not count else 100 * (1 - count["pruned"] / count["dense"])


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _beside(ours: float | None, paper: float | None, form: str) -> str:
    return _number(ours, form) if paper is None else f"{_number(ours, form)} ({paper:g})"


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


# -- the command line ------------------------------------------------------------------------------------------------
def main(
    text: str | None,
    experiments: Callable[[Asked], Iterable[Experiment]],
    networks: Sequence[str],
    argv: Sequence[str] | None = None,
) -> None:
    """Run an example: `text` is its help, `networks` the paper's main ones, the first of them in the short form."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="cifar10:DIR or imagefolder:DIR; --short alone takes scikit-learn's digits")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--short", action="store_true", help="a small network and few epochs: minutes on two cores")
    parser.add_argument("--networks", default="", help=f"separated by commas; the paper's: {','.join(networks)}")
    parser.add_argument(
        "--checkpoint", action="append", default=[], metavar="NETWORK=FILE", help="a trained network; repeatable"
    )
    parser.add_argument("--only", default="", help="only experiments whose names hold one of these, commas between")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    given = parser.parse_args(argv)
    if given.data is None and not given.short:
        parser.error("--data is missing: the paper's experiment needs its data set; --short needs none")
    wanted = tuple(name.strip() for name in given.networks.split(",") if name.strip())
    asked = Asked(
        data=given.data or "digits",
        out=given.out,
        networks=wanted or (("resnet8",) if given.short else tuple(networks)),
        short=given.short,
        checkpoints={name: Path(file) for name, _, file in (text.partition("=") for text in given.checkpoint)},
    )
    parts = [part.strip() for part in given.only.split(",")]
    chosen = [experiment for experiment in experiments(asked) if any(part in experiment.name for part in parts)]
    if not chosen:
        parser.error(f"no experiment has a name with {given.only!r}")
    if given.dry_run:
        for step in dict.fromkeys(step for experiment in chosen for step in experiment.steps):
            print(shlex.join(step.words))
        return
    for number, experiment in enumerate(chosen, 1):
        run_steps(experiment.steps, asked.out)
        (asked.out / "results.md").write_text(table(chosen[:number]) + "\n")
    print(f"\n{table(chosen)}\n\nwith a report in every folder 'exported': {asked.out}/*/*/exported/report.html")
