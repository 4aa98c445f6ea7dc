"""The command line: parses, calls `pipeline`, prints. No logic, and nothing heavy is imported before it is needed."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import tomllib
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from edgeprune.cli.flags import (
    COMMON,
    DATA,
    EXPORT,
    MEASURING,
    Common,
    CompareFlags,
    DataFlags,
    ExportFlags,
    Integer,
    NetworkFlags,
    NumberFormatFlags,
    OptionalPath,
    OptionalText,
    OutFlags,
    PruneFlags,
    Seeded,
    Switch,
    TrainFlags,
    TrainMethodFlags,
    parse_input_size,
)
from edgeprune.errors import EdgepruneError, GateError, InputError, UsageError, first_line
from edgeprune.io import progress

EXIT_BUG = 70
EXIT_INTERRUPTED = 130
WORKSTATION_PACKAGES = {"torch", "torchvision", "sklearn", "scipy", "onnxsim", "onnxscript", "safetensors", "PIL"}
"""What `edgeprune[prune]` adds; a device has none of it."""

app = App(
    name="edgeprune",
    help="Prune a trained CNN into dense grouped convolutions, export ONNX, split it over devices, and measure the "
    "real speed-up beside the promised one.",
    help_epilogue="Start with `edgeprune demo`. Every verb has --help with examples.\n\n"
    "Exit codes: 0 done; 1 the input is at fault; 2 usage; 3 a gate failed; 70 a bug; 130 interrupted.",
    help_format="markdown",
    suppress_keyboard_interrupt=False,
)


@app.command
def demo(
    *,
    out: Annotated[Path, Parameter(alias="-o", group=COMMON)] = Path("demo"),
    overwrite: Annotated[Switch, Parameter(group=COMMON)] = False,
    common: Seeded = Seeded(),
) -> None:
    """Show the whole path on real data: train, prune, fine-tune, fold, export, split, run, profile, report.

    Trains a small ResNet on scikit-learn's handwritten digits, so it needs no download.

    **Examples**

    - `edgeprune demo -o demo` and open demo/report.html

    Parameters
    ----------
    out
        Folder of the bundle: new or empty.
    overwrite
        Replace the bundle that is there.
    """
    from edgeprune.cli import show
    from edgeprune.pipeline.demo import run_demo

    result = run_demo(out, overwrite=overwrite, seed=common.seed)
    show.headline(result)
    _write_json(common, result.manifest)


@app.command
def train(
    *,
    network: NetworkFlags = NetworkFlags(),
    training: TrainFlags,
    method: TrainMethodFlags = TrainMethodFlags(),
    out: OutFlags,
    common: Seeded = Seeded(),
) -> None:
    """Train a network, plain or with a pruning method at work (SFP, ASFP, FPGM, LFPC, C-SGD).

    DIR keeps a checkpoint and a log line of each epoch; a run that was stopped goes on with --resume.

    **Examples**

    - `edgeprune train --arch resnet20 --data cifar10:DIR --epochs 160 --tickets 10:80:10 -o trained`
    - `edgeprune train --from trained --data cifar10:DIR --epochs 40 --method sfp --rate 0.3 -o pruned`
    """
    from edgeprune import pipeline
    from edgeprune.cli import show

    outcome = pipeline.train(
        training.source(network, common.seed),
        training.options(method.choice(common.seed), common.seed),
        out.output(),
    )
    show.trained(outcome)
    _write_json(common, outcome.summary)


@app.command
def prune(
    checkpoint: Path | None = None,
    /,
    *,
    network: NetworkFlags = NetworkFlags(),
    pruning: PruneFlags = PruneFlags(),
    data: DataFlags = DataFlags(),
    out: OutFlags,
    common: Seeded = Seeded(),
) -> None:
    """Decide what to prune, and write the plan and the pruned weights.

    **Examples**

    - `edgeprune prune model.pt --arch resnet20 --groups 8 --rate 0.4375 --tickets epochs/ -o pruned`
    - `edgeprune prune model.pt --arch resnet56 --method gconv --budget macs=0.5,params=0.6 -o pruned`

    Parameters
    ----------
    checkpoint
        Checkpoint (.pt, .pth, .th, .safetensors, ...; never unpickled), or a bundle of `edgeprune train`.
    """
    from edgeprune import pipeline
    from edgeprune.cli import show

    bundle, pruned = pipeline.prune(
        network.source(checkpoint, common.seed), pruning.options(common.seed), data.options(common.seed), out.output()
    )
    show.pruned(pruned, bundle)
    _write_json(common, pruned.summary())


@app.command
def export(
    source: Path | None = None,
    /,
    *,
    network: NetworkFlags = NetworkFlags(),
    pruning: PruneFlags = PruneFlags(),
    data: DataFlags = DataFlags(),
    export: ExportFlags = ExportFlags(),
    out: OutFlags,
    common: Seeded = Seeded(),
) -> None:
    """The main job: from a checkpoint to a pruned, folded, verified ONNX model (or from a bundle of `prune`).

    **Examples**

    - `edgeprune export model.pt --arch resnet56 --groups 8 -o out`
    - `edgeprune export --arch torchvision:resnet50 --random-init --groups 4 -o out`
    - `edgeprune export model.pt --arch resnet56 --groups 4 --align auto --tune -o out`
    - `edgeprune export pruned/ -o out --devices 2`

    Parameters
    ----------
    source
        Checkpoint (never unpickled), or a bundle that `edgeprune prune` or `edgeprune train` wrote.
    """
    from edgeprune import pipeline
    from edgeprune.cli import show

    seed = common.seed
    lowering, split = export.lowering(pruning.device_profile), export.split(pruning.device_profile)
    how = (data.options(seed), export.options(seed), lowering, split, out.output())
    bundle, pruned = pipeline.export(network.source(source, seed), pruning.options(seed), *how)
    show.pruned(pruned, bundle)
    _write_json(common, bundle.manifest)


@app.command
def split(
    model: Path,
    /,
    *,
    devices: Annotated[str, Parameter(group=EXPORT)],
    device_profile: Annotated[OptionalText, Parameter(group=EXPORT)] = "",
    out: OutFlags,
    common: Common = Common(),
) -> None:
    """Split the groups of any ONNX CNN with grouped convolutions over several devices.

    **Examples**

    - `edgeprune split out/ --devices 2 -o split`
    - `edgeprune split resnext.onnx --devices cluster.toml -o split`

    Parameters
    ----------
    model
        An ONNX file, or a bundle.
    devices
        Number of devices, or a TOML file with a [[device]] table for each.
    device_profile
        Device type that the prediction is for, where the TOML file names none.
    """
    from edgeprune import pipeline
    from edgeprune.cli import show

    bundle, manifest = pipeline.split(model, pipeline.SplitOptions(devices, device_profile), out.output())
    show.partition(manifest, bundle)
    _write_json(common, manifest)


@app.command
def run(
    bundle: Path,
    /,
    *,
    input: Annotated[Path, Parameter(group=COMMON)],
    output: Annotated[Path, Parameter(group=COMMON)],
    executor: Annotated[Literal["local"], Parameter(group=COMMON)] = "local",
    threads: Annotated[Integer, Parameter(group=COMMON)] = 1,
    common: Common = Common(),
) -> None:
    """Run a bundle, split or not, on one batch of inputs.

    **Examples**

    - `edgeprune run split/ --input x.npy --output y.npy`

    Parameters
    ----------
    bundle
        A bundle with an ONNX model; if it is split, every device's part runs in a session and thread of its own.
    input
        .npy with the inputs (N,C,H,W), float32.
    output
        .npy for the outputs; .npz if the model has several.
    executor
        Where the parts of a split bundle run: here, side by side.
    threads
        Threads of each session.
    """
    from edgeprune import pipeline
    from edgeprune.cli import show

    result = pipeline.run(bundle, input, output, threads)
    show.run(result)
    _write_json(common, result)


@app.command
def tune(
    bundle: Path,
    /,
    *,
    threads: Annotated[Integer, Parameter(group=MEASURING)] = 1,
    batch_size: Annotated[Integer, Parameter(group=MEASURING)] = 1,
    target: Annotated[str, Parameter(group=MEASURING)] = "cpu",
    device_profile: Annotated[OptionalText, Parameter(group=MEASURING)] = "",
    cache: Annotated[OptionalPath, Parameter(group=MEASURING)] = None,
    no_cache: Annotated[Switch, Parameter(group=MEASURING)] = False,
    common: Seeded = Seeded(),
) -> None:
    """Measure here, on the device, in which form each pruned layer runs fastest, and write the model with the winners.

    Needs no torch. The result computes the same to rounding. If nothing is faster than the dense network, all layers
    are written dense.

    **Examples**

    - `edgeprune tune out/`
    - `edgeprune tune out/ --threads 2 --batch-size 8`
    - `edgeprune tune out/ --target openvino-native`

    Parameters
    ----------
    bundle
        A bundle with an ONNX model that is not split.
    threads
        Threads inside one operation, as the model will be run.
    batch_size
        Images a run, as the model will be run.
    target
        Runtime to tune for: cpu (ONNX Runtime) or openvino-native.
    device_profile
        Device type whose channel block and cost table the candidates come from; this machine's by default.
    cache
        File that remembers what was measured; by default in your cache folder.
    no_cache
        Measure everything anew, and remember nothing.
    """
    from edgeprune import pipeline
    from edgeprune.cli import show
    from edgeprune.deployment.lower_bundle import LowerOptions
    from edgeprune.tuning.cache import default_path
    from edgeprune.tuning.options import TuneOptions

    kept = None if no_cache else cache or default_path()
    options = LowerOptions(device_profile, TuneOptions(threads, batch_size, target, kept, common.seed))
    tuned, record = pipeline.tune(bundle, options)
    show.lowering(record, tuned)
    _write_json(common, record)


@app.command
def profile(
    model: Path | None = None,
    /,
    *,
    baseline: Annotated[OptionalPath, Parameter(group=MEASURING)] = None,
    target: Annotated[str, Parameter(group=MEASURING)] = "cpu",
    threads: Annotated[str, Parameter(group=MEASURING)] = "1",
    batch_size: Annotated[str, Parameter(group=MEASURING)] = "1",
    input_size: Annotated[OptionalText, Parameter(group=MEASURING)] = "",
    warmup: Annotated[Integer, Parameter(group=MEASURING)] = 10,
    iterations: Annotated[Integer, Parameter(group=MEASURING)] = 1000,
    interval: Annotated[float, Parameter(group=MEASURING)] = 0.02,
    time_limit: Annotated[float, Parameter(group=MEASURING)] = 120.0,
    pin: Annotated[OptionalText, Parameter(group=MEASURING)] = "",
    spinning: Annotated[bool, Parameter(group=MEASURING)] = False,
    fresh_process: Annotated[bool, Parameter(group=MEASURING)] = True,
    machine_profile: Annotated[OptionalText, Parameter(group=MEASURING)] = "",
    per_layer: Annotated[bool, Parameter(group=MEASURING)] = True,
    arch: Annotated[OptionalText, Parameter(group=MEASURING)] = "",
    numbers: NumberFormatFlags = NumberFormatFlags(),
    device_profile: Annotated[OptionalText, Parameter(group=MEASURING)] = "",
    calibrate: Annotated[Switch, Parameter(group=MEASURING)] = False,
    out: Annotated[OptionalPath, Parameter(alias="-o", group=MEASURING)] = None,
    common: Seeded = Seeded(),
) -> None:
    """Measure dense and pruned in turn, and put the realistic speed-up beside the theoretical one.

    **Examples**

    - `edgeprune profile out/ --threads 1,2 --batch-size 1,8`
    - `edgeprune profile pruned.onnx --baseline dense.onnx --target cpu`
    - `edgeprune profile pruned.onnx --baseline dense.onnx --input-size 224,224` where height and width are dynamic
    - `edgeprune profile out/ --target cpu,openvino-native --precision int8 --data imagefolder:DIR`
    - `edgeprune profile out/ --device-profile raspberry-pi-5`
    - `edgeprune profile --calibrate -o my-machine.toml`

    Parameters
    ----------
    model
        A bundle (the result is kept in it), or an ONNX file.
    baseline
        Dense ONNX file to compare an ONNX file with; a bundle has its own.
    target
        cpu, openvino-native, ... separated by commas; `edgeprune list targets` shows all.
    threads
        Threads inside one operation; several numbers, separated by commas, are each measured with every batch size.
    batch_size
        Batch sizes, separated by commas.
    input_size
        H,W or C,H,W of the input, for an ONNX file whose axes are dynamic, not the batch alone.
    warmup
        Runs of each model before measuring, at least: warm-up goes on until its times are steady.
    iterations
        Measured runs of each model, at most.
    interval
        Measuring ends when the 95% interval of the speed-up is narrower than this share of it; 0 for all iterations.
    time_limit
        Seconds after which measuring ends at the latest, for each target, thread count and batch size.
    pin
        Cores to pin the threads to, separated by commas.
    spinning
        Let idle threads wait by spinning: what many runtimes do by default, but here those of the model that rests
        take time from the one that runs.
    fresh_process
        Measure each target and thread count in a process of its own, so that none disturbs another.
    machine_profile
        Device profile of this machine, whose peaks bound the layers: a name or a TOML file; by default the shipped one
        that is nearest.
    per_layer
        Time every layer, too.
    arch
        For torch's targets, where the bundle's architecture is your own file: path/to/file.py:factory.
    device_profile
        Devices to estimate the latency on, too, by name or .toml file, separated by commas; `edgeprune list devices`.
    calibrate
        Measure this machine instead of a model, and write a device profile; takes a minute or two.
    out
        With --calibrate: the .toml file to write.
    """
    from edgeprune import pipeline
    from edgeprune.cli import show
    from edgeprune.precision.formats import require_precise
    from edgeprune.profiling.profiler import ProfileOptions
    from edgeprune.profiling.sweeping.sweep import require_complete

    counts = _integers("--threads", threads)
    cores = _integers("--pin", pin) if pin else ()
    if calibrate:
        import msgspec

        if model is not None or out is None:
            raise InputError("--calibrate measures the machine, not a model", expected="--calibrate -o FILE.toml")
        measured = pipeline.calibrate(out, cores)
        show.device(measured, out)
        _write_json(common, msgspec.to_builtins(measured, str_keys=True))
        return
    if model is None or out is not None:
        missing = "no model given" if model is None else "--out is for --calibrate"
        raise InputError(missing, expected="edgeprune profile MODEL, or edgeprune profile --calibrate -o FILE.toml")
    options = ProfileOptions(
        threads=max(counts),
        batch_sizes=_integers("--batch-size", batch_size),
        warmup=warmup,
        iterations=iterations,
        interval=interval,
        time_limit_s=time_limit,
        per_layer=per_layer,
        pin=cores,
        spinning=spinning,
        fresh_process=fresh_process,
        machine_profile=machine_profile,
        seed=common.seed,
        precision=numbers.precision,
        input_size=parse_input_size(input_size),
    )
    targets = tuple(name.strip() for name in target.split(","))
    devices = tuple(name.strip() for name in device_profile.split(",") if name.strip())
    result = pipeline.profile(
        model,
        baseline,
        targets,
        options,
        arch=arch,
        thread_counts=counts,
        data=numbers.data,
        device_profiles=devices,
    )
    show.profile(result)
    _write_json(common, result)
    require_complete(result, told=True)
    require_precise(result.precisions)


@app.command
def report(
    bundle: Path,
    /,
    *more: Path,
    format: Annotated[OptionalText, Parameter(group=COMMON)] = "",
    out: Annotated[OptionalPath, Parameter(alias="-o", group=COMMON)] = None,
    comparing: CompareFlags = CompareFlags(),
    common: Common = Common(),
) -> None:
    """Write report.html (one file, opens offline), report.md and report.json into a bundle; or compare several.

    With several runs, or a baseline, one page lines them up: what got faster or slower against the first, whether that
    exceeds noise, and what else differs between them (machine, versions, settings).

    **Examples**

    - `edgeprune report out/ --format html`
    - `edgeprune report monday/ tuesday/ wednesday/ -o week.html`
    - `edgeprune report new/ --baseline old/ --fail-on-regression 5%`

    Parameters
    ----------
    bundle
        A bundle; profile it first, to have latencies in the report. To compare, a profile.json will do.
    more
        Bundles or profile.json files to compare with the first, in the order of their making.
    format
        html, md, json, csv, separated by commas; by default html,md,json, and of a comparison what -o ends with.
    out
        File for a comparison, comparison.html by default; with a gate, by default none is written.
    """
    from edgeprune import pipeline
    from edgeprune.cli import show

    formats = tuple(name.strip() for name in format.split(",")) if format else ()
    if not more and comparing.baseline is None:
        comparing.require_unused(out)
        paths = pipeline.report(bundle, formats or ("html", "md", "json"))
        for path in paths:
            print(path)
        _write_json(common, {"files": [str(path) for path in paths]})
        return
    gate, page = comparing.gate(), comparing.page(out)
    result = pipeline.compare(comparing.runs(bundle, more), page, formats or comparing.formats(page), gate)
    show.comparison(result)
    _write_json(common, result)
    if result.regressions:
        raise GateError(f"worse than {result.baseline}: {'; '.join(result.regressions)}")


@app.command(name="eval")
def evaluate(
    model: Path,
    /,
    *,
    data: Annotated[str, Parameter(group=DATA)],
    batch_size: Annotated[Integer, Parameter(group=DATA)] = 100,
    limit: Annotated[int | None, Parameter(group=DATA)] = None,
    network: NetworkFlags = NetworkFlags(),
    common: Common = Common(),
) -> None:
    """Top-1 accuracy of a checkpoint, a bundle or an ONNX file on a test set.

    **Examples**

    - `edgeprune eval model.pt --arch resnet20 --data imagefolder:cifar/`
    - `edgeprune eval out/ --data digits`

    Parameters
    ----------
    model
        A checkpoint, or an ONNX file (runs in ONNX Runtime), or a bundle (there if it holds an ONNX file).
    data
        digits, imagefolder:DIR, cifar10:DIR, or path/to/file.py:factory: factory("test") gives images (N,C,H,W), uint8
        or normalised floats, and labels (N,).
    batch_size
        Images at a time.
    limit
        At most so many images, the classes taken in turn.
    """
    from edgeprune import pipeline
    from edgeprune.cli import show

    source = network.source(model, 0) if network.arch or model.is_dir() else None
    result = pipeline.evaluate(model, data, source, batch_size, limit)
    show.evaluation(result)
    _write_json(common, result)


@app.command
def inspect(path: Path, /, *, common: Common = Common()) -> None:
    """What is in a checkpoint, an ONNX file or a bundle; a bundle's hashes are verified.

    **Examples**

    - `edgeprune inspect out/`
    - `edgeprune inspect model.onnx`
    - `edgeprune inspect model.pt`

    Parameters
    ----------
    path
        A checkpoint, an ONNX file or a bundle.
    """
    from edgeprune.cli import show
    from edgeprune.pipeline import inspect as inspection

    result = inspection.inspect(path)
    show.inspection(result)
    _write_json(common, result)
    inspection.require_sound(result)


@app.command(name="list")
def list_(what: Literal["methods", "archs", "targets", "devices"], /, *, common: Common = Common()) -> None:
    """What there is: methods with their settings, architectures, targets and device profiles.

    **Examples**

    - `edgeprune list methods`

    Parameters
    ----------
    what
        methods, archs, targets or devices.
    """
    from edgeprune.cli import show
    from edgeprune.pipeline import list as listing

    rows = listing.rows(what)
    show.listing(what, rows)
    _write_json(common, [row for row in rows])


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a path that the terminal's encoding lacks must not end a run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with progress.shown("--quiet" not in tokens), _stopped_cleanly():
            app([*tokens, *_config_tokens(tokens)], result_action="return_value")
            sys.stdout.flush()
    except EdgepruneError as error:
        return _told(str(error), error.exit_code)
    except KeyboardInterrupt as error:
        return _told(str(error) or "interrupted; nothing half-written was left", EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 2
    except OSError as error:  # a full disk, a device that is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        where = f"{error.filename}: " if error.filename else ""
        return _told(f"{where}{error.strerror or error}", InputError.exit_code)
    except Exception as error:
        package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        if package in WORKSTATION_PACKAGES:
            return _told(f"this needs {package}: pip install 'edgeprune[prune]'", InputError.exit_code)
        traceback.print_exc()
        return _told("this is a bug of edgeprune; please report it with the lines above", EXIT_BUG)
    return 0


def _told(text: str, code: int) -> int:
    print(f"edgeprune: {text}", file=sys.stderr)
    return code


@contextmanager
def _stopped_cleanly() -> Iterator[None]:
    """SIGTERM and SIGHUP (a dropped connection) end a run as Ctrl-C does, so that staged files are removed."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _config_tokens(tokens: list[str]) -> list[str]:
    """The flags that --config's file gives and the command line does not, spelt as on the command line."""
    given = [token.partition("=")[0] for token in tokens]
    if "--config" not in given:
        return []
    place = given.index("--config")
    path = Path(tokens[place].partition("=")[2] or (tokens[place + 1] if place + 1 < len(tokens) else ""))
    if not path.is_file():
        raise InputError("no such file", where=path, expected="a TOML file with values for flags")
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"is not TOML: {first_line(error)}", where=path, expected="lines such as groups = 4"
        ) from error
    found: list[str] = []
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, dict):
            raise InputError(f"[{name}] is a table", where=path, expected="flags at the top, such as groups = 4")
        if {flag, f"--no-{flag[2:]}"} & set(given) or (flag == "--out" and "-o" in given):
            continue
        if isinstance(value, bool):
            found.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, list) and all(isinstance(item, str) for item in value):
            found += [f"{flag}={item}" for item in value]
        else:
            found.append(f"{flag}={','.join(map(str, value)) if isinstance(value, list) else value}")
    return found


def _integers(flag: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{flag} {text!r} is no list of integers", expected="such as 1 or 1,8") from None


def _write_json(common: Common, value: Any) -> None:
    if common.json is not None:
        from edgeprune.io.files import pretty_json, write_atomically

        write_atomically(common.json, pretty_json(value))


if __name__ == "__main__":
    sys.exit(main())
