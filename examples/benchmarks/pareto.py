"""Top-1 against measured latency and against multiply-adds: our methods beside Torch-Pruning's and onnxsim's.

python examples/benchmarks/pareto.py --data imagefolder:cifar -o runs/pareto
    --baseline resnet20=resnet20.pt --baseline resnet56=resnet56.pt
    [--methods gkp-cal,fpgm,tp-magnitude,onnxsim-wanda] [--budgets 0.75,0.65,0.5] [--stages none,bn,heal,1,3]
    [--by latency] [--heal auto] [--networks resnet20] [--test-images 1000] [--measure-again]

Every method starts from the same network, is asked for the same shares of its multiply-adds, may look at the same
images without labels, and is then trained by the same code for so many epochs: 0 (none), or 1 or 3 with labels. bn
estimates the statistics of BatchNorm anew on those images. heal distils on them, for --heal minutes or as many steps as
edgeprune takes by itself: a step of our library's after our methods, which the other tools do not have. --by latency
asks gkp-cal for shares of the latency, and the others, which know no such budget, for the same of the multiply-adds.
Channels are left in blocks of this machine's; METHOD@1 leaves any number. Latency is that of the ONNX file in ONNX
Runtime, one thread, batch 1, as a share of the dense network's in the same interleaved run; our layers are tuned
before.

Each point is a file in the output folder, points/NETWORK-METHOD-[latency]SHARE-STAGE.json: run the same line again
after an interruption, or with more of anything, and only what is missing is done (another number of test images wants a
folder of its own). With --measure-again latencies are measured anew. results.md and a plot a network are written anew
from all points that are there. Optional, in the same environment: pip install --no-deps torch-pruning==1.6.1, pip
install onnxsim==0.8.1.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path

import msgspec
import our_methods
import side_by_side
from our_methods import By
from pareto_methods import METHODS, Candidate, Start, is_known, reestimated, unavailable
from pareto_results import DENSE, STAGES, Point, Speed, case_name, load_point, save, write_results
from torch import nn

from edgeprune.datasets.images import Dataset, Split, load_data
from edgeprune.errors import EdgepruneError, InputError
from edgeprune.onnx_files.model import save_onnx
from edgeprune.profiling.environment import current_environment, load_average
from edgeprune.profiling.measurement import median_interval, paired_ratios
from edgeprune.pruning.images import in_seeded_order
from edgeprune.pruning.network import Network, load_network
from edgeprune.pruning.options import CALIBRATION_IMAGES, Heal, NetworkSource
from edgeprune.training.evaluation import EvalResult, evaluate
from edgeprune.training.loop import fit
from edgeprune.training.settings import TrainSettings

COMPETITORS = ("torch-pruning", "onnxsim")
SECONDS = 20.0
"""That one latency may take at most."""


@dataclass(frozen=True)
class Asked:
    """What one run of this script is asked."""

    out: Path
    data: str
    methods: tuple[str, ...]
    budgets: tuple[float, ...]
    stages: tuple[str, ...]
    by: By = "macs"
    heal: Heal = field(default_factory=Heal)
    test_images: int | None = None
    calibration_images: int = CALIBRATION_IMAGES
    learning_rate: float = 0.02
    seconds: float = SECONDS


@dataclass(frozen=True)
class Bench:
    """One network, and what is done with it."""

    asked: Asked
    name: str
    network: Network
    left_out: list[str] = field(default_factory=list)

    @cached_property
    def test(self) -> Dataset:
        return self._data("test", self.asked.test_images)

    @cached_property
    def train(self) -> Dataset:
        return self._data("train", None)

    def _data(self, split: Split, limit: int | None) -> Dataset:
        return load_data(self.asked.data, split=split, input_shape=self.network.input_shape, limit=limit)

    @cached_property
    def start(self) -> Start:
        images = in_seeded_order(self.train, self.asked.calibration_images, seed=0)
        return Start(self.network, images, self.asked.out / "tuning.json")

    def by(self, method: str) -> By:
        """What a method is asked for a share of."""
        return self.asked.by if method.partition("@")[0] in our_methods.TIMED else "macs"

    def point(self, method: str, budget: float, stage: str) -> Path:
        case = f"{DENSE}-1" if method == DENSE else case_name(method, budget, self.by(method))
        return self.asked.out / "points" / f"{self.name}-{case}-{stage}.json"

    def model(self, case: str) -> Path:
        return self.asked.out / "models" / f"{self.name}-{case}.onnx"

    def run(self) -> None:
        """Every point that is not there yet."""
        self._dense()
        for budget in self.asked.budgets:
            for method in self.asked.methods:
                stages = [stage for stage in self.asked.stages if not self.point(method, budget, stage).is_file()]
                try:
                    if stages:
                        self._case(method, budget, stages)
                except EdgepruneError as error:
                    self._leave_out(f"{method} at {budget:g}: {error}")

    def _dense(self) -> None:
        path = self.model(DENSE)
        if path.is_file() and self.point(DENSE, 1.0, "none").is_file():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        save_onnx(self.start.onnx, path)
        dense = Candidate(self.network.model, self.start.macs, lambda _: None)
        self._keep(DENSE, 1.0, "none", dense, self.speed(DENSE, 1.0))

    def _case(self, method: str, budget: float, stages: Sequence[str]) -> None:
        """One method at one budget; its latency is measured once, for all stages."""
        print(f"{self.name}, {method} at {budget:g}: pruning", flush=True)
        candidate = self.start.candidate(method, budget, self.by(method))
        case = case_name(method, budget, self.by(method))
        candidate.write(self.model(case))
        macs = candidate.macs / self.start.macs
        known = {stage: point for stage in STAGES if (point := load_point(self.point(method, budget, stage)))}
        if any(point.speed.macs != macs for point in known.values()):  # what is timed need not give the same plan twice
            stages = [stage for stage in STAGES if stage in known or stage in stages]
            known = {}
        speed = next(iter(known.values())).speed if known else self.speed(case, macs)
        for stage in stages:
            try:
                self._keep(method, budget, stage, candidate, speed)
            except InputError as error:
                self._leave_out(f"{method} at {budget:g}, {STAGES[stage]}: {error}")

    def _keep(self, method: str, budget: float, stage: str, pruned: Candidate, speed: Speed) -> None:
        started = time.perf_counter()
        model = self._after(stage, pruned)
        seconds = time.perf_counter() - started
        result = evaluate(model, self.test)
        assert isinstance(result, EvalResult)
        point = Point(
            self.name, method, budget, stage, result.top1, result.n, round(seconds, 1), speed, self.by(method)
        )
        save(self.point(method, budget, stage), point)
        print(f"  {stage}: {point.top1:.2f} %, MACs {speed.macs:.3f}, latency {speed.latency:.3f}", flush=True)

    def _after(self, stage: str, candidate: Candidate) -> nn.Module:
        """The network after a stage of training; InputError where it cannot be had."""
        if stage == "none":
            return candidate.model
        if stage == "bn":
            return reestimated(candidate.model, self.start.images)
        if stage == "heal":
            if candidate.pruned is None:
                raise InputError("the tool that pruned it has no such step")
            return our_methods.healed(candidate.pruned, self.start.images, self.asked.heal).model
        settings = TrainSettings(epochs=int(stage), learning_rate=self.asked.learning_rate)
        return fit(candidate.model, self.train, settings).model

    def speed(self, case: str, macs: float) -> Speed:
        """A file of this network, of this share of the multiply-adds, beside the dense one, in turn in one loop."""
        load = load_average()
        paths = {DENSE: self.model(DENSE), case: self.model(case)}
        images = self.network.example_input(1).numpy()
        measured = side_by_side.measured(paths, images, self.asked.seconds)
        dense, own = measured[DENSE], measured[case]
        ratios = paired_ratios(own, dense)
        return Speed(
            macs, statistics.median(ratios), median_interval(ratios), dense.p50_ms, own.n,
            max(dense.noise, own.noise), load, _machine(),
        )  # fmt: skip

    def measure_again(self) -> None:
        """The latencies of all of this network's points whose models are there."""
        speeds: dict[str, Speed] = {}
        for path in sorted(self.asked.out.glob(f"points/{self.name}-*.json")):
            point = load_point(path)
            assert point is not None
            case = point.case
            if case not in speeds:
                speeds[case] = self.speed(case, point.speed.macs)
                print(f"{self.name}, {case}: latency {speeds[case].latency:.3f}", flush=True)
            save(path, msgspec.structs.replace(point, speed=speeds[case]))

    def _leave_out(self, what: str) -> None:
        print(f"  left out: {what}", flush=True)
        self.left_out.append(f"{self.name}, {what}")


