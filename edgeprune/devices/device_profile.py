"""Device profiles: facts of one device type (rates, bandwidths, channel block, link), as data with sources.

A profile is a TOML file. Every figure says where it comes from and how sure it is: an estimate is only worth what its
figures are. The profiles that come with edgeprune lie in `edgeprune.device_profiles`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edgeprune.devices.this_machine import default_profile_name
from edgeprune.errors import InputError, unknown_name
from edgeprune.io.toml_files import decode_toml, read_toml

Certainty = Literal["measured", "published", "derived", "uncertain"]
KernelKind = Literal[
    "spatial", "pointwise", "image", "depthwise", "off_block", "off_block_pointwise", "off_block_depthwise"
]
"""Convolutions that run at rates of their own: kernels larger than 1x1; 1x1 and matrix products; on fewer input
channels than a block; one channel a group; and off the channel block, larger than 1x1, 1x1, and one channel a group."""
MoveKind = Literal["operation", "gather", "reorder"]
_RELATIVES: Mapping[KernelKind, KernelKind | None] = {
    "spatial": None,
    "pointwise": "spatial",
    "image": "spatial",
    "depthwise": "spatial",
    "off_block": "spatial",
    "off_block_pointwise": "off_block",
    "off_block_depthwise": "off_block",
}
Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One number, in the unit that its key names."""

    value: Positive
    certainty: Certainty
    """measured: on such a device; published: by its maker; derived: computed, see source; uncertain: check it first."""
    source: str


class ChannelBlock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Channels a group that fast convolutions want a multiple of, per number format."""

    fp32: Count
    certainty: Certainty
    source: str
    fp16: Count | None = None
    int8: Count | None = None


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The device's network."""

    bandwidth_mbit_per_s: Figure
    round_trip_ms: Figure


Share = Annotated[float, msgspec.Meta(gt=0, le=1)]


class ConvolutionCosts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What decides between the forms of a grouped convolution, in FP32, relative to a full-rate multiply-add."""

    rates: dict[Count, Share]
    """Filters a group, from that number on -> share of the full rate, on the channel block."""
    off_block_rate: Share
    """Share of the full rate of a grouped convolution whose channels miss the block."""
    gather_macs_per_element: Positive
    """Multiply-adds in the time in which a Gather moves one element, with the reordering of data around it."""
    macs_per_node: Positive
    """Multiply-adds in the time that starting one node takes."""
    certainty: Certainty
    source: str


class KernelRates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Share of the peak rate at which one kind of convolution multiplies, by its shape."""

    by_filters: dict[Count, Share]
    """Filters a group -> share. Between two entries the share grows linearly; beyond the last it stays."""
    certainty: Certainty
    source: str
    by_width: dict[Count, Positive] = {}
    """Columns of the output -> factor on that share, in the same way. Empty: 1 for all."""
    by_depth: dict[Count, Positive] = {}
    """Multiply-adds of one output (inputs a group times the kernel's size) -> factor, in the same way."""

    def share(self, filters: int, width: int, depth: int) -> float:
        """Of a convolution with so many filters a group, columns of output, and multiply-adds of one output."""
        factors = ((self.by_filters, filters), (self.by_width, width), (self.by_depth, depth))
        return math.prod(_between(table, at) for table, at in factors if table)


class Bandwidths(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How fast one core reads and writes, by how much it touches: caches hold what is small."""

    by_mib: dict[Count, Positive]
    """2^20 bytes that one operation touches -> GB/s. Between two entries the rate changes linearly; more than the last
    comes from memory."""
    certainty: Certainty
    source: str


class ExecutionCosts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What running a network costs besides its multiply-adds at the peak rate, in FP32: estimates are built on it."""

    dispatch_us: Figure
    """To start one node, whatever it does."""
    rates: dict[KernelKind, KernelRates]
    bandwidths: dict[MoveKind, Bandwidths] = {}
    """`operation`: of operations that do little else; without it everything comes from memory. `gather`: of a Gather
    over channels; without it, as any other. `reorder`: of the runtime where it reorders data into and out of the layout
    of its fast kernels; without it they have none."""

    def share(self, kind: KernelKind, filters: int, width: int, depth: int) -> float:
        """Share of the peak rate, as `KernelRates.share`; a kind that is missing is taken for its nearest relative."""
        found: KernelKind | None = kind
        while found is not None and found not in self.rates:
            found = _RELATIVES[found]
        return self.rates[found].share(filters, width, depth) if found else 1.0


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
        extra = _between(table, touched / 2**20) * 1e9 - self.memory_bytes_per_s_of(1)
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


def load_profile(name_or_path: str | Path) -> DeviceProfile:
    """A profile by its name, or from a TOML file of the user's own.

    InputError for an unknown name (with the nearest ones), or a file that is missing, no TOML, or not a profile.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or "/" in text:
        return _read_profile(Path(name_or_path))
    if text not in list_profiles():
        if Path(text).is_file():
            raise InputError("is no .toml file", where=text, expected="a device profile as a .toml file, or its name")
        raise unknown_name("device profile", text, list_profiles(), remedy="`edgeprune list devices` shows all")
    return _shipped_profile(text)


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


def rate_from(rates: Mapping[int, float], filters: int) -> float:
    """The entry of `ConvolutionCosts.rates` for so many filters a group: of fewer than any, the lowest rate."""
    return max((rate for least, rate in rates.items() if least <= filters), default=min(rates.values()))


def _between(table: Mapping[int, float], at: float) -> float:
    """The table's value at a point: linear between two entries, constant beyond the first and the last."""
    points = sorted(table.items())
    for (low, first), (high, second) in pairwise(points):
        if at < high:
            return first + (second - first) * (max(at, low) - low) / (high - low)
    return points[-1][1]


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
