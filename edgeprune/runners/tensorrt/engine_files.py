"""Engines on disk: a plan beside a small JSON that says for which GPU, version, network and batch sizes it was built.

A plan is machine code for one GPU and one version of TensorRT, and loading one runs it: so a plan is used again only
where all of that agrees, and only if this user wrote it. A folder may come from anywhere; it is sealed with a key that
lies in the user's cache folder.
"""

from __future__ import annotations

import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgeprune.errors import InputError, first_line
from edgeprune.io import progress
from edgeprune.io.files import pretty_json, write_atomically
from edgeprune.io.user_cache import cache_folder
from edgeprune.runners.tensorrt.batch_range import BatchRange

KEY, TIMING_CACHE = "engines.key", "tensorrt-timing.cache"
"""In the user's cache folder."""


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
            f"is for {words} {getattr(self, field)}, not {getattr(wanted, field)}"
            for field, words in named.items()
            if getattr(self, field) != getattr(wanted, field)
        ]
        return phrases if self.model_sha256 == wanted.model_sha256 else [*phrases, "is for another ONNX model"]


class EngineRecord(msgspec.Struct, frozen=True):
    """The JSON beside a plan."""

    built_for: EngineFacts
    seal: str
    """HMAC-SHA256 of the plan under the user's key."""


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
            progress.note(f"{path}: the saved engine cannot be read ({first_line(error)}): building it again")
            return None
        reasons = record.built_for.differences(wanted)
        if not hmac.compare_digest(_seal(plan), record.seal):
            reasons.append("is not as this user wrote it")
        if reasons:
            progress.note(f"{path}: the saved engine {'; '.join(reasons)}: building it again")
            return None
        return plan

    def save(self, name: str, facts: EngineFacts, plan: bytes) -> None:
        """Write the plan, then what it is for: a plan without its record, or with an older one, is not used."""
        path = self.plan_path(name, facts)
        write_atomically(path, plan)
        write_atomically(_record_path(path), pretty_json(EngineRecord(facts, _seal(plan))))


def load_timing_cache() -> bytes:
    """What earlier builds of this user have measured; empty if there is nothing to be read."""
    try:
        return (cache_folder() / TIMING_CACHE).read_bytes()
    except OSError:
        return b""


def save_timing_cache(data: bytes) -> None:
    """For later builds; a cache that cannot be written is left out."""
    try:
        write_atomically((cache_folder() / TIMING_CACHE), data)
    except InputError:
        return


def _record_path(plan: Path) -> Path:
    return plan.with_name(plan.name + ".json")


def _seal(plan: bytes) -> str:
    return hmac.digest(_key(), plan, "sha256").hex()


def _key() -> bytes:
    """The user's own, made when it is first needed. Where it cannot be kept, one that no plan was sealed with."""
    path = cache_folder() / KEY
    fresh = secrets.token_bytes(32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(fresh)
        return fresh
    except FileExistsError:
        pass
    except OSError:
        return fresh
    try:
        known = path.read_bytes()
    except OSError:
        return fresh
    return known if len(known) == len(fresh) else fresh  # one that was not written to its end anybody could guess
