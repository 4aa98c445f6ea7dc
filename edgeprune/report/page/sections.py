"""The report's text and order: a `Document` from a bundle's parts."""

from __future__ import annotations

from edgeprune.bundles.manifest import Accuracy
from edgeprune.io import formatting as f
from edgeprune.lowering.forms import GROUPED
from edgeprune.profiling.result import Result
from edgeprune.report.contents import Contents, SplitThroughput
from edgeprune.report.document import Block, Document, Notes, Picture, Section, Tile
from edgeprune.report.page import layer_tables, making_tables, tables
from edgeprune.report.page.forms import forms_section
from edgeprune.report.page.measured import advice_section, estimates_section, layers_section, speed_blocks
from edgeprune.report.page.records import record_section
from edgeprune.report.page.runtimes import runtimes_section
from edgeprune.report.views.kernels import KernelView, kernel_view
from edgeprune.report.views.parts import Runs, layer_shares
from edgeprune.report.words.forms import excess_sentence
from edgeprune.report.words.headline import accuracy_change, plain_rows, ratio
from edgeprune.report.words.results import setting

GOOD_EFFICIENCY = 0.85
VISIBLE = 0.02
OF_ROUNDS = (
    "The change of a latency is the median of the ratios of dense and pruned runs side by side, which where other "
    "programs come and go is not the ratio of the two medians beside it."
)
UNPRUNED = "Nothing is pruned yet. Prune it with: edgeprune prune {folder} -o pruned"
UNMEASURED = "Nothing was measured yet. Measure with: edgeprune profile {folder}"


def build_document(contents: Contents) -> Document:
    """The whole report. What the bundle does not hold is left out, with a sentence on how to get it."""
    manifest = contents.manifest
    name = f.clean(manifest.arch) or f.clean(contents.bundle.folder.name)
    method = f", pruned with {f.clean(manifest.method)}" if manifest.method else ""
    measured = f", measured {contents.profile.environment.date[:10]}" if contents.profile else ""
    sections = (
        _speed(contents),
        runtimes_section(contents.runtimes),
        advice_section(contents.profile),
        layers_section(contents.profile, thins=contents.plan is not None and contents.plan.thins),
        estimates_section(contents.profile),
        forms_section(contents.lowering, manifest, contents.plan, f.clean(contents.bundle.folder.name)),
        _kernels(contents),
        record_section(contents.record, manifest.method),
        _dense(contents),
        _split(contents),
        _making(contents),
        Section("words", "Words", (making_tables.words_table(plain=manifest.is_plain),)),
    )
    return Document(
        title=f"{name}{method}",
        subtitle=f"edgeprune {f.clean(manifest.edgeprune_version)}{measured}",
        summary=summary(contents),
        tiles=tiles(contents),
        sections=tuple(section for section in sections if section.blocks),
    )


def summary(contents: Contents) -> str:
    """The result in a sentence or two."""
    profile, accuracy = contents.profile, contents.manifest.accuracy
    if contents.manifest.is_plain:
        return "A trained network; nothing is pruned." + _dense_sentence(accuracy)
    sentences = []
    if profile is None or not profile.results:
        if macs := contents.manifest.macs:
            less = f.times(ratio(macs))
            sentences.append(f"The pruned network needs {less} fewer MACs; its latency was not measured.")
    else:
        sentences.append(_speed_sentence(profile.results[0]))
    if contents.lowering and (excess := excess_sentence(contents.lowering, contents.manifest)):
        sentences.append(excess)
    if accuracy:
        sentences.append(f"{f.clean(accuracy.label)} goes from {accuracy_change(accuracy)}.")
    return " ".join(sentences)


def _dense_sentence(accuracy: Accuracy | None) -> str:
    return f" {f.clean(accuracy.label)} is {f.score(accuracy.dense, accuracy.metric)}." if accuracy else ""


