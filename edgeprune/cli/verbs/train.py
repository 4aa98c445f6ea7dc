"""`edgeprune train`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from edgeprune.cli.flags.common import OutFlags, Seeded
from edgeprune.cli.flags.kinds import TRAINING, Integer, OptionalNumber, OptionalPath, OptionalText, Switch, flags
from edgeprune.cli.flags.method import TrainMethodFlags
from edgeprune.cli.flags.network import NetworkFlags, PrecisionFlag
from edgeprune.cli.headline import headline, layers
from edgeprune.cli.tables import facts

if TYPE_CHECKING:
    from edgeprune.pipeline.train import TrainOptions, TrainOutcome
    from edgeprune.pruning.options import NetworkSource
    from edgeprune.pruning.while_training import MethodChoice


@Parameter(name="*", group=TRAINING)
@flags
class TrainFlags:
    """How to train: SGD with momentum."""

    data: str
    """digits, imagefolder:DIR, cifar10:DIR, or path/to/file.py:factory: factory("train" or "test") gives images
    (N,C,H,W), uint8 or normalised floats, and labels (N,)."""
    epochs: Integer
    """Epochs in all, those of a resumed run included."""
    start: Annotated[OptionalPath, Parameter(name="--from")] = None
    """Checkpoint, or bundle of `edgeprune train` or `prune` (a pruned network is trained on), to start from."""
    resume: Switch = False
    """Continue the run in -o/--out after its last whole epoch, with the same bits as if it had not stopped."""
    tickets: OptionalText = ""
    """Epochs after which a ticket is saved in DIR/tickets: 10,20,30 or FROM:TO:STEP."""
    learning_rate: OptionalNumber = None
    """Peak learning rate; by default 0.1, with --from 0.01."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """cosine falls to 0, step multiplies by --gamma at each of --milestones."""
    milestones: OptionalText = ""
    """Epochs of the steps, such as 60,120,160; by default 1/2 and 3/4 of --epochs."""
    gamma: float = 0.1
    """Factor of a step."""
    warmup_epochs: float = 0.0
    """Epochs in which the learning rate rises from 0."""
    batch_size: Integer = 128
    """Images a step."""
    momentum: float = 0.9
    """Of SGD (Nesterov's)."""
    weight_decay: float = 5e-4
    """Of SGD."""
    label_smoothing: float = 0.0
    """Share of a label that is spread over all classes."""
    augment: bool = True
    """Shift images at random by up to 1/8, and mirror them where that keeps their class."""
    precision: PrecisionFlag = "auto"
    """auto: bf16 where the CPU or GPU has units for it, else fp32."""

    def source(self, network: NetworkFlags, seed: int) -> NetworkSource:
        """The network to train; random weights where there is no --from."""
        return replace(network, random_init=network.random_init or self.start is None).source(self.start, seed)

    def options(self, method: MethodChoice | None, seed: int) -> TrainOptions:
        from edgeprune.pipeline.train import TrainOptions
        from edgeprune.training.settings import TrainSettings, parse_epochs

        usual = 0.1 if self.start is None else 0.01  # paper 004: a tenth for a trained network
        settings = TrainSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=usual if self.learning_rate is None else self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            milestones=parse_epochs("--milestones", self.milestones),
            gamma=self.gamma,
            warmup_epochs=self.warmup_epochs,
            label_smoothing=self.label_smoothing,
            augment=self.augment,
            precision=self.precision,
            seed=seed,
            save_tickets=parse_epochs("--tickets", self.tickets),
        )
        return TrainOptions(self.data, settings, method, self.resume)


def train(
    *,
    network: NetworkFlags = NetworkFlags(),
    training: TrainFlags,
    method: TrainMethodFlags = TrainMethodFlags(),
    out: OutFlags,
    common: Seeded = Seeded(),
) -> None:
    """Train a network, plain or with a pruning method at work (SFP, ASFP, FPGM, LFPC, C-SGD).

    DIR keeps a checkpoint and a log line of each epoch; a run that was stopped goes on with --resume.

    **Examples**

    - `edgeprune train --arch resnet20 --data cifar10:DIR --epochs 160 --tickets 10:80:10 -o trained`
    - `edgeprune train --from trained --data cifar10:DIR --epochs 40 --method sfp --rate 0.3 -o pruned`
    """
    from edgeprune.pipeline import train as steps

    outcome = steps.train(
        training.source(network, common.seed),
        training.options(method.choice(common.seed), common.seed),
        out.output(),
    )
    show(outcome)
    common.write(outcome.summary)


def show(outcome: TrainOutcome) -> None:
    """What training came to: as `prune` shows it where the network is pruned, else accuracy and size."""
    summary, bundle = outcome.summary, outcome.bundle
    if outcome.pruned is not None:
        layers(outcome.pruned, bundle)
        return
    if summary.plan_sha256:
        headline(bundle)
        return
    accuracy, last = summary.accuracy, summary.history[-1]
    pairs = [("Network", bundle.manifest.arch), ("Epochs", str(summary.epochs))]
    if last.accuracy is None:
        pairs.append((accuracy.label, f"{accuracy.dense:.4g} on {accuracy.n} test images"))
    else:
        pairs.append(("Top-1", f"{accuracy.dense:.2f}% of {accuracy.n} test images, {last.accuracy:.2f}% in training"))
    if summary.macs and summary.params:
        pairs += [("MACs", f"{summary.macs.dense:,}"), ("Parameters", f"{summary.params.dense:,}")]
    facts(str(bundle.folder), [*pairs, ("Seconds", f"{summary.seconds:.1f}")])
