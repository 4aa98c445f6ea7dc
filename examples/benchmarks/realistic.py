"""Theoretical beside realistic speed-up of whole networks, pruned, exported and lowered for this machine.

python examples/benchmarks/realistic.py --quick -o runs/quick          (a subset, within five minutes on two cores)
python examples/benchmarks/realistic.py -o runs/realistic              (everything: many hours)
    [--networks torchvision:resnet18,resnet56] [--methods gconv,tmi-gkp-paper] [--groups 2,4,8]
    [--threads 1,2] [--batch-sizes 1,8] [--runtimes ort,openvino] [--rounds 30]

Random weights are enough for speed. A case is a network that a method has pruned. For every setting (runtime, threads,
batch size) these run in turn, in one loop: the dense network, the pruned one as planned (plain), with the forms that
the cost table predicts (predicted), with those measured in this setting (tuned), and what Torch-Pruning makes of the
network with as many multiply-adds, once with any number of channels and once with multiples of the channel block
(aligned).

Each case's result is kept in the output folder: run the same line again after an interruption, or with more of
anything, and only what is missing is measured. results.md, results.json and results.svg are written anew after each
case. Optional: pip install --no-deps torch-pruning==1.6.1, pip install openvino.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import statistics
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import roofline
import torch
import torch_pruning_baseline as rival
from realistic_results import (
    PLAIN,
    PREDICTED,
    THINNED,
    THINNED_ALIGNED,
    TUNED,
    CaseResult,
    Row,
    Setting,
    summary,
    write_results,
)
from torch import nn

import edgeprune
from edgeprune.bundles.bundle import Bundle
from edgeprune.bundles.names import DENSE_MODEL, MODEL
from edgeprune.deployment.lower_bundle import LowerOptions
from edgeprune.deployment.parity import measure_parity, random_inputs
from edgeprune.devices.this_machine import is_importable, this_machine_block
from edgeprune.errors import EdgepruneError
from edgeprune.exporters.to_onnx import to_onnx
from edgeprune.io.arrays import Array
from edgeprune.io.files import pretty_json, write_atomically
from edgeprune.lowering.gathers import count_gathers
from edgeprune.lowering.layers import grouped_layers
from edgeprune.onnx_files.inputs import input_specs
from edgeprune.onnx_files.macs import count_macs
from edgeprune.onnx_files.model import load_model, save_onnx
from edgeprune.pipeline.tune import tune as tune_bundle
from edgeprune.profiling.environment import current_environment, load_average
from edgeprune.profiling.measurement import interleave, median_interval, paired_ratios
from edgeprune.profiling.setup import random_feeds
from edgeprune.pruning.network import Network, load_network
from edgeprune.pruning.options import NetworkSource
from edgeprune.pruning.pruned import Pruned
from edgeprune.rewriting.fold import fold
from edgeprune.runners.base import RunOptions
from edgeprune.runners.registry import open_runner
from edgeprune.runners.target import OpenOptions, Source
from edgeprune.tuning.keys import structure_key
from edgeprune.tuning.options import TuneOptions

DENSE = "dense"
RESNETS = tuple(f"torchvision:resnet{depth}" for depth in (18, 34, 50, 101))
NETWORKS = (
    *RESNETS,
    "torchvision:vgg16_bn",
    "torchvision:densenet121",
    "torchvision:mobilenet_v2",
    "resnet56",
)
RUNTIMES = {"ort": "cpu", "openvino": "openvino-native"}
"""Runtime -> edgeprune's target."""


@dataclass(frozen=True)
class Method:
    """A method with its settings."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of `edgeprune.prune`."""
    groups: int = 0
    """0: as many as are asked for."""
    networks: tuple[str, ...] = ()
    """Empty: every network that is asked for."""
    only_3x3: bool = False
    """Leave layers with other kernels dense."""


