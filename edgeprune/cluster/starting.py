"""Start a worker or a client as the command line describes them: names, addresses, a devices file."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeprune.bundles.bundle import Bundle, open_bundle
from edgeprune.bundles.names import PARTITION
from edgeprune.cluster.client import Cluster, ClusterOptions
from edgeprune.cluster.deploy import Deployed, DeployOptions, deploy
from edgeprune.cluster.local import LocalWorkers
from edgeprune.cluster.roster import Roster, load_roster, warning_of
from edgeprune.cluster.serving import opener
from edgeprune.cluster.transport.network import check_endpoint, import_zenoh
from edgeprune.cluster.worker import Worker, WorkerOptions
from edgeprune.devices.this_machine import is_importable
from edgeprune.errors import InputError
from edgeprune.io.user_cache import cache_folder
from edgeprune.partitioning.manifest import load_partition
from edgeprune.partitioning.prediction import Predicted

Executor = Literal["local", "process", "cluster"]
Goal = Literal["latency", "throughput"]


@dataclass(frozen=True)
class WorkerStart:
    """`edgeprune worker`."""

    name: str
    listen: str
    bundle: Path | None = None
    devices: Path | None = None
    threads: int = 1
    target: str = "cpu"
    store: Path | None = None
    """Folder for what is deployed; None: in the user's cache."""
    discover: bool = False


def run_worker(start: WorkerStart) -> None:
    """Serve until interrupted. InputError if what it is started with does not fit together."""
    worker = Worker(worker_options(start))
    # A worker is stopped, not interrupted: it has nothing half-done that anyone should be told of.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stop())
    worker.run()


def worker_options(start: WorkerStart) -> WorkerOptions:
    """What the command line asks for; InputError if a part of it is at fault."""
    import_zenoh()
    check_endpoint(start.listen, where="--listen")
    if start.bundle is not None:
        open_bundle(start.bundle)
    roster = load_roster(start.devices) if start.devices is not None else Roster((start.name,))
    network = roster.network_of_worker(start.name, start.listen, discover=start.discover)
    for warning in (warning_of(network), roster.elsewhere(start.name, start.listen), roster.of_host(start.name)):
        if warning:
            logging.getLogger("edgeprune.cluster").warning("%s", warning)
    store = start.store or cache_folder() / "cluster" / start.name
    return WorkerOptions(
        start.name,
        network,
        opener(start.target, start.threads),
        store,
        start.bundle,
        roster.peers_of(start.name, discover=start.discover),
        roster.admits if start.devices is not None else lambda address: True,
    )


def log_to_stderr() -> None:
    """What a worker does and refuses, a line each with the time; zenoh's own warnings beside it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    import_zenoh().init_log_from_env_or("error,zenoh_link_tls=warn")  # on standard output: who has no good certificate


@dataclass(frozen=True)
class Execution:
    """Where and how often `edgeprune run` runs a bundle."""

    executor: Executor | None = None
    """None: workers on this machine for a split bundle, and else this process."""
    devices: Path | None = None
    repeat: int = 1
    timeout_s: float = 10.0
    goal: Goal = "latency"
    threads: int = 1
    discover: bool = False
    """Whether workers without an address are looked for."""

    def check(self) -> None:
        """InputError if it makes no sense."""
        if not 1 <= self.repeat <= 10_000_000:
            raise InputError(f"--repeat {self.repeat} is out of range", expected="1 or more")
        if not 0 < self.timeout_s <= 3600:
            raise InputError(f"--timeout {self.timeout_s:g} is out of range", expected="seconds above 0, at most 3600")
        if self.executor == "cluster" and self.devices is None:
            remedy = "pass --devices FILE with an `address` for each device, or with names alone and --discover"
            raise InputError("--executor cluster needs the devices' addresses", remedy=remedy)
        if self.executor != "cluster" and self.devices is not None:
            raise InputError("--devices is for --executor cluster", remedy="pass --executor cluster, too")
        if self.discover and self.executor != "cluster":
            raise InputError("--discover is for --executor cluster", remedy="pass --executor cluster, too")
        if self.goal == "throughput" and self.executor not in ("process", "cluster"):
            raise InputError("--for throughput needs several devices", remedy="pass --executor cluster or process")

    def chosen(self, *, split: bool) -> Executor:
        """The executor, where none was named."""
        if self.executor is not None:
            return self.executor
        return "process" if split and is_importable("zenoh") else "local"


@contextlib.contextmanager
def opened_cluster(bundle: Bundle, execution: Execution) -> Iterator[Cluster]:
    """A client for the bundle, with workers on this machine (`process`) or those of the devices file (`cluster`)."""
    import_zenoh()
    bundle.require_sound()
    split = bundle.has(PARTITION)
    manifest = load_partition(bundle.folder).manifest if split else None
    names = [entry.name for entry in manifest.devices] if manifest else []
    whole = execution.goal == "throughput" and not (manifest and is_pipeline(manifest.predicted))
    if execution.executor == "cluster" and execution.devices is not None:
        roster = load_roster(execution.devices)
        host = names[0] if names else roster.names[0]
        _check_names(bundle, names, roster)
        options = _options(execution, host, access=roster.access_of(host))
        addresses = roster.workers(discover=execution.discover)
        with Cluster(bundle.folder, addresses, whole=whole, options=options) as cluster:
            yield cluster
        return
    if not split:
        raise InputError(
            "is not split", where=bundle.folder, expected="a split bundle", remedy="split it (`edgeprune split`)"
        )
    with LocalWorkers(bundle.folder, names[1:], threads=execution.threads) as workers:
        try:
            with Cluster(
                bundle.folder, workers.addresses, whole=whole, options=_options(execution, names[0], start_s=60.0)
            ) as cluster:
                yield cluster
        except InputError as error:
            if not (reasons := workers.reasons()):
                raise
            raise InputError(f"a local worker ended: {reasons}", where=bundle.folder) from error


def is_pipeline(predicted: Predicted) -> bool:
    """Whether it was split for throughput, and parts of each frame on all devices are faster than whole frames, or all
    that fits."""
    return predicted.throughput is not None and predicted.throughput.mode == "pipeline"


def _options(
    execution: Execution, host: str, *, start_s: float = 10.0, access: Mapping[str, Any] | None = None
) -> ClusterOptions:
    return ClusterOptions(
        threads=execution.threads,
        timeout_s=execution.timeout_s,
        start_timeout_s=start_s,
        host=host,
        trace=execution.goal == "latency",
        access=access or {},
        discover=execution.discover,
    )


def _check_names(bundle: Bundle, names: list[str], roster: Roster) -> None:
    if missing := [name for name in names if name not in roster.names]:
        raise InputError(
            f"is split over {', '.join(names)}, and the devices file has no {', '.join(missing)}",
            where=bundle.folder,
            expected=f"devices of the file: {', '.join(roster.names)}",
            remedy="use the file that the bundle was split with, or split it again",
        )


def deploy_bundle(folder: Path, devices: Path, *, whole: bool, discover: bool = False) -> list[Deployed]:
    """`edgeprune deploy`. InputError as `deploy`."""
    import_zenoh()
    bundle, roster = open_bundle(folder), load_roster(devices)
    names = [entry.name for entry in load_partition(folder).manifest.devices] if bundle.has(PARTITION) else []
    _check_names(bundle, names, roster)
    host = names[0] if names else roster.names[0]
    options = DeployOptions(whole or not names, host, access=roster.access_of(host), discover=discover)
    return deploy(folder, roster.workers(discover=discover), options)
