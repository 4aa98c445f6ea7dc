"""The report's tables of how a bundle was made and checked, and of the words that the report uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from edgeprune.bundles.manifest import Manifest
from edgeprune.io import formatting as f
from edgeprune.plans.plan import Plan
from edgeprune.profiling.result import ProfileResult
from edgeprune.report.document import Table, columns
from edgeprune.report.words.results import machine_words

WORDS: Mapping[str, str] = {
    "MAC": "one multiply-add. FLOPs = 2 x MACs; this report shows MACs everywhere.",
    "theoretical speed-up": "MACs of the dense network / MACs of the pruned one: what most publications state.",
    "realistic speed-up": "latency dense / latency pruned, both measured in turn in one run on the same machine.",
    "efficiency": "realistic speed-up / theoretical speed-up: how much of the promise was kept.",
    "p50, p90, p95, p99": "latencies that 50, 90, 95 and 99 of 100 runs did not exceed.",
    "noise": "interquartile range / median of the runs. Above 10 %, take the figures as rough.",
    "interval": "the true median of the speed-up lies in it with 95 % confidence.",
    "filter, kernel": "filter f has weights W[f], shaped (input channels, k, k); its kernel for channel c is W[f, c].",
    "group": "part of a grouped convolution: some filters that read some of the input channels, and no others.",
    "lowering": "the form in which a layer is written to ONNX; all of a layer's forms compute the same.",
    "grouped, merged, split, padded, dense": "forms: as planned; groups joined; one convolution a group; channels "
    "filled up to the target's block; without groups. What joining and filling adds are zeros.",
    "executed MACs": "what a form computes, filled-in zeros included; never used for the theoretical speed-up.",
    "form 4 x 32→16": "a grouped convolution of 4 groups, each of 16 filters that read 32 channels.",
    "gather": "an operation that puts channels into another order; folding removes those that weights can absorb.",
    "of the roof": "least time that the device's roofline allows for a layer / its time. The roofline is the lower of "
    "the peak rate and what memory can feed at the layer's arithmetic intensity (FLOPs a byte moved).",
    "unsettled": "the time limit came before the median was known as closely as was asked.",
    "parity": "largest difference between the exported model and the dense one with zeros at the pruned weights.",
    "stage": "a maximal part of the network that one device can run without data from another device.",
}
_MOST_SETTINGS = 60


def checks_table(manifest: Manifest) -> Table:
    """What was verified, and what is left of the Gathers."""
    rows = []
    if parity := manifest.parity:
        rows += [
            ("Parity", "passed" if parity.passed else "FAILED"),
            ("Largest difference", f"{parity.max_rel:.1e} of the output's range, {parity.max_abs:.1e} absolute"),
            ("Tolerance", f"{parity.tolerance:.0e} of the output's range"),
            ("Inputs", ", ".join(f.clean(name) for name in parity.inputs) or f.NONE),
        ]
    if gathers := manifest.gathers:
        rows += [
            ("Gathers before folding", str(gathers.before_fold)),
            ("Gathers in the exported model", str(gathers.after_fold)),
        ]
    return Table("Checks of the exported model", columns("check", "result"), tuple(rows))


def settings_table(manifest: Manifest, plan: Plan | None) -> Table:
    """How the bundle was made."""
    training = {name: value for name, value in manifest.training.items() if name != "seed"} if manifest.is_plain else {}
    settings = manifest.settings or (plan.settings if plan else training)
    pairs: list[tuple[str, object]] = [
        ("architecture", manifest.arch),
        ("method", manifest.method or (plan.method if plan else "")),
        ("input of one sample", " x ".join(map(str, manifest.input_shape))),
        ("classes", manifest.num_classes or ""),
        ("opset", manifest.opset or ""),
        ("seed", manifest.seed),
        ("edgeprune", manifest.edgeprune_version),
        *_flat(settings),
        ("plan SHA-256", plan.sha256() if plan else ""),
    ]
    return Table("Settings", columns("setting", "value"), _pairs(pairs))


def environment_table(profile: ProfileResult | None, manifest: Manifest) -> Table:
    """Where it was measured, or made."""
    if profile is None:
        return Table("Made with", columns("what", "value"), _pairs(manifest.environment.items()))
    machine, how = profile.environment, profile.settings
    most, least = ("at most ", " or more") if how.interval else ("", "")
    pairs: list[tuple[str, object]] = [
        *machine_words(machine).items(),
        ("threads", machine.threads),
        ("pinned to cores", ", ".join(map(str, how.pin))),
        ("idle threads", ("spin" if how.spinning else "sleep") if machine.threads > 1 else ""),
        (
            "runs of each model",
            f"{most}{how.iterations}, after {how.warmup} of warm-up{least}, dense and pruned in turn",
        ),
        ("measured until", f"the 95 % interval was {how.interval:.1%} of the speed-up wide" if how.interval else ""),
        ("process", "a fresh one for every target" if how.fresh_process else ""),
        *machine.runtime_versions.items(),
    ]
    return Table("Measured on", columns("what", "value"), _pairs(pairs))


def words_table(*, plain: bool) -> Table:
    """The words that the report uses; that of a network that is not pruned uses few."""
    words = tuple((word, meaning) for word, meaning in WORDS.items() if word == "MAC" or not plain)
    return Table("Words of this report", columns("word", "meaning"), words)


def _pairs(pairs: Iterable[tuple[str, object]]) -> tuple[tuple[str, str], ...]:
    return tuple((f.clean(name), f.clean(value)) for name, value in pairs if value != "")


def _flat(settings: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """Nested settings as dotted names."""
    found: list[tuple[str, object]] = []
    for name, value in settings.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return found[:_MOST_SETTINGS]