GCONV: Mapping[str, Any] = {"method": "gconv", "include_shortcuts": True, "align": "auto"}
FREE: Mapping[str, Any] = {**GCONV, "settings": {"gather_share": 1}}
TMI: Mapping[str, Any] = {"method": "tmi-gkp", "rate": 0.4375, "settings": {"schemes": "spectral"}}
METHODS = (
    Method("gconv", FREE),
    Method("gconv-priced", GCONV),
    Method("gconv-tied", {**GCONV, "settings": {"gather_share": 0.02}}),
    Method("gconv-3x3", FREE, networks=("torchvision:resnet18", "torchvision:resnet50"), only_3x3=True),
    Method("tmi-gkp-paper", TMI, groups=8),
    Method("tmi-gkp-aligned", {**TMI, "align": "auto"}, groups=8),
)


@dataclass(frozen=True)
class Case:
    """One network, pruned."""

    network: str
    method: Method
    groups: int

    @property
    def name(self) -> str:
        return "-".join((self.network.replace(":", "-"), self.method.name, str(self.groups)))

    def prune(self, network: Network) -> Pruned:
        layers = network.model.named_modules()
        others = (name for name, m in layers if isinstance(m, nn.Conv2d) and m.kernel_size != (3, 3))
        skip = tuple(others) if self.method.only_3x3 else ()
        example = network.example_input(1)
        return edgeprune.prune(network.model, example, groups=self.groups, skip=skip, **self.method.arguments)


def cases(networks: Sequence[str], methods: Sequence[str], groups: Sequence[int]) -> Iterator[Case]:
    """Every case of these networks and methods, in this order."""
    for network in networks:
        for method in (method for method in METHODS if method.name in methods):
            if network in (method.networks or (network,)):
                yield from (Case(network, method, count) for count in ((method.groups,) if method.groups else groups))


QUICK = (*cases(RESNETS[:1], ["gconv"], [2, 4]), *cases(["resnet56"], ["tmi-gkp-paper"], []))
QUICK_SETTINGS: tuple[Setting, ...] = (Setting("ort", 1, 1),)


@dataclass(frozen=True)
class Variant:
    """One ONNX file of a case."""

    name: str
    path: Path
    parity: float
    macs: int
    """Under the plan, a sample."""
    executed_macs: int
    gathers: int
    forms: Mapping[str, int]
    structure: str
    """Equal for models that take equally long."""
    bounded_by: Path
    """The file whose layers the roofline bounds: the plan's own, without what its forms add."""

    @staticmethod
    def of(name: str, path: Path, parity: float, plan: Variant | None = None, forms: Mapping[str, int] = {}) -> Variant:
        """Of a file, under the plan of another variant, or its own."""
        model = load_model(path)
        executed = count_macs(model).total
        return Variant(
            name,
            path,
            parity,
            plan.macs if plan else executed,
            executed,
            count_gathers(model),
            forms,
            structure_key(model),
            plan.bounded_by if plan else path,
        )


