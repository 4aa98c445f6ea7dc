"""Device profiles: facts of one device type (rates, bandwidths, channel block, link), as data with sources.

A profile is a TOML file. Every figure says where it comes from and how sure it is: an estimate is only worth what its
figures are. The profiles that come with edgeprune lie in `edgeprune.device_profiles`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

import msgspec

from edgeprune.devices.figures import (
    Bandwidths,
    ChannelBlock,
    ConvolutionCosts,
    Count,
    ExchangeCosts,
    ExecutionCosts,
    Figure,
    KernelRates,
    Link,
    MoveKind,
    RuntimeCosts,
    between,
)
from edgeprune.devices.this_machine import default_profile_name
from edgeprune.errors import InputError, unknown_name
from edgeprune.io.toml_files import decode_toml, read_toml

EXCHANGES_AS = "x86-avx512"
"""The profile whose figures stand in for those of exchanges where a profile has none."""
Marked = Figure | ChannelBlock | ConvolutionCosts | KernelRates | Bandwidths
"""What says how sure it is, and where it comes from."""


class DeviceProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Facts of one device type. Rates are peaks of one whole device, all its cores."""

    name: str
    description: str
    kind: Literal["cpu", "gpu"]
    cores: Count
    """CPU cores, or streaming multiprocessors of a GPU."""
    channel_block: ChannelBlock
    peak_gflops_fp32: Figure
    """10^9 FLOP/s; MACs/s are half of it."""
    memory_gb_per_s: Figure
    link: Link
    peak_gflops_fp16: Figure | None = None
    peak_gops_int8: Figure | None = None
    npu_gops_int8: Figure | None = None
    """Of an accelerator beside the processor, which edgeprune has no runner for."""
    core_gflops_fp32: Figure | None = None
    """Peak of one core working alone; None: its part of the whole."""
    core_gb_per_s: Figure | None = None
    """Memory bandwidth of one core working alone; None: as for the whole device."""
    convolution: ConvolutionCosts | None = None
    """None where nobody has measured: the forms of layers are then not chosen by prediction."""
    execution: ExecutionCosts | None = None
    """None: estimates are a bound, everything at its peak."""
    exchange: ExchangeCosts | None = None
    """None: taken as on `EXCHANGES_AS`."""
    runtimes: dict[str, RuntimeCosts] = {}
    """A target, followed by -int8 for that precision -> what is known of it. All else is ONNX Runtime's, in FP32."""

    def on(self, runtime: str) -> DeviceProfile:
        """The device with the channel block and the cost table of one of its `runtimes`; InputError for any other."""
        if runtime not in self.runtimes:
            raise InputError(
                f"nothing is known of {runtime!r} on {self.name}",
                expected=" or ".join(f"{self.name}@{known}" for known in self.runtimes) or self.name,
                remedy="`edgeprune profile --calibrate --target all -o FILE.toml` measures it on the device",
            )
        costs = self.runtimes[runtime]
        found = costs.channel_block
        block = ChannelBlock(round(found.value), found.certainty, found.source)
        return msgspec.structs.replace(
            self, name=f"{self.name}@{runtime}", channel_block=block, convolution=costs.convolution, runtimes={}
        )

    def on_if_known(self, target: str, precision: str = "fp32") -> DeviceProfile:
        """The same for a target in a precision; the device as it is where nothing is known of that."""
        runtime = runtime_name(target, precision)
        return self.on(runtime) if runtime in self.runtimes else self

    @property
    def exchange_seconds(self) -> tuple[float, float]:
        """Seconds a byte, and seconds a message, that exchanges with other devices take besides the link."""
        known = self.exchange or load_profile(EXCHANGES_AS).exchange
        return known.seconds if known else (0.0, 0.0)

    @property
    def macs_per_s(self) -> float:
        """Peak multiply-adds a second in FP32."""
        return self.peak_gflops_fp32.value * 1e9 / 2

    def macs_per_s_of(self, threads: int) -> float:
        """The same of so many threads, one a core. A GPU works as a whole."""
        one = self.core_gflops_fp32.value * 1e9 / 2 if self.core_gflops_fp32 else self.macs_per_s / self.cores
        return self._of(threads, one, self.macs_per_s)

    def memory_bytes_per_s_of(self, threads: int) -> float:
        """Memory bandwidth that so many threads reach, one a core."""
        whole = self.memory_gb_per_s.value * 1e9
        return self._of(threads, self.core_gb_per_s.value * 1e9 if self.core_gb_per_s else whole, whole)

    def bytes_per_s_of(self, threads: int, touched: float, what: MoveKind = "operation") -> float:
        """Rate at which so many threads read and write so many bytes. Each core has caches of its own: what they add
        to the rate of memory, each adds."""
        memory = self.memory_bytes_per_s_of(threads)
        known = self.execution.bandwidths if self.execution else {}
        if not known:
            return memory
        table = known.get(what, known.get("operation", next(iter(known.values())))).by_mib
        extra = between(table, touched / 2**20) * 1e9 - self.memory_bytes_per_s_of(1)
        if touched > max(table) * 2**20 and (what == "operation" or extra > 0):
            return memory
        return max(memory + extra * (threads if self.kind == "cpu" else 1), 0.1 * memory)

    def _of(self, threads: int, one: float, whole: float) -> float:
        if self.kind == "gpu" or threads >= self.cores:
            return whole
        return one + (whole - one) * (threads - 1) / (self.cores - 1)

    def figures(self) -> dict[str, Marked]:
        """Everything in it that has a certainty and a source, by its key in the file."""
        return dict(_marked(self, ""))


