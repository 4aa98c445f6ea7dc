"""Which method prunes, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from cyclopts import Parameter

from edgeprune.cli.flags.kinds import (
    PRUNING,
    OptionalInteger,
    OptionalNumber,
    OptionalPath,
    OptionalText,
    Switch,
    Texts,
    flags,
)
from edgeprune.errors import InputError

if TYPE_CHECKING:
    from edgeprune.devices.prices import DevicePrices
    from edgeprune.methods.base import PruneRequest
    from edgeprune.precision.formats import Precision
    from edgeprune.pruning.options import PruneOptions
    from edgeprune.pruning.while_training import MethodChoice

WITHOUT_GATHER = frozenset({"ncnn"})
"""Formats whose runtimes have no Gather."""


@Parameter(name="*", group=PRUNING)
@flags
class MethodFlags:
    """What any method is told, whether it works in training or not."""

    rate: OptionalNumber = None
    """Share to remove: of every group's grouped kernels, or of the filters; by default the method's own."""
    layer_rate: Texts = ()
    """LAYER=RATE, a layer's own rate (its name or a pattern such as 'layer4.*'); repeatable."""
    budget: OptionalText = ""
    """What may be left: macs=0.5,params=0.6, shares of the dense network; with gkp-cal also latency=0.6, measured here,
    or latency-ms=8@PROFILE, estimated for a device."""
    set: Texts = ()
    """NAME=VALUE, a setting of the method; repeatable."""
    include_first: Switch = False
    """Prune the first convolution, too."""
    include_shortcuts: Switch = False
    """Prune 1x1 shortcuts, too."""
    skip: Texts = ()
    """Layer that stays dense, or a pattern such as 'layer4.*'; repeatable."""
    align: OptionalText = ""
    """Multiple that channels a group, in and out, and the channels of thinner layers shall be: auto for the channel
    block of the device profile, none, or a number such as 16. By default auto for gkp-cal in a budget, else none."""
    device_profile: OptionalText = ""
    """Device type that the network is for, this machine's by default, and after an @ the runtime, such as
    x86-avx512@litert or x86-avx512@cpu-int8; `edgeprune list devices` shows all."""

    @property
    def device(self) -> str:
        """The device profile that is named, by itself or in a budget; empty for this machine's."""
        from edgeprune.methods.budget import Budget

        return self.device_profile or Budget.parse(self.budget).profile

    def request(
        self,
        method: str,
        seed: int,
        groups: int | None = None,
        share_partitions: bool = True,
        *,
        recommended: bool = False,
        runtime: str = "",
    ) -> PruneRequest:
        """What is asked of a method; InputError for what it does not take, and for what cannot be read.

        `recommended`: nobody named the method; where nobody says how much to prune either, `RECOMMENDED` does.
        `runtime`: what the network is for, as device profiles name it; --align auto goes by it where the device's
        profile knows it, but in a budget of time, which is counted in ONNX Runtime.
        """
        from edgeprune.devices.device_profile import channel_block_for, device_on
        from edgeprune.devices.prices import prices_for
        from edgeprune.methods import amounts, keeps_time
        from edgeprune.methods.base import PruneRequest
        from edgeprune.methods.budget import RECOMMENDED, Budget

        layer_rates = tuple(_layer_rate(text) for text in self.layer_rate)
        says_how_much = self.rate is not None or groups is not None or self.layer_rate
        wish = Budget(latency=RECOMMENDED, is_wish=True) if recommended and not says_how_much else Budget()
        budget = Budget.parse(self.budget) if self.budget else wish
        align = self.align or ("auto" if budget.is_given and keeps_time(method) else "none")
        device = self.device if budget.is_timed else device_on(self.device, runtime)
        own_groups, rate = amounts(method, groups, self.rate, self.layer_rate, budget, self.set)
        return PruneRequest(
            own_groups,
            rate,
            seed,
            share_partitions,
            self.include_first,
            self.include_shortcuts,
            self.skip,
            budget,
            layer_rates,
            channel_block_for(align, device),
            prices_for(align, device),
        )


def _runtime(formats: Sequence[str], precision: Precision) -> str:
    """That of the one format that is written; empty for none, or several."""
    from edgeprune.devices.device_profile import runtime_name
    from edgeprune.exporters.conversions import CONVERSIONS

    found = CONVERSIONS.get(formats[0]) if len(formats) == 1 else None
    return runtime_name(found.target, precision) if found and found.target else ""