class CaseModels:
    """The ONNX files of one case, in a folder that lives as long as it is worked on."""

    def __init__(self, case: Case, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        network = load_network(NetworkSource(case.network, random_init=True))
        pruned = case.prune(network)
        self.notes = pruned.result.notes
        self.left_out: dict[str, str] = {}
        bundle = edgeprune.export(pruned, folder / "bundle", as_planned=True)
        self.dense = Variant.of(DENSE, bundle.path(DENSE_MODEL), 0.0)
        plain = self._kept(bundle, PLAIN)
        grouped = {"grouped": len(grouped_layers(load_model(plain)))}
        self.plain = Variant.of(PLAIN, plain, _parity(bundle), forms=grouped)
        self.predicted = self._lowered(PREDICTED, LowerOptions())
        self.thinned = tuple(self._thinned(network))

    def tuned(self, setting: Setting) -> Variant:
        """With the forms measured in this setting; of a setting only until the next is asked for."""
        options = TuneOptions(setting.threads, setting.batch_size, RUNTIMES[setting.runtime], self.cache)
        return self._lowered(TUNED, LowerOptions(tune=options))

    def _lowered(self, name: str, options: LowerOptions) -> Variant:
        bundle, record = tune_bundle(self.folder / "bundle", options)
        for note in record.notes:
            print(f"  {name}: {note}", flush=True)
        forms: Counter[str] = Counter(layer.kind for layer in record.layers)
        forms += Counter({"pointwise": len(record.pointwise)})
        return Variant.of(name, self._kept(bundle, name), _parity(bundle), self.plain, forms)

    def _kept(self, bundle: Bundle, name: str) -> Path:
        """A copy of the bundle's model that outlives its next lowering."""
        return Path(shutil.copy(bundle.path(MODEL), self.folder / f"{name}.onnx"))

    def _thinned(self, network: Network) -> Iterator[Variant]:
        for name, round_to in ((THINNED, None), (THINNED_ALIGNED, this_machine_block())):
            if not rival.is_installed():
                self.left_out[name] = f"not installed: pip install --no-deps {rival.PACKAGE}"
                continue
            try:
                model = rival.thinned(network, self.plain.macs, round_to).model
                path = self.folder / f"{name}.onnx"
                yield Variant.of(name, path, _export(model, network, path))
            except EdgepruneError as error:
                self.left_out[name] = str(error)


def _parity(bundle: Bundle) -> float:
    assert bundle.manifest.parity is not None
    return bundle.manifest.parity.max_rel


def _export(model: nn.Module, network: Network, path: Path) -> float:
    """Write a thinned model, folded, to ONNX; returns how far the file is from it."""
    example = random_inputs(network.input_shape, seed=0)
    save_onnx(to_onnx(fold(model, torch.from_numpy(example)).module, torch.from_numpy(example)), path)
    with torch.no_grad():
        reference = model.double()(torch.from_numpy(example).double()).numpy()
    return measure_parity(path, {"random": example}, {"random": [reference]}).max_rel


@dataclass(frozen=True)
class Bench:
    """What one run of this script is asked."""

    out: Path
    settings: tuple[Setting, ...]
    rounds: int
    seconds: float

    def run(self, case: Case) -> None:
        """Measure what the case's file lacks of the settings."""
        folder = self.out / "cases"
        result = CaseResult.load(folder, case.name) or CaseResult(case.name, _machine())
        missing = [setting for setting in self.settings if setting not in result.settings()]
        if not missing or case.name in result.left_out:
            print(f"{case.name}: is there already", flush=True)
            return
        print(f"{case.name}: pruning and exporting", flush=True)
        with tempfile.TemporaryDirectory(prefix="edgeprune-") as temporary:
            try:
                models = CaseModels(case, Path(temporary), self.out / "tuning.json")
                result = msgspec.structs.replace(result, notes=models.notes, left_out=models.left_out)
                for what, why in models.left_out.items():
                    print(f"  {what} left out: {why}", flush=True)
                for setting in missing:
                    print(f"  tuning: {setting}", flush=True)
                    variants = (models.plain, models.predicted, models.tuned(setting), *models.thinned)
                    rows = tuple(self.measure(case, setting, models.dense, variants))
                    result = msgspec.structs.replace(result, rows=(*result.rows, *rows))
                    result.save(folder)
            except EdgepruneError as error:
                print(f"  left out: {error}", flush=True)
                msgspec.structs.replace(result, left_out={case.name: str(error)}).save(folder)

    def measure(self, case: Case, setting: Setting, dense: Variant, variants: Sequence[Variant]) -> Iterator[Row]:
        """All variants beside the dense network, in one loop; models of the same structure are run once."""
        timed: dict[str, Variant] = {}
        for variant in (dense, *variants):
            timed.setdefault(variant.structure, variant)
        load = load_average()
        with ExitStack() as stack:
            runs = {structure: _prepare(variant.path, setting, stack) for structure, variant in timed.items()}
            measured = interleave(runs, warmup=5, iterations=self.rounds, time_limit_s=self.seconds)
        roof = self.roofline(setting.threads)
        base, bound = measured[dense.structure], roof.bound_ms(load_model(dense.path), setting.batch_size)
        for variant in variants:
            own = measured[variant.structure]
            ratios = paired_ratios(base, own)
            theoretical, realistic = dense.macs / variant.macs, statistics.median(ratios)
            allowed = bound / roof.bound_ms(load_model(variant.bounded_by), setting.batch_size)
            stand_in = timed[variant.structure].name
            yield Row(
                case.network,
                case.method.name,
                case.groups,
                setting,
                variant.name,
                theoretical=theoretical,
                realistic=realistic,
                interval=median_interval(ratios),
                efficiency=realistic / theoretical,
                bound_speedup=allowed,
                realistic_over_bound=realistic / allowed,
                dense_ms=base.p50_ms,
                p50_ms=own.p50_ms,
                rounds=own.n,
                noise=max(base.noise, own.noise),
                load=load,
                macs=variant.macs,
                executed_macs=variant.executed_macs,
                gathers=variant.gathers,
                parity=variant.parity,
                forms=dict(variant.forms),
                same_as="" if stand_in == variant.name else stand_in,
            )
            print(f"  {setting}: {variant.name} {realistic:.2f}x of {theoretical:.2f}x", flush=True)

    def roofline(self, threads: int) -> roofline.Roofline:
        """Measured once for each number of threads."""
        path = self.out / f"roofline-{threads}.json"
        if not path.is_file():
            write_atomically(path, pretty_json(roofline.measure_roofline(threads, this_machine_block())))
        return msgspec.json.decode(path.read_bytes(), type=roofline.Roofline)


def _prepare(path: Path, setting: Setting, stack: ExitStack) -> Callable[[], object]:
    """One run of a model, loaded for the setting until the stack closes."""
    run = RunOptions(threads=setting.threads, spinning=False)
    runner = open_runner(RUNTIMES[setting.runtime], Source(path), OpenOptions(run))
    stack.callback(runner.close)
    (values,) = _inputs(path, setting)
    return runner.prepared({runner.input_names[0]: values})


def _inputs(path: Path, setting: Setting) -> Sequence[Array]:
    return random_feeds(input_specs(load_model(path)), setting.batch_size, seed=0)


def _machine() -> str:
    environment = current_environment(threads=1)
    versions = {**environment.runtime_versions}
    if rival.is_installed():
        versions["torch-pruning"] = metadata.version("torch-pruning")
    listed = (f"{name} {version}" for name, version in versions.items())
    return ", ".join((environment.cpu, f"{environment.cores} cores", environment.platform, *listed))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    methods = tuple(method.name for method in METHODS)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--quick", action="store_true", help="a subset; --networks to --runtimes do not count")
    parser.add_argument(
        "--networks", type=_words, default=NETWORKS, help=f"as --arch spells them: {','.join(NETWORKS)}"
    )
    parser.add_argument("--methods", type=_words, default=methods, help=",".join(methods))
    parser.add_argument("--groups", type=_numbers, default=(2, 4, 8), help="of gconv; tmi-gkp has its paper's 8")
    parser.add_argument("--threads", type=_numbers, default=(1, 2))
    parser.add_argument("--batch-sizes", type=_numbers, default=(1, 8))
    parser.add_argument("--runtimes", type=_words, default=tuple(RUNTIMES), help=",".join(RUNTIMES))
    parser.add_argument("--rounds", type=int, default=30, help="runs of every model, unless --seconds end first")
    parser.add_argument("--seconds", type=float, default=90, help="at most, for the measured rounds of one setting")
    asked = parser.parse_args(arguments)
    for what, known in (("methods", methods), ("runtimes", RUNTIMES)):
        if unknown := set(getattr(asked, what)) - set(known):
            parser.error(f"--{what}: unknown {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    if asked.quick:
        chosen, settings = QUICK, QUICK_SETTINGS
    else:
        chosen = tuple(cases(asked.networks, asked.methods, asked.groups))
        settings = tuple(
            Setting(runtime, threads, batch)
            for threads in asked.threads
            for batch in asked.batch_sizes
            for runtime in asked.runtimes
        )
    if not chosen:
        parser.error("no method that was asked for is measured on these networks")
    if not is_importable("openvino") and any(setting.runtime == "openvino" for setting in settings):
        print("openvino left out: not installed: pip install openvino", flush=True)
        settings = tuple(setting for setting in settings if setting.runtime != "openvino")
    bench = Bench(asked.out, settings, asked.rounds, asked.seconds)
    failed = []
    for case in chosen:
        try:
            bench.run(case)
        except Exception:  # of hours of work, only this case is lost; the next run tries it again
            traceback.print_exc()
            failed.append(case.name)
        rows = write_results(asked.out / "cases", asked.out)
    print(*summary(rows), sep="\n")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in _words(text))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the large files of a case are deleted
    main()
