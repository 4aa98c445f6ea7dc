"""The pruning methods, one module each.

A method's module has a `SUMMARY` and a frozen dataclass `Settings` whose fields carry `setting(...)` metadata.
It decides

- once, on given weights: a pure function `prune(given: MethodInput, settings: Settings) -> MethodResult`,
- or while the network is trained: `train(given: MethodInput, settings: Settings, epochs: int) -> TrainedMethod`,
- or both.

To add a method, write the module and add its line to `METHODS`. Optional names: `RATE`, the default of --rate;
`GROUPS`, that of --groups; `NEEDS_CONSTANTS`, `NEEDS_IMAGES` and a function `needs_gradients(settings) -> bool`, for
what `MethodInput` says. A method without `RATE` or `GROUPS` takes no such flag; nor does it take --tickets or
--no-share-partitions unless they are in `TAKES`. `AMOUNT_SETTINGS` names its settings that say how much to prune, in
place of --rate or --groups.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args, get_origin, get_type_hints, runtime_checkable

import msgspec

from edgeprune.errors import InputError, first_line, unknown_name
from edgeprune.methods.base import MethodInput, MethodResult, PruneRequest
from edgeprune.methods.budget import Budget

if TYPE_CHECKING:
    from torch import nn

    from edgeprune.training.hooks import TrainingHooks

METHODS: Mapping[str, str] = {
    "tmi-gkp": "edgeprune.methods.tmi_gkp.method",
    "gconv": "edgeprune.methods.gconv.method",
    "sfp": "edgeprune.methods.soft.sfp",
    "asfp": "edgeprune.methods.soft.asfp",
    "fpgm": "edgeprune.methods.soft.fpgm",
    "fpgm-mix": "edgeprune.methods.soft.fpgm_mix",
    "masked": "edgeprune.methods.masked_checkpoint",
    "lfpc": "edgeprune.methods.lfpc.method",
    "csgd": "edgeprune.methods.csgd.method",
    "gkp-cal": "edgeprune.methods.gkp_cal.method",
}


WITH_IMAGES, WITHOUT_IMAGES = "gkp-cal", "tmi-gkp"
"""What is recommended, and what can be had without any."""


class Method(Protocol):
    """What every method's module offers; `OneShot` and `Trained` say what it can do."""

    SUMMARY: str
    Settings: type[Any]


@runtime_checkable
class OneShot(Protocol):
    """A method that decides on given weights."""

    def prune(self, given: MethodInput, settings: Any) -> MethodResult: ...


class TrainedMethod(Protocol):
    """A method at work in one training run."""

    hooks: TrainingHooks

    def result(self, model: nn.Module) -> MethodResult:
        """The plan for the trained model, still in its full shape, after `hooks.end`."""
        ...


@runtime_checkable
class Trained(Protocol):
    """A method that works while the network is trained, for so many epochs."""

    def train(self, given: MethodInput, settings: Any, epochs: int) -> TrainedMethod: ...


def amount_flags(method: str) -> tuple[str, ...]:
    """Those of --groups and --rate that a method takes; both for one that is not known here, as in an older plan."""
    if method not in METHODS:
        return ("--groups", "--rate")
    return tuple(f"--{name.lower()}" for name in ("GROUPS", "RATE") if hasattr(load_method(method), name))


def amounts(
    method: str,
    groups: int | None,
    rate: float | None,
    layer_rates: Collection[str],
    budget: Budget,
    assignments: Iterable[str] = (),
) -> tuple[int, float]:
    """Groups and rate for a request: those given, else the method's own. `assignments` are its settings, NAME=VALUE.

    InputError for one that the method does not take, or that says how much to prune beside a budget or a setting.
    """
    module = load_method(method)
    _check_budget(method, module, budget)
    pairs = (text.partition("=")[::2] for text in assignments)
    chosen = {name.strip().replace("-", "_") for name, value in pairs if value.strip() not in ("", "0")}
    setting_given = next((name for name in getattr(module, "AMOUNT_SETTINGS", ()) if name in chosen), "")
    own_groups, own_rate = getattr(module, "GROUPS", None), getattr(module, "RATE", None)
    for flag, is_given, own, other in (
        ("--groups", groups is not None, own_groups, "--rate"),
        ("--rate", rate is not None, own_rate, "--groups"),
        ("--layer-rate", bool(layer_rates), own_rate, "--groups"),
    ):
        if is_given and own is None:
            raise InputError(
                f"{method} takes no {flag}", remedy=f"see {other} and --budget, and the settings in `list methods`"
            )
        if is_given and flag != "--layer-rate" and budget.is_given:
            raise InputError(f"both {flag} and --budget say how much to prune", remedy="leave one of them out")
        if is_given and setting_given:
            raise InputError(
                f"both {flag} and --set {setting_given} say how much to prune", remedy="leave one of them out"
            )
    return (
        next(value for value in (groups, own_groups, PruneRequest.groups) if value is not None),
        next(value for value in (rate, own_rate, PruneRequest.rate) if value is not None),
    )


