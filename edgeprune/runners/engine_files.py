"""Engines on disk: a plan beside a small JSON that says for which GPU, version, network and batch sizes it was built.

A plan is code for one GPU and one version of TensorRT. It is used again only where all of that agrees, and the file is
the one that was written.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgeprune import progress
from edgeprune.bundle import pretty_json, write_atomically
from edgeprune.runners.batch_range import BatchRange

TIMING_CACHE = "timing.cache"


class EngineFacts(msgspec.Struct, frozen=True):
    """What an engine was built for: all of it must agree for the engine to be used again."""

    gpu: str
    compute_capability: str
    tensorrt: str
    precision: str
    batches: BatchRange
    model_sha256: str
    """Of the ONNX model with its weights, before it is converted to another precision."""

    def differences(self, wanted: EngineFacts) -> list[str]:
        """Phrases on what of `wanted` this engine is not built for."""
        named = {
            "gpu": "GPU",
            "compute_capability": "compute capability",
            "tensorrt": "TensorRT",
            "precision": "precision",
            "batches": "batch size",
        }
        phrases = [
            f"{words} {getattr(self, field)}, not {getattr(wanted, field)}"
            for field, words in named.items()
            if getattr(self, field) != getattr(wanted, field)
        ]
        return phrases if self.model_sha256 == wanted.model_sha256 else [*phrases, "another ONNX model"]


class EngineRecord(msgspec.Struct, frozen=True):
    """The JSON beside a plan."""

    built_for: EngineFacts
    plan_sha256: str


@dataclass(frozen=True)
class EngineFiles:
    """The engines of one folder, which is made when it is first needed."""

    folder: Path

    def plan_path(self, name: str, facts: EngineFacts) -> Path:
        """One file for each precision and range of batch sizes, so that they do not displace each other."""
        sizes = facts.batches
        batch = "-".join(str(size) for size in sorted({sizes.least, sizes.best, sizes.most}))
        return self.folder / f"{name}-{facts.precision}-batch-{batch}.plan"

    def load(self, name: str, wanted: EngineFacts) -> bytes | None:
        """The plan that was saved for just this; None if there is none, with a note to the user if there is another."""
        path = self.plan_path(name, wanted)
        try:
            record = msgspec.json.decode(_record_path(path).read_bytes(), type=EngineRecord)
            plan = path.read_bytes()
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            progress.note(f"{path}: the saved engine cannot be read ({error}): building it again")
            return None
        reasons = record.built_for.differences(wanted)
        if hashlib.sha256(plan).hexdigest() != record.plan_sha256:
            reasons.append("another file than the one beside it")
        if reasons:
            progress.note(f"{path}: the saved engine is for {'; for '.join(reasons)}: building it again")
            return None
        return plan

    def save(self, name: str, facts: EngineFacts, plan: bytes) -> Path:
        """Write the plan, then what it is for: a plan without its record, or with an older one, is not used."""
        path = self.plan_path(name, facts)
        write_atomically(path, plan)
        record = EngineRecord(facts, hashlib.sha256(plan).hexdigest())
        write_atomically(_record_path(path), pretty_json(record))
        return path

    def timing_cache(self) -> bytes:
        """What earlier builds in this folder measured; empty if there is nothing to be read."""
        try:
            return (self.folder / TIMING_CACHE).read_bytes()
        except OSError:
            return b""

    def save_timing_cache(self, data: bytes) -> None:
        write_atomically(self.folder / TIMING_CACHE, data)


def _record_path(plan: Path) -> Path:
    return plan.with_name(plan.name + ".json")
