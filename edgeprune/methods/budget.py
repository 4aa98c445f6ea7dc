"""What a pruned network may still need: multiply-adds, parameters, or time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from edgeprune.devices.device_profile import load_profile
from edgeprune.errors import InputError, unknown_name
from edgeprune.methods.on_images import Clock

RECOMMENDED = 0.7
"""Share of the dense latency that is aimed at where nobody says how much to prune."""
SHARES = ("macs", "params", "latency")
EXAMPLE = "--budget latency=0.6, --budget macs=0.5,params=0.6 or --budget latency-ms=8@raspberry-pi-5"


@dataclass(frozen=True)
class Budget:
    """The most that the pruned network may need, as shares of the dense one; None where it does not matter."""

    macs: float | None = None
    params: float | None = None
    latency: float | None = None
    """Measured where the network is pruned."""
    latency_ms: float | None = None
    """Milliseconds a sample on the device of `profile`, estimated, in place of a share."""
    profile: str = ""
    is_wish: bool = False
    """Nobody asked for it: where it cannot be met, the nearest that can be had will do."""

    def check(self) -> None:
        """InputError if a share is none, a time is none, or there is no such device."""
        for name, share in self.shares.items():
            if not 0.0 < share < 1.0:
                raise InputError(
                    f"--budget {name}={share:g} is out of range",
                    expected="a share of the dense network between 0 and 1, both excluded",
                    remedy=f"--budget {name}=0.5 asks for half of it",
                )
        if self.latency_ms is not None and not (self.latency_ms > 0 and math.isfinite(self.latency_ms)):
            raise InputError(
                f"--budget latency-ms={self.latency_ms:g} is out of range", expected="milliseconds above 0"
            )
        if self.profile:
            load_profile(self.profile)
        if self.latency_ms is not None and self.latency is not None:
            raise InputError("--budget has both latency and latency-ms", remedy="leave one of them out")

    @property
    def shares(self) -> dict[str, float]:
        """Those that are given as shares, by name."""
        given = {"macs": self.macs, "params": self.params, "latency": self.latency}
        return {name: share for name, share in given.items() if share is not None}

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is limited, by its name on the command line."""
        return (*self.shares, *(("latency-ms",) if self.latency_ms is not None else ()))

    @property
    def is_given(self) -> bool:
        return bool(self.kinds)

    @property
    def is_timed(self) -> bool:
        """Whether it takes a clock."""
        return self.latency is not None or self.latency_ms is not None

    @property
    def settings(self) -> dict[str, float | str]:
        """As a plan records it."""
        found: dict[str, float | str] = {**self.shares}
        if self.latency_ms is not None:
            found |= {"latency_ms": self.latency_ms, "profile": self.profile}
        return found

    def latency_share(self, clock: Clock | None) -> float | None:
        """The latency that is allowed, as a share of the dense network's by this clock; None for any."""
        if self.latency_ms is not None and clock is not None:
            return self.latency_ms / clock.dense_ms
        return self.latency

    @staticmethod
    def of(given: Mapping[str, float | str] | str | None) -> Budget:
        """A budget from a text as `parse` takes it, or from this class's fields by name."""
        if given is None or isinstance(given, str):
            return Budget.parse(given or "")
        known = [f.name for f in dataclasses.fields(Budget)]
        for name in given:
            if name not in known:
                raise unknown_name("budget", name, known)
        budget = Budget(**given)  # type: ignore[arg-type]
        budget.check()
        return budget

    @staticmethod
    def parse(text: str) -> Budget:
        """A budget from `macs=0.5,params=0.6`; none from an empty text. InputError if it cannot be read."""
        values: dict[str, float] = {}
        profile = ""
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = (piece.strip() for piece in part.partition("="))
            if name not in (*SHARES, "latency-ms"):
                raise unknown_name("budget", name, (*SHARES, "latency-ms"), remedy=EXAMPLE)
            if name in values:
                raise InputError(f"--budget {text!r} names {name} twice", expected="one value each")
            if name == "latency-ms":
                value, at, profile = value.partition("@")
                if not at or not profile:
                    raise InputError(
                        f"--budget {part!r} names no device",
                        expected="latency-ms=MILLISECONDS@PROFILE, such as latency-ms=8@raspberry-pi-5",
                        remedy="`edgeprune list devices` shows all; latency=SHARE is measured on this machine",
                    )
            try:
                values[name] = float(value)
            except ValueError:
                what = "milliseconds" if name == "latency-ms" else "share"
                raise InputError(
                    f"--budget {part!r} has no {what}",
                    expected=f"{name}=8@PROFILE" if name == "latency-ms" else
                    f"{name}=SHARE of the dense network, such as {name}=0.5",
                ) from None  # fmt: skip
        latency_ms = values.pop("latency-ms", None)
        shares = {name: values.get(name) for name in SHARES}
        budget = Budget(shares["macs"], shares["params"], shares["latency"], latency_ms, profile)
        budget.check()
        return budget
