"""The two threads of a device: while one computes, the other goes on with what comes.

They change places instead of handing work to each other: whichever takes the event that makes a step ready runs that
step, and the other one waits for events from then on. So no tensor waits for a change of threads, and no peer for the
end of a computation.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from edgeprune.cluster.engine import Engine, Work

logger = logging.getLogger("edgeprune.cluster")
MOST_AT_ONCE = 64
"""Events that are handled before it is looked for work again: whoever sends without end keeps nobody from being
served."""


class Crew:
    """Owns an engine's threads. All of the owner's functions are called with `lock` held, by one thread at a time."""

    def __init__(
        self,
        name: str,
        engine: Engine,
        get: Callable[[float], Any],
        handle: Callable[[Any], None],
        tend: Callable[[], None],
        *,
        poll_s: float,
    ) -> None:
        """`get` waits so many seconds for an event, or returns None; `handle` deals with it; `tend` is called at least
        every `poll_s`."""
        self._engine, self._get, self._handle, self._tend = engine, get, handle, tend
        self._poll_s = poll_s
        self.lock = threading.RLock()
        """Guards the engine and all that its owner keeps."""
        self._turn = threading.Lock()
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=self._run, name=f"{name}-{one}", daemon=True) for one in (1, 2)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Wait until both threads have ended. RuntimeError if one of them calls it: it would wait for itself."""
        if threading.current_thread() in self._threads:
            raise RuntimeError("closed by a call back of an answer: close it in another thread")
        self._closing.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            with self._turn:
                work = self._wait_for_work()
            while work is not None and not self._closing.is_set():
                computed = work.run()
                with self.lock:
                    self._guarded(self._engine.take, computed)
                    work = self._engine.next_work()

    def _wait_for_work(self) -> Work | None:
        """Handle what has happened, or happens before the next poll."""
        event, handled = self._get(self._poll_s), 0
        with self.lock:
            while event is not None:
                self._guarded(self._handle, event)
                handled += 1
                event = self._get(0.0) if handled < MOST_AT_ONCE else None
            self._guarded(self._tend)
            return self._engine.next_work()

    @staticmethod
    def _guarded(act: Callable[..., None], *given: Any) -> None:
        try:
            act(*given)
        except Exception:  # a bug: requests end at their deadlines, later ones may be served
            logger.exception("the thread %s failed", threading.current_thread().name)