def _layer_rate(text: str) -> tuple[str, float]:
    name, _, rate = text.rpartition("=")
    try:
        return name.strip(), float(rate)
    except ValueError:
        raise InputError(f"--layer-rate {text!r} has no rate", expected="LAYER=RATE, such as 'layer4.*=0.3'") from None


@Parameter(name="*", group=PRUNING)
@flags
class PruneFlags(MethodFlags):
    """What to prune, and how."""

    method: OptionalText = ""
    """Pruning method; `edgeprune list methods` shows all with their settings. By default gkp-cal where --data is given,
    to 0.7 of the latency unless --budget, --groups or --rate say otherwise; else tmi-gkp."""
    groups: OptionalInteger = None
    """Groups of each pruned convolution; by default the method's own."""
    tickets: OptionalPath = None
    """Folder with checkpoints of earlier epochs of the same training run; for tmi-gkp."""
    share_partitions: bool = True
    """Layers of a residual stream share their filter clusters, which saves Gathers; for tmi-gkp and gconv."""

    gathers: Literal["auto", "any", "none"] = "auto"
    """none: leave no Gather in the network; layers whose groups need one stay dense. auto: none where --to, or
    --device-profile behind an @, names a runtime that has no Gather (ncnn), else any."""
    for_devices: OptionalText = ""
    """N, or a TOML file of devices that will compute the groups: these read what another device holds only where that
    is worth the exchange over the devices' links; for gconv, tmi-gkp and gkp-cal."""
    exchange_weight: float = 1.0
    """Times the price of an exchange between the devices of --for-devices: below 1 for more exchange, above for less, 0
    for groups as without devices."""
    reconstruct: Switch = False
    """Fit what any method left, layer by layer, to what the dense layers give on the calibration images of --data (no
    labels): closed-form weights for its choice."""

    def options(
        self, seed: int, data: str = "", formats: Sequence[str] = (), precision: Precision = "fp32"
    ) -> PruneOptions:
        """`data`: the source of images, if there are any; `formats` and their `precision`: those that the network will
        be written in besides ONNX."""
        from edgeprune.methods import WITH_IMAGES, WITHOUT_IMAGES, require_taken
        from edgeprune.pruning.options import PruneOptions

        recommended = not self.method and bool(data) and self.tickets is None
        method = self.method or (WITH_IMAGES if recommended else WITHOUT_IMAGES)
        require_taken(
            method,
            tickets=self.tickets is not None,
            share_partitions=self.share_partitions,
            for_devices=bool(self.for_devices),
        )
        request = self.request(
            method, seed, self.groups, self.share_partitions, recommended=recommended,
            runtime=_runtime(formats, precision),
        )  # fmt: skip
        request = dataclasses.replace(
            request, allows_gathers=self._allows_gathers(formats), mixing_price=self._mixing_price()
        )
        return PruneOptions(
            method, request, self.set, self.tickets, self.device, self.reconstruct,
            is_default=vars(self) | {"device_profile": ""} == vars(PruneFlags()),
        )  # fmt: skip

    def _mixing_price(self) -> DevicePrices | None:
        from edgeprune.partitioning.devices import load_devices
        from edgeprune.partitioning.exchange import mixing_price

        if not self.for_devices:
            if self.exchange_weight != PruneFlags().exchange_weight:
                raise InputError("--exchange-weight without devices", remedy="pass --for-devices N or a TOML file")
            return None
        devices = load_devices(self.for_devices, default_profile=self.device_profile)
        return mixing_price(devices, self.exchange_weight)

    def _allows_gathers(self, formats: Sequence[str]) -> bool:
        if self.gathers != "auto":
            return self.gathers == "any"
        _, at, runtime = str(self.device_profile).rpartition("@")
        return not WITHOUT_GATHER.intersection([*formats, runtime if at else ""])


@Parameter(name="*", group=PRUNING)
@flags
class TrainMethodFlags(MethodFlags):
    """The method at work while the network is trained."""

    method: OptionalText = ""
    """Method that prunes during training; `edgeprune list methods` shows all. None: plain training."""

    def choice(self, seed: int) -> MethodChoice | None:
        from edgeprune.pruning.while_training import MethodChoice

        if self.method:
            return MethodChoice(self.method, self.request(self.method, seed), self.set, self.device_profile)
        if vars(self) != vars(TrainMethodFlags()):
            raise InputError("flags for a method, and no method", where="train", remedy="pass --method")
        return None