def keeps_time(method: str) -> bool:
    """Whether the method can keep a budget of time."""
    return "latency" in getattr(load_method(method), "BUDGETS", ())


def _check_budget(method: str, module: Method, budget: Budget) -> None:
    """InputError for a budget of what the method does not count."""
    counted = getattr(module, "BUDGETS", ("macs", "params"))
    if asked := next((kind for kind in budget.kinds if kind not in counted), ""):
        raise InputError(
            f"{method} looks for no --budget {asked}",
            expected=f"{' and '.join(counted)}, which a plan alone tells",
            remedy="--method gkp-cal --data DIR keeps a budget of time",
        )


def require_taken(method: str, *, tickets: bool, share_partitions: bool, for_devices: bool = False) -> None:
    """InputError for tickets, partitions that are not to be shared, or devices to prune for, where the method does not
    look at them."""
    takes = getattr(load_method(method), "TAKES", ())
    given = (("--tickets", tickets), ("--no-share-partitions", not share_partitions), ("--for-devices", for_devices))
    for flag, is_given in given:
        if is_given and flag not in takes:
            taking = [name for name in METHODS if flag in getattr(load_method(name), "TAKES", ())]
            raise InputError(f"{method} takes no {flag}", remedy=f"leave it out; it is for {', '.join(taking)}")


def wants_gradients(method: Method, settings: Any) -> bool:
    """Whether the method looks at the loss's gradients with these settings."""
    asks = getattr(method, "needs_gradients", None)
    return bool(asks is not None and asks(settings))


def needs_images(method: Method) -> bool:
    """Whether the method goes over the network with images (`MethodInput.images`)."""
    return bool(getattr(method, "NEEDS_IMAGES", False))


def require_images(method: Method, *, given: bool, reconstruct: bool = False) -> None:
    """InputError if the method, or `reconstruct`, goes over images and there are none."""
    if (needs_images(method) or reconstruct) and not given:
        raise InputError(
            "layers are fitted on images, and there are none", where="--reconstruct" if reconstruct else "--method",
            expected="a few hundred images as the network will see them; labels are not read",
            remedy="pass --data, such as --data imagefolder:DIR",
        )  # fmt: skip


def one_shot(name: str) -> OneShot:
    """The method, which decides on given weights; InputError if it does not."""
    method = load_method(name)
    if not isinstance(method, OneShot):
        raise InputError(
            f"{name} decides while the network is trained", where="--method",
            remedy=f"edgeprune train --method {name} --arch ... --data ... --epochs N -o DIR",
        )  # fmt: skip
    return method


def setting(default: Any, help: str, *, paper: str = "") -> Any:
    """A field of a method's `Settings`: its default, what it does, and the value that the paper uses."""
    return dataclasses.field(default=default, metadata={"help": help, "paper": paper})


def load_method(name: str) -> Method:
    """The method's module; InputError with the nearest names if there is none."""
    if name not in METHODS:
        raise unknown_name("method", name, METHODS, remedy="`edgeprune list methods` shows all")
    return cast(Method, importlib.import_module(METHODS[name]))


def parse_settings(method: str, assignments: Iterable[str]) -> Any:
    """The method's Settings from `NAME=VALUE` strings; InputError names what is unknown or of the wrong type.

    A setting that holds several values takes them separated by commas; one value alone is a list of one.
    """
    settings_type = load_method(method).Settings
    types = get_type_hints(settings_type)
    known = [f.name for f in dataclasses.fields(settings_type)]
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        name = name.strip().replace("-", "_")
        if not separator:
            raise InputError(f"--set {assignment!r} has no value", expected="NAME=VALUE, such as --set alpha=0.5")
        if name not in known:
            raise unknown_name(f"setting of {method}", name, known)
        values[name] = _parse_value(f"--set {name}={text.strip()}", text.strip(), types[name], method)
    return settings_type(**values)


def _parse_value(where: str, text: str, wanted: Any, method: str) -> Any:
    several = get_origin(wanted) in (tuple, list)
    value = [part.strip() for part in text.split(",") if part.strip()] if several else text
    try:
        return msgspec.convert(value, wanted, strict=False)
    except (msgspec.ValidationError, ValueError) as error:
        raise InputError(
            f"{where} cannot be read: {first_line(error)}",
            expected=describe_type(wanted),
            remedy=f"`edgeprune list methods` shows the settings of {method}",
        ) from error


def describe_type(wanted: Any) -> str:
    """What a setting of this type takes, in words."""
    words = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
    if wanted in words:
        return words[wanted]
    arguments = [a for a in get_args(wanted) if a is not Ellipsis]
    if get_origin(wanted) is Literal:
        return " or ".join(str(a) for a in arguments if a != "")
    if get_origin(wanted) in (tuple, list):
        return f"one or more of: {describe_type(arguments[0])}, separated by commas"
    return " or ".join(describe_type(a) for a in arguments) or str(wanted)