def list_profiles() -> tuple[str, ...]:
    """Names of the profiles that come with edgeprune."""
    folder = resources.files("edgeprune.device_profiles")
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")))


def runtime_name(target: str, precision: str) -> str:
    """Under which a profile's `runtimes` has a target in a precision: litert, litert-int8."""
    return target if precision == "fp32" else f"{target}-{precision}"


def load_profile(name_or_path: str | Path) -> DeviceProfile:
    """A profile by its name, or from a TOML file of the user's own; after an @ with one of its runtimes, such as
    raspberry-pi-5@litert.

    InputError for an unknown name (with the nearest ones), or a file that is missing, no TOML, or not a profile.
    """
    if isinstance(name_or_path, Path):
        return _load(name_or_path)
    device, runtime = split_device(name_or_path)
    return _load(device) if runtime is None else _load(device).on(runtime)


def split_device(name: str) -> tuple[str, str | None]:
    """A device's name or file, and the runtime behind its @; None where it names none."""
    device, _, runtime = name.rpartition("@")
    return (name, None) if not device or "/" in runtime or runtime.endswith(".toml") else (device, runtime)


def _load(name_or_path: str | Path) -> DeviceProfile:
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or "/" in text:
        return _read_profile(Path(name_or_path))
    if text not in list_profiles():
        if Path(text).is_file():
            raise InputError("is no .toml file", where=text, expected="a device profile as a .toml file, or its name")
        raise unknown_name("device profile", text, list_profiles(), remedy="`edgeprune list devices` shows all")
    return _shipped_profile(text)


def device_on(device: str | Path, runtime: str) -> str | Path:
    """The device's name with the runtime behind it, as `load_profile` takes it: where a runtime is given, the device
    does not name one itself, and its profile knows that. `device`: empty for the one nearest to this machine."""
    name = device or default_profile_name()
    return f"{name}@{runtime}" if runtime in load_profile(name).runtimes else device


def channel_block_for(align: int | str, profile: str | Path = "") -> int:
    """The multiple that channels shall be: a profile's FP32 block for "auto", 1 for "none", else the number itself.

    `profile` is a name or file as for `load_profile`; by default the one nearest to this machine. InputError for an
    unknown one whatever is asked, and for anything else that is no integer.
    """
    found = load_profile(profile or default_profile_name())
    if align == "auto":
        return found.channel_block.fp32
    if align == "none":
        return 1
    try:
        return int(align) if isinstance(align, str) else operator.index(align)
    except (TypeError, ValueError):
        raise InputError(f"--align {align!r} is no block", expected="auto, none, or a number such as 16") from None


def _marked(value: object, key: str) -> Iterator[tuple[str, Marked]]:
    """Whatever says how sure it is in a part of a profile, under its dotted key."""
    if isinstance(value, Marked):
        yield key, value
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from _marked(getattr(value, name), f"{key}.{name}".strip("."))
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _marked(part, f"{key}.{name}")


def _read_profile(path: Path) -> DeviceProfile:
    return read_toml(path, DeviceProfile, what="a device profile")


@cache
def _shipped_profile(name: str) -> DeviceProfile:
    data = resources.files("edgeprune.device_profiles").joinpath(f"{name}.toml").read_bytes()
    return decode_toml(data, DeviceProfile, where=f"{name}.toml", what="a device profile")
