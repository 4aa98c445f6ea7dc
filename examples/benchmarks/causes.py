"""How many causes the profiler names right, on networks that are slow for one reason only, that is known.

python examples/benchmarks/causes.py [--set tuned|blind|second|all] [--only WORDS] [--json FILE]
python examples/benchmarks/causes.py --set tuned --record tests/profiling/explaining/cause_times.json

Every case is profiled as `edgeprune profile` does it, with the peaks of the device profile nearest to this machine. The
rules were tuned on one set of cases; the blind set was built without knowledge of them, and so was the second one,
after they had been mended by the blind one. The exit status is 3 if fewer than 95% of a set are named right. --record
keeps the times of every node, which the tests replay; this machine should be idle then.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import blind_cause_cases
import msgspec
import second_blind_cause_cases
from cause_cases import LAYER, Case, cases

from edgeprune.io.arrays import Feeds
from edgeprune.io.files import pretty_json
from edgeprune.profiling.explaining.facts import MachineFacts
from edgeprune.profiling.layers import layer_rows, time_layers
from edgeprune.profiling.profiler import TimedOrtRunner, input_specs, machine_facts
from edgeprune.profiling.setup import Batch, Pair, ProfileOptions, Which, random_feeds
from edgeprune.runners.base import RunOptions

WANTED = 0.95
"""Share of the causes that must be right."""
RESTLESS = (1.5, 0.8, 1.3, 1.9, 0.7)
"""How the times of a restless machine vary from turn to turn."""
SETS = {"tuned": cases, "blind": blind_cause_cases.cases, "second": second_blind_cause_cases.cases}


class Node(msgspec.Struct, frozen=True, array_like=True):
    """A timed node, as a runner gives it, and the node of the ONNX file that it stands for."""

    name: str
    op_type: str
    provider: str
    mean_ms: float
    original: str


class Recorded(msgspec.Struct, frozen=True):
    """The times of one model's nodes."""

    nodes: tuple[Node, ...]
    """Of the first turn."""
    turns_ms: tuple[tuple[float, ...], ...]
    """Every turn's times of these nodes."""

    @staticmethod
    def of(turns: Sequence[Sequence[Node]]) -> Recorded:
        return Recorded(tuple(turns[0]), tuple(tuple(round(node.mean_ms, 4) for node in turn) for turn in turns))

    def turns(self) -> Iterator[list[Node]]:
        for times in self.turns_ms:
            pairs = zip(self.nodes, times, strict=True)
            yield [msgspec.structs.replace(node, mean_ms=milliseconds) for node, milliseconds in pairs]


Times = dict[str, Recorded]
"""dense, pruned -> the times of its nodes."""


class Verdict(msgspec.Struct, frozen=True):
    """What was said of one case's layer."""

    case: str
    wanted: str
    named: str
    cause: str
    pruned_ms: float | None
    efficiency: float | None
    bound_share: float | None

    @property
    def is_right(self) -> bool:
        return self.wanted == self.named


class Tricked:
    """A runner's nodes with what no model brings about, kept as they are given."""

    def __init__(self, runner: TimedOrtRunner, case: Case, which: Which) -> None:
        self._runner, self._case, self._which = runner, case, which
        self.turns: list[list[Node]] = []

    @property
    def provider(self) -> str:
        return "WantedExecutionProvider" if self._case.trick == "fallback" else self._runner.provider

    def profile_nodes(self, feeds: Feeds, iterations: int) -> list[Node]:
        timed = self._runner.profile_nodes(feeds, iterations)
        nodes = [Node(*node, self._runner.original_node(node.name)) for node in timed]
        self.turns.append([self._tricked(node) for node in nodes])
        return self.turns[-1]

    def original_node(self, name: str) -> str:
        return self._runner.original_node(name)

    def _tricked(self, node: Node) -> Node:
        is_layer = node.original == LAYER
        if self._case.trick == "fallback" and not is_layer:
            return msgspec.structs.replace(node, provider=self.provider)
        if self._case.trick == "noise" and is_layer and self._which == "pruned":
            return msgspec.structs.replace(node, mean_ms=node.mean_ms * RESTLESS[len(self.turns)])
        return node


