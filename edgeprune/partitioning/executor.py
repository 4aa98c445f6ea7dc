"""Run a split network on this machine: one worker thread a device, as a rehearsal of the real devices.

Tensors pass through memory, from the device that has one to the device that waits for it. Each device's subgraphs run
in their own ONNX Runtime sessions, idle threads asleep. All devices wait for each other before each stage.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edgeprune.errors import InputError
from edgeprune.io.arrays import Array, Feeds
from edgeprune.onnx_files.graph import TensorSpec
from edgeprune.partitioning.manifest import Stage, load_partition
from edgeprune.runners.base import RunOptions
from edgeprune.runners.feeds import check_feeds
from edgeprune.runners.onnxruntime.runner import OrtRunner


@dataclass(frozen=True)
class RunStats:
    """What one inference cost."""

    latency_ms: float
    device_ms: dict[str, float]
    """Device -> time in its subgraphs."""
    stage_ms: tuple[float, ...]
    """Wall time of each stage."""
    sent_bytes: dict[str, int]
    """Device -> bytes that it was sent or that it sent."""

    @property
    def transferred_bytes(self) -> int:
        """All bytes that were moved between devices."""
        return sum(self.sent_bytes.values()) // 2  # each counts at both ends


class LocalExecutor:
    """A split network, ready to run. Use as a context manager, or call `close`."""

    def __init__(self, folder: str | Path, threads: int = 1, *, cores: Sequence[int] = ()) -> None:
        """Load a split network with `threads` threads a device.

        `cores`: one core a device, to pin its thread to (then `threads` must be 1); empty: the system decides.
        InputError if the folder holds no partition that can be run.
        """
        partition = load_partition(folder)
        self.manifest = partition.manifest
        devices = [entry.name for entry in self.manifest.devices]
        if cores and (threads != 1 or len(cores) != len(devices)):
            raise InputError(
                f"{len(cores)} cores for {len(devices)} devices with {threads} threads each",
                expected="one core and one thread for each device",
            )
        pins: list[tuple[int, ...]] = [(core,) for core in cores] or [()] * len(devices)
        self._specs = tuple(TensorSpec(info.name, info.shape, info.dtype) for info in self.manifest.inputs)
        self._runners = {
            name: OrtRunner(partition.models[name], RunOptions(threads, spinning=False, pin=core))
            for entry, core in zip(self.manifest.devices, pins, strict=True)
            for name in entry.subgraphs
        }
        self._workers = {name: ThreadPoolExecutor(1, thread_name_prefix=f"edgeprune-{name}") for name in devices}
        self._last: RunStats | None = None

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(info.name for info in self.manifest.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(info.name for info in self.manifest.outputs)

    @property
    def last_run(self) -> RunStats:
        """Cost of the last inference; ValueError before the first."""
        if self._last is None:
            raise ValueError("nothing has been run yet")
        return self._last

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers and free the sessions; a second call does nothing."""
        for worker in self._workers.values():
            worker.shutdown()
        for runner in self._runners.values():
            runner.close()
        self._workers, self._runners = {}, {}

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Outputs of one inference by name; InputError if an input is missing, unknown, or of a wrong shape or type."""
        if not self._workers:
            raise ValueError("the executor is closed")
        check_feeds(feeds, self._specs)
        host = self.manifest.host
        held: dict[str, dict[str, Array]] = {name: {} for name in self._workers}
        held[host] = dict(feeds)
        device_ms, sent = dict.fromkeys(self._workers, 0.0), dict.fromkeys(self._workers, 0)
        stage_ms = []
        start = time.perf_counter()
        for stage in self.manifest.stages:
            stage_start = time.perf_counter()
            self._move(stage, held, sent)
            for device, (outputs, milliseconds) in self._run_stage(stage, held).items():
                held[device].update(outputs)
                device_ms[device] += milliseconds
            stage_ms.append((time.perf_counter() - stage_start) * 1e3)
        self._last = RunStats((time.perf_counter() - start) * 1e3, device_ms, tuple(stage_ms), sent)
        return {info.name: held[host][info.name] for info in self.manifest.outputs}

    def _move(self, stage: Stage, held: dict[str, dict[str, Array]], sent: dict[str, int]) -> None:
        for move in self.manifest.transfers:
            if move.stage == stage.index:
                tensor = held[move.from_][move.tensor]
                held[move.to][move.tensor] = tensor
                for device in (move.from_, move.to):
                    sent[device] += tensor.nbytes

    def _run_stage(self, stage: Stage, held: dict[str, dict[str, Array]]) -> dict[str, tuple[dict[str, Array], float]]:
        """Run a stage's subgraphs at the same time; outputs and milliseconds by device."""
        pending = {
            device: self._workers[device].submit(self._run_subgraph, self._runners[name], held[device])
            for device, name in stage.subgraphs.items()
        }
        return {device: future.result() for device, future in pending.items()}

    @staticmethod
    def _run_subgraph(runner: OrtRunner, held: dict[str, Array]) -> tuple[dict[str, Array], float]:
        start = time.perf_counter()
        outputs = runner.run({name: held[name] for name in runner.input_names})
        return outputs, (time.perf_counter() - start) * 1e3
