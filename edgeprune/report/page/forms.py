"""The report's section on the forms in which grouped layers are written; see `lowering`."""

from __future__ import annotations

from collections.abc import Iterator

from edgeprune.bundles.manifest import Manifest
from edgeprune.devices.device_profile import list_profiles, load_profile
from edgeprune.devices.this_machine import this_machine_block
from edgeprune.io import formatting as f
from edgeprune.lowering.forms import Form
from edgeprune.lowering.record import LoweringRecord, NetworkTime
from edgeprune.plans.plan import Plan
from edgeprune.profiling.environment import current_environment
from edgeprune.report.document import Block, Notes, Picture, Section, Table, columns
from edgeprune.report.words.forms import KINDS, cache_sentence, choice_sentence, executed_macs, is_predicted

MOST_ROWS_OPEN = 12
MANY = 0.25
"""Share of the grouped layers from which on it is worth a word that they are off the channel block."""


def forms_section(record: LoweringRecord | None, manifest: Manifest, plan: Plan | None, folder: str) -> Section:
    """How the forms were chosen, what they compute and cost, and what to try; empty without a lowering."""
    blocks = tuple(_blocks(record, manifest, plan, folder)) if record else ()
    return Section("forms", "Forms of the layers", blocks)


def _blocks(record: LoweringRecord, manifest: Manifest, plan: Plan | None, folder: str) -> Iterator[Block]:
    yield _how(record, folder)
    if remembered := cache_sentence(record):
        yield remembered
    executed = executed_macs(record, manifest)
    if manifest.macs and executed is not None:
        planned, dense = f.count(manifest.macs.pruned), f.count(manifest.macs.dense)
        yield (
            f"Under the plan one sample takes {planned} MACs: these alone count for the theoretical speed-up. In its "
            f"forms the network executes {f.count(executed)}, filled-in zeros included (dense network: {dense})."
        )
    if any(layer.executed_macs != layer.macs for layer in record.layers):
        yield Picture("forms", "MACs of each grouped layer: planned, and filled-in zeros", record)
    if record.pointwise:
        names = f.clean(", ".join(record.pointwise))
        yield f"Written as 1x1 convolutions, which read their weights faster for a single sample: {names}."
    if record.networks:
        yield _network_table(record)
    yield _form_table(record)
    if choice := choice_sentence(record):
        yield choice
    if advice := tuple(_advice(record, plan)):
        yield Notes(advice)
    if record.notes:
        yield Notes(tuple(f.harmless(note) for note in record.notes), warning=True)


def _how(record: LoweringRecord, folder: str) -> str:
    device = f.clean(record.device)
    if record.chosen_by == "measured":
        where = f"{device}, {f.clean(record.runtime)}, {f.plural(record.threads, 'thread')}"
        text = (
            "A grouped layer can be written in several forms that compute the same. Each was measured in its place in "
            f"the network, then whole networks beside the dense one: on {where}, batch {record.batch_size}."
        )
        taken = _taken(record)
        return (
            text if taken is None else f"{text} Taken: {f.clean(taken.what)}, {f.speed_change(taken.speedup)} as dense."
        )
    tune = f"To let measurements choose, run on the device: edgeprune tune {folder}"
    if not is_predicted(record):
        return f"Every grouped layer is written as planned: nothing was measured or predicted. {tune}"
    return (
        "A grouped layer can be written in several forms that compute the same. These are the cheapest by the cost "
        f"table of the device profile {device}: predicted, not measured. {tune}"
    )


def _network_table(record: LoweringRecord) -> Table:
    rows = tuple(
        (f.clean(n.what), f.bare_ms(n.p50_ms), f.times(n.speedup), "taken" if n.what == record.chosen else "")
        for n in record.networks
    )
    names = ("network", "p50 ms", "speed-up", "choice")
    flags = frozenset(number for number, row in enumerate(rows) if row[-1])
    return Table("Whole networks", columns(*names, numeric=names[1:3]), rows, flags=flags)


def _form_table(record: LoweringRecord) -> Table:
    """One layer a row, with what each form cost; layers of whose pruning nothing is left are flagged."""
    forms = sorted({form for layer in record.layers for form in layer.costs}, key=_order)
    rows = tuple(
        (
            f.shortened(f.clean(layer.name), 64),
            layer.form,
            f.count(layer.macs),
            f.count(layer.executed_macs),
            *(f.bare_ms(layer.costs.get(form)) for form in forms),
        )
        for layer in record.layers
    )
    names = ("layer", "form", "MACs planned", "MACs executed", *(f"{f.clean(form)} ms" for form in forms))
    flags = frozenset(number for number, layer in enumerate(record.layers) if layer.kind == "dense")
    how = "measured" if record.chosen_by == "measured" else "predicted"
    caption = f"Form of each grouped layer, with the {how} times of all its forms" if forms else "Form of each layer"
    return Table(caption, columns(*names, numeric=names[2:]), rows, len(rows) > MOST_ROWS_OPEN, flags)


def _order(form: str) -> tuple[int, int]:
    """Grouped first, dense last; merged into ever fewer groups."""
    try:
        parsed = Form.parse(form)
    except ValueError:  # the key of a cost, out of a file
        return len(KINDS), 0
    return KINDS.index(parsed.kind), -parsed.groups


def _advice(record: LoweringRecord, plan: Plan | None) -> Iterator[str]:
    """What to try next."""
    dense, taken = sum(layer.kind == "dense" for layer in record.layers), _taken(record)
    if dense:
        found = "was measured" if record.chosen_by == "measured" else "is predicted"
        yield (
            f"{dense} of {len(record.layers)} grouped layers are written dense, zeros filled in, since that {found} to "
            "be fastest: what was pruned there saves no time on this target."
        )
    if (dense and dense == len(record.layers)) or (taken is not None and taken.speedup <= 1):
        yield "As it is, dense.onnx is about as fast on this target, and nothing is pruned from it."
    block = _block(record)
    missed = [e for e in plan.grouped().values() if e.kept % block or len(e.filters[0]) % block] if plan else []
    if plan and len(missed) > MANY * len(plan.grouped()):
        yield (
            f"{len(missed)} of {len(plan.grouped())} grouped layers have channels a group that are no multiple of "
            f"{block}, the block of the target's fast kernels. Pruning with --align auto chooses multiples."
        )


def _taken(record: LoweringRecord) -> NetworkTime | None:
    return next((network for network in record.networks if network.what == record.chosen), None)


def _block(record: LoweringRecord) -> int:
    """The channel block of what the forms were chosen for; 1 where that is not known here."""
    if record.chosen_by == "measured":
        return this_machine_block() if record.device == current_environment(record.threads).cpu else 1
    return load_profile(record.device).channel_block.fp32 if record.device in list_profiles() else 1
