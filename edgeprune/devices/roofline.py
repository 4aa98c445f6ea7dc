"""The least time that a device can take for some multiply-adds on some bytes, from the peaks of its profile."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.devices.device_profile import DeviceProfile


@dataclass(frozen=True)
class Roofline:
    """What a device does at most, with as many threads as are used. Bytes are taken to come from memory; those that a
    cache holds come faster, so that a layer can run above this bound."""

    device: str
    """The device profile's name."""
    macs_per_s: float
    bytes_per_s: float
    is_measured: bool = True
    """Whether the peaks are what such a device was seen to do, not what follows from its clock and its data sheet."""

    @staticmethod
    def of(profile: DeviceProfile, threads: int = 1, precision: str = "fp32") -> Roofline:
        """Of a profile: `threads` of its cores multiply and use what memory these reach; a GPU is used whole. Where
        a profile does not know the rate of fp16 or int8, that of fp32 counts."""
        others = {"fp16": profile.peak_gflops_fp16, "int8": profile.peak_gops_int8}
        faster = (others.get(precision) or profile.peak_gflops_fp32).value / profile.peak_gflops_fp32.value
        is_measured = profile.peak_gflops_fp32.certainty == "measured"
        macs, moved = profile.macs_per_s_of(threads) * faster, profile.memory_bytes_per_s_of(threads)
        return Roofline(profile.name, macs, moved, is_measured)

    def compute_ms(self, macs: int) -> float:
        return macs / self.macs_per_s * 1e3

    def memory_ms(self, bytes_moved: int) -> float:
        return bytes_moved / self.bytes_per_s * 1e3

    def bound_ms(self, macs: int, bytes_moved: int) -> float:
        """Milliseconds, as are both others."""
        return max(self.compute_ms(macs), self.memory_ms(bytes_moved))
