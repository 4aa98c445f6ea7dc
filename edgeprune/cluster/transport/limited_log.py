"""Lines of the log about peers, so few that nobody who may speak to a node can fill its disk."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger("edgeprune.cluster")
FIRST_LINES = 10
"""Of a peer; what follows is counted."""
PERIOD_S = 10.0
"""How often a peer's count is written, and after how long a silence its lines are again."""
MOST_PEERS = 128
"""That are told apart; further ones share their lines."""
OTHERS = "others"


@dataclass
class _Lines:
    since: float
    written: int = 0
    hidden: int = 0


class LimitedLog:
    """Each peer's first lines, then one with their count each `PERIOD_S`, as long as there are any. May be called from
    any thread; someone has to call `sum_up` now and then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._peers: dict[str, _Lines] = {}

    def warning(self, peer: str, text: str, *arguments: object) -> None:
        self.log(logging.WARNING, peer, text, *arguments)

    def log(self, level: int, peer: str, text: str, *arguments: object) -> None:
        """Write a line about a peer, or count it."""
        with self._lock:
            if peer not in self._peers and len(self._peers) >= MOST_PEERS:
                peer = OTHERS
            lines = self._peers.setdefault(peer, _Lines(self._clock()))
            is_written = lines.written < FIRST_LINES
            lines.written += is_written
            lines.hidden += not is_written
        if is_written:
            logger.log(level, text, *arguments)

    def sum_up(self, *, now: bool = False) -> None:
        """Write the counts that are due, or with `now` all."""
        time_s, due = self._clock(), dict[str, int]()
        with self._lock:
            for peer, lines in list(self._peers.items()):
                if not now and time_s - lines.since < PERIOD_S:
                    continue
                if lines.hidden:
                    due[peer] = lines.hidden
                    lines.since, lines.hidden = time_s, 0
                else:
                    del self._peers[peer]
        for peer, count in due.items():
            logger.warning("%s: %d more lines like these", peer, count)