def _machine() -> str:
    environment = current_environment(threads=1)
    versions = environment.runtime_versions | {name: _version(name) for name in COMPETITORS}
    listed = (f"{name} {version}" for name, version in versions.items() if version)
    return ", ".join((environment.cpu, f"{environment.cores} cores", environment.platform, *listed))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="imagefolder:DIR or cifar10:DIR")
    parser.add_argument(
        "--baseline", action="append", required=True, metavar="ARCH=CHECKPOINT", help="a trained network; repeatable"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the points, the tables and the plots")
    parser.add_argument("--networks", default="", help="only these of the baselines, separated by commas")
    parser.add_argument("--methods", default=",".join(METHODS), help="%(default)s; gkp-cal@1: any number of channels")
    parser.add_argument("--budgets", default="0.75,0.65,0.5", help="shares to leave (%(default)s)")
    parser.add_argument("--by", choices=("macs", "latency"), default="macs", help="what gkp-cal is asked shares of")
    parser.add_argument("--heal", default="auto", metavar="auto|MINUTES", help="of the stage heal (%(default)s)")
    parser.add_argument("--stages", default="none,bn,heal,1,3", help="%(default)s")
    parser.add_argument("--test-images", type=int, help="only so many of the test split")
    parser.add_argument("--learning-rate", type=float, default=0.02, help="of training with labels (%(default)g)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="most that one latency may take (%(default)g)")
    parser.add_argument("--measure-again", action="store_true", help="measure all latencies anew, and do nothing else")
    return parser


def main(given: Sequence[str] | None = None) -> None:
    parser = arguments()
    flags = parser.parse_args(given)
    baselines = dict(text.split("=", 1) for text in flags.baseline)
    stages = _names(flags.stages)
    if unknown := [stage for stage in stages if stage not in STAGES]:
        parser.error(f"unknown stage {unknown[0]!r}: known are {', '.join(STAGES)}")
    methods = _names(flags.methods)
    if unknown := [method for method in methods if not is_known(method)]:
        parser.error(f"unknown method {unknown[0]!r}: known are {', '.join(METHODS)}")
    left_out = [f"{method}: {why}" for method in methods if (why := unavailable(method))]
    print(*left_out, sep="\n", end="\n" if left_out else "")
    methods = tuple(method for method in methods if not unavailable(method))
    asked = Asked(
        flags.out, flags.data, methods, tuple(map(float, _names(flags.budgets))), stages, flags.by,
        Heal.parse(flags.heal), flags.test_images, learning_rate=flags.learning_rate, seconds=flags.seconds,
    )  # fmt: skip
    for name in _names(flags.networks) or baselines:
        bench = Bench(asked, name, load_network(NetworkSource(name, Path(baselines[name]))), left_out)
        if flags.measure_again:
            bench.measure_again()
        else:
            bench.run()
        text = write_results(asked.out, left_out)
    print(text)


if __name__ == "__main__":
    main()