class Replayed:
    """A runner of recorded times."""

    def __init__(self, recorded: Recorded, provider: str) -> None:
        self._turns, self.provider = recorded.turns(), provider
        self._original = {node.name: node.original for node in recorded.nodes}

    def profile_nodes(self, feeds: Feeds, iterations: int) -> list[Node]:
        return next(self._turns)

    def original_node(self, name: str) -> str:
        return self._original[name]


def measure(case: Case) -> tuple[Verdict, Times]:
    """Run a case here: what is said of it, and the times that it is said from."""
    pair = case.build()
    models = {which: model for which, model in (("dense", pair.dense), ("pruned", pair.pruned)) if model is not None}
    options = RunOptions(threads=case.threads, spinning=False)
    runners = {name: Tricked(TimedOrtRunner(model, options), case, name) for name, model in models.items()}
    verdict = judge(case, pair, runners, machine_facts("cpu", case.threads))
    return verdict, {name: Recorded.of(runner.turns) for name, runner in runners.items()}


def replay(case: Case, times: Times, machine: MachineFacts) -> Verdict:
    """What is said of a case from recorded times."""
    foreign = "WantedExecutionProvider" if case.trick == "fallback" else "CPUExecutionProvider"
    return judge(case, case.build(), {name: Replayed(own, foreign) for name, own in times.items()}, machine)


def judge(case: Case, pair: Pair, runners: Mapping[str, Any], machine: MachineFacts) -> Verdict:
    batch = Batch.of(pair, "cpu", 1, machine)
    values = random_feeds(input_specs(pair.pruned), 1, 0)
    feeds = {name: {"input": values[0]} for name in runners}
    times = time_layers(runners, feeds, batch, ProfileOptions(iterations=100, threads=case.threads))
    row = next(row for row in layer_rows(batch, times) if row.name == LAYER)
    return Verdict(case.name, case.kind, row.cause_kind, row.cause, row.pruned_ms, row.efficiency, row.bound_share)


def table(verdicts: Sequence[Verdict]) -> str:
    """One line a case; wrong ones are marked."""
    lines = ["| | case | cause | named | ms | efficiency | of bound | in words |", "|---|---|---|---|---|---|---|---|"]
    for v in verdicts:
        figures = (f"{x:.2f}" if x is not None else "" for x in (v.pruned_ms, v.efficiency, v.bound_share))
        mark = "" if v.is_right else "WRONG"
        lines.append(f"| {mark} | {v.case} | {v.wanted} | {v.named} | {' | '.join(figures)} | {v.cause} |")
    right = sum(verdict.is_right for verdict in verdicts)
    return "\n".join([*lines, f"{right} of {len(verdicts)} right ({right / len(verdicts):.0%})"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=(*SETS, "all"), default="all", help="whose cases (default: all)")
    parser.add_argument("--only", default="", help="cases whose cause or name holds these words")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--record", type=Path)
    asked = parser.parse_args(arguments)
    sets = SETS if asked.set == "all" else {asked.set: SETS[asked.set]}
    verdicts: list[Verdict] = []
    recorded: dict[str, Times] = {}
    are_good = True
    for name, built in sets.items():
        own: list[Verdict] = []
        for case in built():
            if asked.only in f"{case.kind} {case.name}":
                verdict, recorded[case.name] = measure(case)
                own.append(verdict)
        print(f"{name}\n{table(own)}" if own else f"{name}: no case holds these words")
        are_good &= sum(verdict.is_right for verdict in own) >= WANTED * len(own)
        verdicts += own
    if asked.json:
        asked.json.write_bytes(pretty_json(verdicts))
    if asked.record:
        asked.record.write_bytes(msgspec.json.encode(recorded) + b"\n")
    return 0 if are_good else 3


if __name__ == "__main__":
    sys.exit(main())