def tiles(contents: Contents) -> tuple[Tile, ...]:
    """The figures at the top."""
    found = []
    profile, manifest = contents.profile, contents.manifest
    if manifest.is_plain:
        return tuple(Tile(value, label) for label, value in plain_rows(manifest))
    if profile and profile.results and profile.results[0].realistic_speedup is not None:
        result = profile.results[0]
        realistic, efficiency = result.realistic_speedup or 0.0, result.efficiency or 0.0
        found += [
            Tile(f.times(realistic), "realistic speed-up", setting(result), "good" if realistic > 1 else "poor"),
            Tile(f.times(result.theoretical_speedup), "theoretical speed-up", "from MACs"),
            Tile(
                f.percent(efficiency),
                "efficiency",
                "realistic / theoretical",
                "good" if efficiency >= GOOD_EFFICIENCY else "",
            ),
        ]
    elif manifest.macs:
        found.append(Tile(f.times(ratio(manifest.macs)), "theoretical speed-up", "from MACs; not measured"))
    if accuracy := manifest.accuracy:
        dense, pruned = (f.score(value, accuracy.metric) for value in (accuracy.dense, accuracy.pruned))
        found.append(Tile(pruned, f.clean(accuracy.metric) or "top-1", f"dense {dense}"))
    if manifest.params and len(found) < 4:
        found.append(
            Tile(f.count(manifest.params.pruned), "parameters", f"{f.times(ratio(manifest.params))} less than dense")
        )
    return tuple(found)


def _speed_sentence(result: Result) -> str:
    where = f"On {setting(result)},"
    if result.dense is None or result.realistic_speedup is None:
        return f"{where} the pruned network takes {f.milliseconds(result.pruned.p50_ms)}. There was no baseline."
    before, after = f.milliseconds(result.dense.p50_ms), f.milliseconds(result.pruned.p50_ms)
    change = f.speed_change(result.realistic_speedup)
    promise = ""
    if result.theoretical_speedup and result.efficiency:
        promise = f", {f.percent(result.efficiency)} of the {f.times(result.theoretical_speedup)} that its MACs promise"
    return f"{where} the pruned network takes {after} where the dense one takes {before}: {change}{promise}."


def _speed(contents: Contents) -> Section:
    profile = contents.profile
    blocks: list[Block] = [tables.headline_table(contents.manifest, profile, contents.lowering)]
    if contents.manifest.is_plain:
        blocks.append(UNPRUNED.format(folder=f.clean(contents.bundle.folder.name)))
        return Section("speed", "What was trained", tuple(blocks))
    if profile and any(map(_is_of_rounds, profile.results)):
        blocks.append(OF_ROUNDS)
    if profile is None:
        blocks.append(UNMEASURED.format(folder=f.clean(contents.bundle.folder.name)))
    else:
        blocks += speed_blocks(profile)
    checks = making_tables.checks_table(contents.manifest)
    blocks += [checks] if checks.rows else []
    return Section("speed", "Promised and measured", tuple(blocks))


def _is_of_rounds(result: Result) -> bool:
    """Whether the speed-up is visibly another than the ratio of the two latencies beside it."""
    if result.dense is None or not result.realistic_speedup or not result.pruned.p50_ms:
        return False
    return abs(result.realistic_speedup * result.pruned.p50_ms / result.dense.p50_ms - 1) > VISIBLE


def _kernels(contents: Contents) -> Section:
    title = "What became of the kernels"
    if contents.plan is None or not contents.plan.grouped():
        return Section("kernels", title, ())
    dense = contents.dense_model()
    view = kernel_view(contents.plan, dense) if dense else None
    if view is None:
        why = "the bundle holds no dense model" if dense is None else "the dense model's layers are not the plan's"
        return Section("kernels", title, (f"There is no picture of the kernels: {why}.",))
    entry, name = view.entry, f.clean(view.entry.name)
    text = (
        f"Layer {name}: {view.before.shape[0]} filters of {view.before.shape[1]} kernels become {entry.groups} groups "
        f"of {len(entry.filters[0])} filters that read {entry.kept} channels each. The kept kernels hold "
        f"{f.percent(view.recovered)} of the layer's magnitude in {f.percent(_kept_share(view))} of its kernels."
    )
    form = contents.lowering.forms().get(entry.name) if contents.lowering else None
    if form not in (None, GROUPED):
        text += f" To ONNX the layer is written as {form}, which computes the same."
    caption = f"Norms of the kernels of {name}: as trained, and in the order of the groups (dense model's weights)"
    return Section("kernels", title, (text, Picture("kernels", caption, view)))


