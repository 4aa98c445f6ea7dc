"""Two network namespaces with a link of a given rate between them: two machines and a cable, for the network.

Needs root, iproute2 and util-linux. The namespaces have no names: each lives as long as a process that ends with this
one, so that nothing is left behind, however this one ends.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

ENDS = ("10.213.77.1", "10.213.77.2")
LINK = "ep0"
"""The link's name at both ends."""
BURST_S, LEAST_BURST = 0.5e-3, 16 * 1024
"""What passes at once before the rate holds: a cable lets nothing, and with less `tbf` does not reach the rate."""
UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


class NamespaceError(Exception):
    """This machine does not allow it; the text says what failed."""


@dataclass(frozen=True)
class Pair:
    """Both namespaces. `end` is 0 or 1."""

    holders: tuple[int, int]
    """Processes that live in them."""

    def inside(self, end: int) -> list[str]:
        """What to put before a command to run it in a namespace, as the process that is started; it ends with the
        thread that started it."""
        return ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net=/proc/{self.holders[end]}/ns/net"]

    def set_link(self, state: str, end: int = 1) -> None:
        """Cut the link at one end (`down`), or mend it (`up`)."""
        _command(*self.inside(end), "ip", "link", "set", LINK, state)


@contextlib.contextmanager
def namespaces(rate: str) -> Iterator[Pair]:
    """The pair, linked at `rate` (1gbit, 100mbit) each way; NamespaceError if that cannot be."""
    with contextlib.ExitStack() as stack:
        pair = Pair((_hold(stack), _hold(stack)))
        first, second = map(str, pair.holders)
        _command("ip", "link", "add", LINK, "netns", first, "type", "veth", "peer", "name", LINK, "netns", second)
        for end, address in enumerate(ENDS):
            inside = pair.inside(end)
            _command(*inside, "ip", "address", "add", f"{address}/24", "dev", LINK)
            for device in ("lo", LINK):
                _command(*inside, "ip", "link", "set", device, "up")
            limit = ("tbf", "rate", rate, "burst", str(burst_bytes(rate)), "latency", "100ms")
            _command(*inside, "tc", "qdisc", "add", "dev", LINK, "root", *limit)
        yield pair


def burst_bytes(rate: str) -> int:
    """That pass a link of this rate at once; NamespaceError if it is none."""
    return max(LEAST_BURST, round(_bits(rate) / 8 * BURST_S))


def _bits(rate: str) -> float:
    """A second."""
    for unit, size in UNITS.items():
        with contextlib.suppress(ValueError):
            if rate.endswith(unit):
                return float(rate.removesuffix(unit)) * size
    raise NamespaceError(f"{rate!r} is no rate such as 1gbit or 100mbit")


def _hold(stack: contextlib.ExitStack) -> int:
    """The process of a new namespace: it ends when its input does, which this process has in hand."""
    words = ["unshare", "--net", "sh", "-c", "echo in && exec cat"]
    try:
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        raise NamespaceError(f"{' '.join(words)}: {error.strerror}") from error
    stack.enter_context(process)
    assert process.stdout is not None
    assert process.stderr is not None
    if not process.stdout.readline():
        raise NamespaceError(process.stderr.read().decode(errors="replace").strip())
    return process.pid


def _command(*words: str) -> None:
    try:
        subprocess.run(words, check=True, capture_output=True, text=True)
    except OSError as error:
        raise NamespaceError(f"{words[0]}: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        raise NamespaceError(f"{' '.join(words)}: {error.stderr.strip()}") from error
