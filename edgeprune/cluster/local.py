"""Workers as processes of this machine, on loopback: how to try a split network before there are devices.

`python -m edgeprune.cluster.local` is one of them. It reads what to do from its standard input and ends when that ends,
so that none is left behind, however its parent dies.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

import msgspec

from edgeprune.cluster.serving import opener
from edgeprune.cluster.transport.network import Network, free_addresses, import_zenoh
from edgeprune.cluster.worker import Worker, WorkerOptions
from edgeprune.errors import EdgepruneError


class Job(msgspec.Struct, frozen=True):
    """What a local worker is told."""

    name: str
    listen: str
    connect: tuple[str, ...]
    peers: tuple[str, ...]
    bundle: str
    store: str
    threads: int = 1
    target: str = "cpu"


class LocalWorkers:
    """A worker process for each of these devices. Use as a context manager."""

    def __init__(
        self, folder: str | Path | None, devices: Sequence[str], *, threads: int = 1, target: str = "cpu"
    ) -> None:
        """Start them with a bundle, or for None with nothing, to be deployed to; they need a second or so to be ready.
        InputError if zenoh is not installed."""
        import_zenoh()
        self.addresses = dict(zip(devices, free_addresses(len(devices)), strict=True))
        """Device -> where its worker listens."""
        self._folder = str(Path(folder).absolute()) if folder is not None else ""
        self._threads, self._target = threads, target
        self._scratch = tempfile.TemporaryDirectory(prefix="edgeprune-")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for device in devices:
            self.start(device)

    def __enter__(self) -> LocalWorkers:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def start(self, device: str) -> None:
        """Start a device's worker, or start it again after it died."""
        names = list(self.addresses)
        before = names[: names.index(device)]  # of two workers, the later one connects
        job = Job(
            device,
            self.addresses[device],
            tuple(self.addresses[name] for name in before),
            tuple(name for name in names if name != device),
            self._folder,
            str(Path(self._scratch.name) / device),
            self._threads,
            self._target,
        )
        with self.log(device).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "edgeprune.cluster.local"], stdin=subprocess.PIPE, stdout=log, stderr=log
            )
        stdin: IO[bytes] | None = process.stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once: its log says why
            stdin.write(msgspec.json.encode(job) + b"\n")
            stdin.flush()
        self.processes[device] = process

    def log(self, device: str) -> Path:
        """Where a worker writes what it does."""
        return Path(self._scratch.name) / f"{device}.log"

    def reasons(self) -> str:
        """Of workers that ended: their last words."""
        ended = [device for device, process in self.processes.items() if process.poll() is not None]
        last = {device: self.log(device).read_text(errors="replace").strip().splitlines()[-1:] for device in ended}
        return "; ".join(f"{device} ended: {''.join(lines)}" for device, lines in last.items())

    def stop(self, *devices: str) -> None:
        """End the workers of these devices; their logs stay."""
        ending = [self.processes[device] for device in devices]
        for process in ending:
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
        for process in ending:
            try:
                process.wait(timeout=3)
            except subprocess.TimeoutExpired:  # frozen, or in the midst of a long computation
                process.kill()
                process.wait()

    def close(self) -> None:
        """End all workers; a second call does nothing."""
        self.stop(*self.processes)
        self.processes = {}
        self._scratch.cleanup()


def main() -> int:
    """Be a local worker until standard input ends."""
    import logging

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the parent, which then closes our input
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    try:
        worker = Worker(
            WorkerOptions(
                job.name,
                Network((job.listen,), job.connect),
                opener(job.target, job.threads),
                Path(job.store),
                Path(job.bundle) if job.bundle else None,
                job.peers,
            )
        )
    except EdgepruneError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    threading.Thread(target=_stop_at_the_end, args=(worker,), daemon=True).start()
    worker.run()
    return 0


def _stop_at_the_end(worker: Worker) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    worker.stop()


if __name__ == "__main__":
    sys.exit(main())
