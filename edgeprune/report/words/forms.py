"""The forms in which grouped layers are written, as text and blocks of the report; see `lowering`."""

from __future__ import annotations

from collections import Counter
from typing import get_args

from edgeprune.bundles.manifest import Manifest
from edgeprune.io import formatting as f
from edgeprune.lowering.forms import Kind
from edgeprune.lowering.record import LoweringRecord

NOTABLE = 1.15
"""Executed MACs over planned ones from which on the summary tells them."""
TELLING = 1.02
"""Time of a layer's form over that of its fastest form from which on it is worth a word."""
KINDS: tuple[Kind, ...] = get_args(Kind)


def forms_row(record: LoweringRecord, manifest: Manifest) -> str:
    """One line: 25 grouped, 13 split, 10 dense (measured on ...), executed MACs 3.10 G."""
    executed = executed_macs(record, manifest)
    total = "" if executed is None else f", executed MACs {f.count(executed)}"
    return f"{count_words(record)} ({chosen_words(record)}){total}"


def count_words(record: LoweringRecord) -> str:
    """How many layers have which kind of form: 25 grouped, 10 dense."""
    kinds = Counter(layer.kind for layer in record.layers)
    return ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS if kinds[kind])


def chosen_words(record: LoweringRecord) -> str:
    """By what the forms were chosen, and for which processor or device type."""
    device = f.clean(record.device)
    if record.chosen_by == "measured":
        return f"measured on {device}, {f.plural(record.threads, 'thread')}, batch {record.batch_size}"
    return f"predicted for {device}" if is_predicted(record) else f"as planned: no cost table for {device}"


def executed_macs(record: LoweringRecord, manifest: Manifest) -> int | None:
    """Multiply-adds of one sample that the whole network computes in these forms, filled-in zeros included."""
    if manifest.macs is None:
        return None
    return manifest.macs.pruned + sum(layer.executed_macs - layer.macs for layer in record.layers)


def excess_sentence(record: LoweringRecord, manifest: Manifest) -> str:
    """What the network executes, where that is notably more than its plan says; else nothing."""
    executed = executed_macs(record, manifest)
    if manifest.macs is None or executed is None or executed <= NOTABLE * manifest.macs.pruned:
        return ""
    return f"As its layers are written it executes {f.count(executed)} MACs (dense: {f.count(manifest.macs.dense)})."


def cache_sentence(record: LoweringRecord) -> str:
    """Which times were measured by an earlier run, and how to measure them anew; empty if none was."""
    counts = {"of layers in their forms": record.from_cache.forms, "of whole networks": record.from_cache.networks}
    told = " and ".join(f"{count} {what}" for what, count in counts.items() if count)
    return told and f"From the cache: {told}. `edgeprune tune --no-cache` measures all anew."


def choice_sentence(record: LoweringRecord) -> str:
    """Why layers have another form than the one that was fastest in their place; empty where none has."""
    other = [x for x in record.layers if x.costs and x.costs.get(x.form, 0.0) > TELLING * min(x.costs.values())]
    if record.chosen_by != "measured" or not other:
        return ""
    return (
        f"{len(other)} of {len(record.layers)} layers are not written in the form that was fastest in their place: "
        f"whole networks decide, and of these '{f.clean(record.chosen)}' was taken. What a form costs the operations "
        "around its layer shows in whole networks only."
    )


def is_predicted(record: LoweringRecord) -> bool:
    """Whether there was a table to predict with."""
    return any(layer.costs for layer in record.layers)
