"""What there is: methods with their settings, architectures, targets and device profiles, as rows of a table."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeprune.devices.device_profile import DeviceProfile

Row = dict[str, Any]


def rows(what: str) -> list[Row]:
    """The rows of `edgeprune list WHAT`; every row has the same keys."""
    return {"methods": methods, "archs": archs, "targets": targets, "devices": devices}[what]()


def methods() -> list[Row]:
    from edgeprune.methods import METHODS, load_method

    table = []
    for name in METHODS:
        module = load_method(name)
        flags = [f"--{flag.lower()} {getattr(module, flag)}" for flag in ("GROUPS", "RATE") if hasattr(module, flag)]
        defaults = f" By default {' '.join(flags)}." if flags else ""
        table.append({"method": name, "setting": "", "default": "", "paper": "", "what": f"{module.SUMMARY}{defaults}"})
        for field in dataclasses.fields(module.Settings):
            default = field.default if field.default is not dataclasses.MISSING else ""
            shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
            meta = field.metadata
            table.append(
                {"method": name, "setting": field.name, "default": shown, "paper": meta["paper"], "what": meta["help"]}
            )
    return table


def archs() -> list[Row]:
    from edgeprune.zoo import ARCH_FORMS, ARCHS

    return [{"arch": name, "what": summary} for name, summary in {**ARCHS, **ARCH_FORMS}.items()]


def targets() -> list[Row]:
    from edgeprune.runners.registry import TARGETS, states

    return [
        {
            "target": s.name,
            "provider": s.provider,
            "precisions": " ".join(TARGETS[s.name].precisions),
            "here": "yes" if s.available else "no",
            "why": s.reason,
        }
        for s in states()
    ]


def devices() -> list[Row]:
    from edgeprune.devices.device_profile import list_profiles, load_profile

    table = []
    for name in list_profiles():
        profile = load_profile(name)
        peak, memory = profile.peak_gflops_fp32, profile.memory_gb_per_s
        table.append(
            {
                "device": name,
                "cores": profile.cores,
                "channel_block": profile.channel_block.fp32,
                "gflops_fp32": f"{peak.value:g} ({peak.certainty})",
                "memory_gb_per_s": f"{memory.value:g} ({memory.certainty})",
                "cost_table": profile.convolution.certainty if profile.convolution else "",
                "runtimes": " ".join(profile.runtimes),
                "estimates": _shares(profile),
                "what": profile.description,
            }
        )
    return table


def _shares(profile: DeviceProfile) -> str:
    """How sure an estimate's shares of the peak are."""
    rates = profile.execution.rates.values() if profile.execution else ()
    return ", ".join(dict.fromkeys(rate.certainty for rate in rates)) or "bound only"
