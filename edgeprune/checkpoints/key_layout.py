"""A checkpoint's names -> those of a network: another trainer's prefix is stripped, the right part of the file taken.

A prefix is whatever stands before the network's names in the file (`model.`, `net.backbone.`, `ema_model.module.`);
no list of them is needed, because the network says which names have to be left over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from edgeprune.checkpoints.nests import AVERAGED
from edgeprune.checkpoints.state import LoadedState
from edgeprune.errors import InputError

Shapes = Mapping[str, tuple[int, ...]]

_PREFERRED = (*AVERAGED, "encoder_q", "student", "generator")
"""Parts of a prefix; of several prefixes under which the weights fit, the one with the earliest of these is taken."""


class _Prefix(NamedTuple):
    """What stands before a network's names: in the file, and, where it is the network that has one, in the network."""

    file: str
    network: str

    def note(self, count: int) -> str:
        """What is done to the names of so many tensors of the file."""
        if not self.network:
            return f"stripped '{self.file}' from {count} keys"
        if not self.file:
            return f"put '{self.network}' before {count} keys"
        return f"replaced '{self.file}' by '{self.network}' in {count} keys"


_Fit = Callable[[Mapping[str, Tensor], _Prefix, Shapes], bool]


def fitted(state: LoadedState, shapes: Shapes, *, where: object) -> LoadedState:
    """The state under the names of a network whose tensors have these shapes.

    Of all that the state could mean, the first that has each of the network's tensors is taken; where shapes or tensors
    are missing in all, the nearest names, so that the error to come is about what is really wrong. What was stripped,
    left out or preferred is said in its notes. Raises InputError where several different parts of the file fit alike.
    """
    wanted = {key: tuple(shape) for key, shape in shapes.items() if not key.endswith("num_batches_tracked")}
    if not wanted:
        return state
    readings = (state, *state.others)
    for fits in (_fits, _has_names):
        found = _found(readings, wanted, fits, where)
        if found:
            return _told(state, found, wanted)
    nearest = _nearest(state, wanted)
    return _renamed(state, nearest) if nearest else state


def _found(
    readings: Sequence[LoadedState], wanted: Shapes, fits: _Fit, where: object
) -> list[tuple[LoadedState, _Prefix]]:
    """The readings that fit, with their prefix. Raises what is ambiguous in one where no other fits."""
    found: list[tuple[LoadedState, _Prefix]] = []
    ambiguous: InputError | None = None
    for reading in readings:
        if found and reading.is_joined:
            continue
        try:
            prefix = _prefix(reading, wanted, fits, where)
        except InputError as error:
            ambiguous = ambiguous or error
        else:
            found += [(reading, prefix)] if prefix else []
    if ambiguous and not found:
        raise ambiguous
    return found


def _fits(tensors: Mapping[str, Tensor], prefix: _Prefix, wanted: Shapes) -> bool:
    return all(tuple(tensors[_in_file(key, prefix)].shape) == shape for key, shape in wanted.items())


def _has_names(tensors: Mapping[str, Tensor], prefix: _Prefix, wanted: Shapes) -> bool:
    """Enough for a network whose number of classes is not known yet."""
    return True


def _in_file(key: str, prefix: _Prefix) -> str:
    return prefix.file + key.removeprefix(prefix.network)


def _prefix(state: LoadedState, wanted: Shapes, fits: _Fit, where: object) -> _Prefix | None:
    """The prefix under which all wanted names are in the file and `fits` is content; none is better than any."""
    own = _common_prefix(wanted)
    for network in dict.fromkeys(("", own)):
        counts = _counts(state.tensors, [key.removeprefix(network) for key in wanted])
        whole = [_Prefix(file, network) for file, count in counts.items() if count == len(wanted)]
        fitting = [prefix for prefix in whole if fits(state.tensors, prefix, wanted)]
        if fitting:
            return _one_of(fitting, state, wanted, where)
    return None