def _kept_share(view: KernelView) -> float:
    return len(view.entry.filters[0]) * view.entry.kept * view.entry.groups / view.before.size


def _dense(contents: Contents) -> Section:
    table = layer_tables.dense_table(contents.plan) if contents.plan else None
    what = "What keeps all filters" if contents.plan and contents.plan.thins else "What the plan left dense"
    return Section("dense", f"{what}, and why", (table,) if table and table.rows else ())


def _split(contents: Contents) -> Section:
    title, split = "Split over devices", contents.split
    if split is None or not split.devices:
        return Section("split", title, ())
    guess = split.predicted
    text = (
        f"{f.plural(len(split.devices), 'device')}, {f.plural(len(split.stages), 'stage')}, "
        f"{f.plural(len(split.transfers), 'transfer')} with {f.size(guess.bytes_per_inference)} for one sample."
    )
    if guess.latency_ms is not None:
        text += (
            f" Estimated latency {f.milliseconds(guess.latency_ms)}: {f.speed_change(guess.speedup)} as "
            f"{f.clean(guess.best_device) or 'one device'} alone. "
            f"Basis: {f.clean(guess.basis) or 'unknown'}."
        )
        if guess.speedup is not None and guess.speedup < 1:
            text += " Over these links, one device alone would be faster."
    if contents.lowering and set(contents.lowering.forms().values()) != {GROUPED}:
        text += " The parts hold the network as planned; the forms above are those of the whole model."
    text += _throughput(guess.throughput) + _measured_run(contents)
    caption = "Which device is predicted to do what when" if guess.timeline else "Which device works in which stage"
    if contents.run:
        caption = "Which device did what when" + (", below what was predicted" if guess.timeline else "")
    picture = [Picture("split", caption, Runs(split, contents.run))] if split.stages else []
    if (shares := layer_shares(split)) is not None:
        picture.append(Picture("split-layers", "Which device computes what of each layer", shares))
    return Section("split", title, (text, *picture, *(t for t in tables.split_tables(split, contents.run) if t.rows)))


def _throughput(guess: SplitThroughput | None) -> str:
    """How many frames a second are predicted, and in which way."""
    if guess is None:
        return ""
    ways = (
        ("whole frames on each device", guess.whole_frames_per_s),
        ("parts of each frame on all devices", guess.pipeline_frames_per_s),
    )
    told = "; ".join(f"{way} {rate:.2f}" if rate else f"{way} not at all" for way, rate in ways)
    return f" Estimated throughput in frames a second: {told}."


def _measured_run(contents: Contents) -> str:
    """What a real run adds."""
    run, guess = contents.run, contents.split.predicted if contents.split else None
    if run is None or guess is None:
        return ""
    text = f" Measured: {f.milliseconds(run.latency_ms)}, the median of a run"
    if guess.latency_ms:
        text += f", {f.signed_percent(run.latency_ms / guess.latency_ms - 1)} against the estimate"
    if run.clocks_within_ms is None:
        return f"{text}; one device's clock could be set by its first message only."
    return f"{text}; the devices' clocks agree within {f.milliseconds(run.clocks_within_ms)}."


def _making(contents: Contents) -> Section:
    made = [
        making_tables.settings_table(contents.manifest, contents.plan),
        making_tables.environment_table(contents.profile, contents.manifest),
    ]
    notes = Notes(tuple(f.harmless(note) for note in contents.manifest.notes))
    blocks: list[Block] = [table for table in made if table.rows]
    return Section("making", "How it was made and measured", (*blocks, *([notes] if notes.items else [])))
