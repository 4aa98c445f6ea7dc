"""Dense and pruned in every runtime, as a table's cells and in sentences; see `profiling.runtimes`."""

from __future__ import annotations

from collections.abc import Iterator

from edgeprune.io import formatting as f
from edgeprune.profiling.runtimes.record import Place, RuntimeRow, RuntimesRecord

CLEAR_DROP = 1.0
"""Points of top-1 from which on the fastest network's accuracy is told beside its speed."""
COLUMNS = ("runtime", "precision", "forms", "dense", "pruned", "speed-up, own dense", "speed-up, fastest dense")
BEST_DENSE, BEST_PRUNED = "fastest: dense", "fastest: pruned"


def columns_of(record: RuntimesRecord) -> tuple[str, ...]:
    """The heads of the table; accuracies only where any is known."""
    return (*COLUMNS, *((_accuracy_head(record),) if _has_accuracy(record) else ()), "")


def cells(record: RuntimesRecord) -> tuple[tuple[str, ...], ...]:
    """The table's rows; a row without figures ends with its reason."""
    return tuple(_cells(record, row) for row in record.rows)


def verdicts(record: RuntimesRecord) -> Iterator[str]:
    """Which network is the fastest, by how much, and where none that is pruned is faster than the fastest dense one."""
    if best := record.best:
        text = f"The fastest is the {best.network} network in {_where(best)}: {f.milliseconds(best.p50_ms)}"
        speedup = next((row.speedup_over_fastest_dense for row in record.rows if record.is_best(row)), None)
        dense = record.fastest_dense.get(best.precision)
        if best.network == "pruned" and dense is not None:
            change = f.speed_change(speedup)
            text += f", {change} as the fastest dense one ({_where(dense)}, {f.milliseconds(dense.p50_ms)})"
        yield f"{text}."
        yield from _cost_of(record)
    if record.ties:
        named = f.some([f"{place.network} in {_where(place)}" for place in record.ties])
        yield f"Not to be told apart from it in this run: {named}."
    for precision, dense in record.fastest_dense.items():
        pruned = [row for row in record.rows if row.precision == precision and row.pruned]
        if all((row.speedup_over_fastest_dense or 0.0) <= 1 for row in pruned):
            yield (
                f"In {f.clean(precision)} the pruned network is in no runtime faster than the fastest dense one "
                f"({_where(dense)}, {f.milliseconds(dense.p50_ms)}): in this precision pruning gains nothing here."
            )
    if any(not row.may_win and row.pruned for row in record.rows):
        yield "Rows in INT8 are out of the choice: it was calibrated on random inputs. Pass --data."


def _cost_of(record: RuntimesRecord) -> Iterator[str]:
    """A sentence where the fastest network is clearly less accurate than the dense one in full precision."""
    of_dense = [row.accuracy_dense for row in record.rows if row.precision == "fp32" and row.accuracy_dense is not None]
    best = record.best
    row = next((row for row in record.rows if record.is_best(row)), None)
    if record.metric or not of_dense or best is None or row is None:
        return
    own = row.accuracy_pruned if best.network == "pruned" else row.accuracy_dense
    if own is not None and of_dense[0] - own > CLEAR_DROP:
        yield (
            f"Speed alone decided: its top-1 is {f.score(own, '')}, {of_dense[0] - own:.2f} points below the dense "
            f"network's {f.score(of_dense[0], '')} in fp32. See that this is what you want before it is deployed."
        )


def missing_words(record: RuntimesRecord) -> Iterator[str]:
    """What is not installed here, and how to install it."""
    return (f"not here: {f.clean(one.target)}: {f.harmless(one.reason)}" for one in record.missing)


def deploy_words(record: RuntimesRecord) -> str:
    """What was kept and how to use it; empty where nothing was."""
    if not record.deploy:
        return ""
    kept = f"Kept in the bundle: {', '.join(map(f.clean, record.kept))}; " if record.kept else ""
    return f"{kept}{f.harmless(record.deploy)}."


def how_words(record: RuntimesRecord) -> str:
    """How it was measured."""
    machine = record.environment
    return (
        f"All networks in turn, in one loop, on {f.clean(machine.cpu)}, {f.plural(machine.threads, 'thread')}, batch "
        f"{record.batch_size}; medians. Over the fastest dense network: that of any runtime in the same precision."
    )


def place_words(row: RuntimeRow) -> str:
    """litert, fp32."""
    return f"{f.clean(row.target)}, {f.clean(row.precision)}"


def _where(place: Place) -> str:
    return f"{f.clean(place.target)}, {f.clean(place.precision)}"


def _cells(record: RuntimesRecord, row: RuntimeRow) -> tuple[str, ...]:
    names = f.clean(row.target), f.clean(row.precision), f.clean(row.forms)
    accuracy = (_accuracy(record, row),) if _has_accuracy(record) else ()
    if row.error:
        return (*names, *(f.NONE,) * 4, *accuracy, f.harmless(row.error))
    dense = None if row.dense is None else row.dense.p50_ms
    pruned = None if row.pruned is None else row.pruned.p50_ms
    speedups = f.times(row.realistic_speedup), f.times(row.speedup_over_fastest_dense)
    mark = ""
    if record.best is not None and record.is_best(row):
        mark = BEST_PRUNED if record.best.network == "pruned" else BEST_DENSE
    return (*names, f.milliseconds(dense), f.milliseconds(pruned), *speedups, *accuracy, mark)


def _has_accuracy(record: RuntimesRecord) -> bool:
    return any(row.accuracy_dense is not None or row.accuracy_pruned is not None for row in record.rows)


def _accuracy_head(record: RuntimesRecord) -> str:
    return f"{f.clean(record.metric) or 'top-1'}, dense to pruned"


def _accuracy(record: RuntimesRecord, row: RuntimeRow) -> str:
    if row.accuracy_dense is None and row.accuracy_pruned is None:
        return f.NONE
    values = row.accuracy_dense, row.accuracy_pruned
    return " to ".join(f.NONE if value is None else f.score(value, record.metric) for value in values)