def _counts(tensors: Iterable[str], names: Iterable[str]) -> Counter[str]:
    """Prefix in the file -> how many of the network's names stand behind it."""
    known = set(names)
    counts: Counter[str] = Counter()
    for key in tensors:
        parts = key.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in known:
                counts["".join(f"{part}." for part in parts[:start])] += 1
    return counts


def _common_prefix(names: Collection[str]) -> str:
    """What all names begin with, in whole parts: "backbone." where everything lies in it; empty where they are of one
    layer, whose name this would be."""
    if len({name.rpartition(".")[0] for name in names}) < 2:
        return ""
    first, last = min(names), max(names)
    common = ""
    for part, other in zip(first.split(".")[:-1], last.split(".")[:-1], strict=False):
        if part != other:
            break
        common += f"{part}."
    return common


def _one_of(prefixes: Sequence[_Prefix], state: LoadedState, wanted: Shapes, where: object) -> _Prefix:
    """The one prefix, or the one to be preferred: none at all, then averaged weights, then any if all are the same."""
    best = min(prefixes, key=_preference)
    rivals = [p for p in prefixes if p is not best and _preference(p) == _preference(best)]
    for rival in rivals:
        if any(not _equal(state.tensors, best, rival, key) for key in wanted):
            raise InputError(
                f"holds this network's weights twice, under '{best.file}' and '{rival.file}', and they differ",
                where=where,
                expected="the weights of one network",
                remedy="save the wanted ones alone: torch.save(model.state_dict(), PATH)",
            )
    return best


def _preference(prefix: _Prefix) -> int:
    if not prefix.file:
        return -1
    parts = prefix.file.split(".")
    return min((_PREFERRED.index(part) for part in parts if part in _PREFERRED), default=len(_PREFERRED))


def _equal(tensors: Mapping[str, Tensor], one: _Prefix, other: _Prefix, key: str) -> bool:
    return torch.equal(tensors[_in_file(key, one)], tensors[_in_file(key, other)])


def _told(state: LoadedState, found: Sequence[tuple[LoadedState, _Prefix]], wanted: Shapes) -> LoadedState:
    """The first of what was found, with a note of what else would have done."""
    taken, prefix = found[0]
    result = _renamed(taken, prefix)
    notes = list(result.renamed)
    if taken.key_used != state.key_used:
        notes.append(f"taken from under {taken.key_used or 'the top'!r}: the network is not under {state.key_used!r}")
    rivals = {reading.key_used or "the top" for reading, _ in found[1:]} - {taken.key_used or "the top"}
    if rivals:
        notes.append(f"{', '.join(repr(key) for key in sorted(rivals))} would fit too and is not used")
    counts = _counts(taken.tensors, [key.removeprefix(prefix.network) for key in wanted])
    beside = sorted(file for file, count in counts.items() if count == len(wanted) and file != prefix.file)
    if beside:
        notes.append(f"what lies under {', '.join(repr(file) for file in beside)} would fit too and is not used")
    return replace(result, renamed=tuple(notes))


def _nearest(state: LoadedState, wanted: Shapes) -> _Prefix | None:
    """The prefix behind which most of the network's names stand: more than half, and more than with any other."""
    counts = _counts(state.tensors, wanted).most_common(2)
    if not counts or counts[0][1] * 2 <= len(wanted) or (len(counts) > 1 and counts[1][1] == counts[0][1]):
        return None
    return _Prefix(counts[0][0], "")


def _renamed(state: LoadedState, prefix: _Prefix) -> LoadedState:
    """The tensors behind the prefix, under the network's names; those beside it are left out, and that is said."""
    if not (prefix.file or prefix.network):
        return state
    inside = {key: value for key, value in state.tensors.items() if key.startswith(prefix.file)}
    outside = [key for key in state.tensors if key not in inside]
    notes = [prefix.note(len(inside))]
    if outside:
        listed = ", ".join(outside[:2]) + (", ..." if outside[2:] else "")
        notes.append(f"left out {len(outside)} tensors that lie beside them ({listed})")
    tensors = {prefix.network + key.removeprefix(prefix.file): value for key, value in inside.items()}
    return replace(state, tensors=tensors, renamed=(*state.renamed, *notes))
