"""What one device does in a request, as data: which subgraphs it runs on which tensors, what it waits for, and what it
sends where as soon as it has it.

A partition becomes one flow a device. The whole model on one device is the same thing with a single step: the host
sends the inputs there, and the outputs come back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from edgeprune.bundles.names import MODEL
from edgeprune.io.arrays import Array
from edgeprune.onnx_files.graph import TensorSpec
from edgeprune.partitioning.manifest import PartitionManifest

SPLIT = "split"


@dataclass(frozen=True)
class Step:
    """One subgraph."""

    stage: int
    file: str
    reads: tuple[TensorSpec, ...]
    makes: tuple[str, ...]


@dataclass(frozen=True)
class Arrival:
    """A tensor that another device sends."""

    sender: str
    stage: int
    """The first stage here that reads it."""
    spec: TensorSpec | None
    """None if no step here reads it: it is passed on, or an output."""


@dataclass(frozen=True)
class Sending:
    """Where a tensor goes."""

    to: str
    stage: int


@dataclass(frozen=True)
class Flow:
    """One device's part of a request."""

    device: str
    steps: tuple[Step, ...]
    arrivals: Mapping[str, Arrival]
    """Tensor -> where it comes from."""
    sendings: Mapping[str, tuple[Sending, ...]]
    """Tensor -> the devices that need it, each once."""
    outputs: tuple[str, ...] = ()
    """The network's outputs, on the device that holds them in the end."""

    @property
    def peers(self) -> frozenset[str]:
        """The devices that it exchanges tensors with."""
        senders = {arrival.sender for arrival in self.arrivals.values()}
        return frozenset(senders | {sending.to for sendings in self.sendings.values() for sending in sendings})

    def uses(self) -> Counter[str]:
        """How often each tensor is read here."""
        return Counter([spec.name for step in self.steps for spec in step.reads] + list(self.outputs))


SpecsOf = Callable[[str], tuple[tuple[TensorSpec, ...], tuple[str, ...]]]
"""A subgraph's file -> its inputs, and the names of its outputs."""


def split_flow(manifest: PartitionManifest, device: str, specs_of: SpecsOf) -> Flow:
    """The device's part of a partition."""
    steps = tuple(
        Step(stage.index, stage.subgraphs[device], *specs_of(stage.subgraphs[device]))
        for stage in manifest.stages
        if device in stage.subgraphs
    )
    read = {spec.name: spec for step in reversed(steps) for spec in step.reads}
    arrivals: dict[str, Arrival] = {}
    sendings: dict[str, tuple[Sending, ...]] = {}
    known = set()
    for move in sorted(manifest.transfers, key=lambda move: move.stage):
        if (move.to, move.tensor) in known:
            continue  # what a device was sent, it keeps until it has read it for the last time
        known.add((move.to, move.tensor))
        if move.to == device:
            arrivals[move.tensor] = Arrival(move.from_, move.stage, read.get(move.tensor))
        if move.from_ == device:
            sendings[move.tensor] = (*sendings.get(move.tensor, ()), Sending(move.to, move.stage))
    outputs = tuple(info.name for info in manifest.outputs) if device == manifest.host else ()
    return Flow(device, steps, arrivals, sendings, outputs)


def whole_plan(device: str) -> str:
    """The name of the plan in which one device runs the whole model."""
    return f"whole:{device}"


def whole_flow(
    device: str, host: str, at: str, inputs: tuple[TensorSpec, ...], outputs: tuple[str, ...], file: str = MODEL
) -> Flow:
    """The part of `device` (the host, or `at`) when the whole model runs at device `at`."""
    step = Step(0, file, inputs, outputs)
    if device == host == at:
        return Flow(device, (step,), {}, {}, outputs)
    if device == at:
        arrivals = {spec.name: Arrival(host, 0, spec) for spec in inputs}
        return Flow(device, (step,), arrivals, {name: (Sending(host, 1),) for name in outputs})
    sendings = {spec.name: (Sending(at, 0),) for spec in inputs}
    return Flow(device, (), {name: Arrival(at, 1, None) for name in outputs}, sendings, outputs)


def refusal(flow: Flow, sender: str, stage: int, name: str, array: Array) -> str:
    """Why a tensor that came has no place in a flow; empty if it has."""
    arrival = flow.arrivals.get(name)
    if arrival is None:
        return f"no step of {flow.device} waits for the tensor {name[:100]!r}"
    if arrival.sender != sender:
        return f"{name!r} comes from {arrival.sender}, not from {sender}"
    if arrival.stage != stage:
        return f"{name!r} is for stage {arrival.stage}; stage {stage} is unknown here"
    spec = arrival.spec
    if spec is not None and (spec.dtype != array.dtype.name or not _fits(array.shape, spec)):
        return f"{name!r} is {array.dtype} {array.shape}, expected {spec.dtype} {spec.shape}"
    return ""


@dataclass
class Progress:
    """How far one attempt of a request is on this device."""

    flow: Flow
    held: dict[str, Array] = field(default_factory=dict)
    next_step: int = 0
    compute_us: int = 0
    sent_bytes: int = 0
    results: dict[str, Array] = field(default_factory=dict)
    uses: Counter[str] = field(default_factory=Counter)
    seen: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.uses = self.flow.uses()

    def hold(self, arrays: Iterable[tuple[str, Array]]) -> list[tuple[Sending, str, Array]]:
        """Take tensors that were made here or that came; returns what is to be sent now."""
        sent = []
        for name, array in arrays:
            if name in self.seen:
                continue
            self.seen.add(name)
            sent += [(sending, name, array) for sending in self.flow.sendings.get(name, ())]
            if name in self.flow.outputs:
                self.results[name] = array
                self.uses[name] -= 1
            if self.uses[name] > 0:
                self.held[name] = array
        return sent

    @property
    def ready(self) -> Step | None:
        """The step that can run now."""
        if self.next_step == len(self.flow.steps):
            return None
        step = self.flow.steps[self.next_step]
        return step if all(spec.name in self.held for spec in step.reads) else None

    def take(self, step: Step) -> dict[str, Array]:
        """The step's inputs; those that nothing here reads any more are let go of."""
        feeds = {spec.name: self.held[spec.name] for spec in step.reads}
        for name in feeds:
            self.uses[name] -= 1
            if self.uses[name] <= 0:
                del self.held[name]
        self.next_step += 1
        return feeds

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to run, to wait for, or to pass on."""
        flow = self.flow
        if self.next_step < len(flow.steps):
            return False
        return len(self.results) == len(flow.outputs) if flow.outputs else self.seen >= flow.arrivals.keys()


def _fits(shape: tuple[int, ...], spec: TensorSpec) -> bool:
    if not spec.states_shape:
        return True
    if len(shape) != len(spec.shape):
        return False
    return all(size == dim or not isinstance(dim, int) for size, dim in zip(shape, spec.shape, strict=True))
