"""What is profiled: the files of its networks, and what is known of their layers.

A bundle and loose ONNX files look alike from here on. A subject holds no model, so that it can be handed to a fresh
process; models are loaded, and torch is imported, when they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.bundles.bundle import Bundle, open_bundle
from edgeprune.bundles.names import DENSE_MODEL, DENSE_WEIGHTS, LOWERING, MODEL, PLAIN_MODEL, PLAN, PROFILE, WEIGHTS
from edgeprune.errors import InputError
from edgeprune.lowering.record import LoweringRecord, load_lowering
from edgeprune.onnx_files.inputs import with_input_size
from edgeprune.onnx_files.model import load_model, save_onnx
from edgeprune.plans.plan import load_plan
from edgeprune.profiling.setup import Pair, Which
from edgeprune.runners.registry import require_source
from edgeprune.runners.target import Source, Target

if TYPE_CHECKING:
    from torch import nn

_POINTWISE = "written as a 1x1 convolution, with which the whole network was faster"


@dataclass(frozen=True)
class Subject:
    """The networks that are measured beside each other."""

    pruned: Path
    dense: Path | None = None
    """None: there is no baseline."""
    planned: Path | None = None
    """The pruned network with every layer as planned, as torch runs it; None where `pruned` is so."""
    lowering: LoweringRecord | None = None
    """The forms of the grouped layers in `pruned`."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Layer -> the plan's note on it."""
    bundle: Bundle | None = None
    """Whose networks these are; None: nobody's, they are loose files."""
    arch: str = ""
    """For a bundle whose architecture is the user's own file."""
    converted: Mapping[str, Mapping[Which, Path]] = field(default_factory=dict)
    """Target -> the networks in the precision that is measured, where it does not run those above."""

    @staticmethod
    def of(model: Path, baseline: Path | None = None, arch: str = "") -> Subject:
        """What lies there: a bundle, or an ONNX file with perhaps another one as its baseline.

        InputError for a bundle that is damaged or holds no ONNX model. A file is read when it is needed.
        """
        if not model.is_dir():
            return Subject(model, baseline)
        if baseline is not None:
            raise InputError("a bundle has its own baseline", where=baseline, remedy="leave out --baseline")
        bundle = open_bundle(model)
        bundle.require_sound(replacing=(PROFILE,))

        def path(name: str) -> Path | None:
            return bundle.path(name) if bundle.has(name) else None

        plan, record = path(PLAN), path(LOWERING)
        lowering = load_lowering(record) if record else None
        notes = {layer.name: layer.note for layer in load_plan(plan).layers} if plan else {}
        notes |= dict.fromkeys(lowering.pointwise, _POINTWISE) if lowering else {}
        return Subject(bundle.path(MODEL), path(DENSE_MODEL), path(PLAIN_MODEL), lowering, notes, bundle, arch)

    @property
    def networks(self) -> dict[Which, Path]:
        """The two files, or the one that there is."""
        return {"pruned": self.pruned} if self.dense is None else {"dense": self.dense, "pruned": self.pruned}

    def files_for(self, target: Target) -> Mapping[Which, Path]:
        """The files that a target runs."""
        if (planned := self._as_planned(target)) is not None:
            return self.converted.get(target.name, {**self.networks, "pruned": planned})
        return self.converted.get(target.name, self.networks)

    def _as_planned(self, target: Target) -> Path | None:
        """The network as planned, where the target runs that: unless the forms were chosen for it."""
        chosen_for_it = self.lowering is not None and self.lowering.target == target.name
        return self.planned if target.as_planned and not chosen_for_it else None

    def pair_for(self, target: Target) -> Pair:
        """The two models in FP32 as the target runs them, in the forms that they have there; InputError as
        `load_model`."""
        dense = None if self.dense is None else load_model(self.dense)
        planned = self.planned if target.runs == "module" else self._as_planned(target)
        if planned is not None:
            return Pair(dense, load_model(planned), self.notes)
        lowering = self.lowering
        macs = lowering.planned_macs() if lowering else {}
        kinds = {layer.name: layer.kind for layer in lowering.layers} if lowering else {}
        return Pair(dense, load_model(self.pruned), self.notes, macs, kinds)

    def modules(self) -> dict[Which, nn.Module]:
        """The two networks as torch runs them, folded like the ONNX files; none of loose files.

        InputError if the bundle does not tell its architecture, or its weights do not fit.
        """
        if self.bundle is None:
            return {}
        from edgeprune.pruning.pruned import open_pruned
        from edgeprune.rewriting.fold import fold

        pruned = open_pruned(self.bundle, arch=self.arch)
        example = pruned.network.example_input(2)
        return {"dense": fold(pruned.network.model, example).module, "pruned": fold(pruned.model, example).module}

    def require_modules(self, target: str) -> None:
        """InputError if it lacks what `modules` are made of: weights, and an architecture that may be run."""
        if self.bundle is None:
            require_source(target, Source(self.pruned))
            return
        from edgeprune.pruning.network import bundle_arch

        for name in (PLAN, DENSE_WEIGHTS, WEIGHTS):
            self.bundle.path(name)
        if not self.arch:
            bundle_arch(self.bundle)

    def with_input_size(self, size: Sequence[int], folder: Path) -> Subject:
        """The same with every input's axes fixed but the batch: networks that leave some open are written to `folder`
        with this size in them, so that all that is done with them is done at it.

        InputError if the size contradicts a network, or one needs a size and there is none.
        """

        def sized(path: Path, name: str) -> Path:
            model = load_model(path)
            fixed = with_input_size(model, size, where=path)
            if fixed is model:
                return path
            folder.mkdir(parents=True, exist_ok=True)
            save_onnx(fixed, folder / name)
            return folder / name

        return replace(
            self,
            pruned=sized(self.pruned, MODEL),
            dense=None if self.dense is None else sized(self.dense, DENSE_MODEL),
            planned=None if self.planned is None else sized(self.planned, PLAIN_MODEL),
        )
