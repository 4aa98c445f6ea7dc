"""What every runner offers, and the targets that edgeprune knows. A runner holds one loaded model and runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from edgeprune.errors import InputError, unknown_name
from edgeprune.io.arrays import Array, Feeds


class NodeTime(NamedTuple):
    """Time of one node as the runtime runs it. A runner's `original_node` tells which node of the file it was."""

    name: str
    op_type: str
    provider: str
    mean_ms: float
    """Of one run: the median of all where the runtime tells them, elsewhere the mean."""


class Runner(Protocol):
    """A model on one target. The same methods for every runtime."""

    @property
    def target(self) -> str:
        """The target's short name, such as `cpu`."""

    @property
    def provider(self) -> str:
        """What really runs the model, as the runtime spells it."""

    @property
    def input_names(self) -> tuple[str, ...]: ...

    @property
    def output_names(self) -> tuple[str, ...]: ...

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Outputs by name; InputError if an input is missing, unknown, or of the wrong shape or type."""

    def providers(self) -> dict[str, int]:
        """What really runs the model's nodes -> how many of them; empty where the runtime does not tell."""

    def close(self) -> None:
        """Free the model. The runner cannot be used afterwards."""


class NodeTimer(Protocol):
    """A model in which the runtime takes the time of every node, to be run in turn with others. `finish` ends it."""

    def run(self) -> None: ...

    def finish(self, *, warmup: int = 2) -> Sequence[NodeTime]:
        """The median time of every node over all runs but the first `warmup`, in order of execution."""


class RecordedRunner(Protocol):
    """A `ProfiledRunner` on which the times of nodes can be taken run by run."""

    def recorder(self, feeds: Feeds) -> NodeTimer: ...


class ProfiledRunner(Runner, Protocol):
    """A runner that can be timed closely, and tells the times of its nodes."""

    def prepared(self, feeds: Feeds) -> Callable[[], object]:
        """One run on these inputs as a call with nothing else in it: what can be checked is checked now."""

    def profile_nodes(self, feeds: Feeds, iterations: int) -> Sequence[NodeTime]: ...

    def original_node(self, name: str) -> str:
        """The ONNX model's node that a timed node stands for; empty for a reordering of data."""


MOST_THREADS = 1024
"""More than any machine has cores: starting them would take minutes."""


@dataclass(frozen=True)
class RunOptions:
    """How to run a model."""

    threads: int = 1
    """Threads that work inside one operation, the calling thread included."""
    spinning: bool = True
    """Whether idle threads wait by spinning: faster alone, harmful where several sessions share the cores."""
    pin: tuple[int, ...] = ()
    """Cores (numbered from 0), one a thread; the first is for the calling thread. Empty: the system decides."""
    graph_optimization: str = "all"
    """`disabled`, `basic`, `extended`, `layout` or `all`."""
    profiling_prefix: str = ""
    """Where the runtime writes its own profile, as the start of a file name. Empty: no profile."""
    optimized_model: str = ""
    """Where the runtime writes the model as it runs it. Empty: nowhere."""
    provider_options: tuple[tuple[str, str], ...] = ()
    """Options of the provider, spelt as the runtime spells them, such as ("trt_fp16_enable", "1")."""

    def check(self) -> None:
        """InputError if the options make no sense on any machine."""
        if not 1 <= self.threads <= MOST_THREADS:
            raise InputError(f"--threads {self.threads} is out of range", expected=f"1 to {MOST_THREADS}")
        if self.graph_optimization not in OPTIMIZATION_LEVELS:
            raise unknown_name("graph optimization level", self.graph_optimization, OPTIMIZATION_LEVELS)
        if self.pin and len(self.pin) != self.threads:
            raise InputError(
                f"{len(self.pin)} cores to pin to for {self.threads} threads",
                expected="one core for each thread",
                remedy="name as many cores as threads",
            )


OPTIMIZATION_LEVELS = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "layout": "ORT_ENABLE_LAYOUT",
    "all": "ORT_ENABLE_ALL",
}


@dataclass(frozen=True)
class TargetState:
    """Whether a target can be used on this machine."""

    name: str
    provider: str
    available: bool
    reason: str
    """Why it is not available, and what to install; or what it will use."""
