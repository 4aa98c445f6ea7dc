"""Union-find over the coupled sets of a network, with the reasons why some keep their order."""

from __future__ import annotations


class SetForest:
    """Coupled sets that are made, joined and pinned while a graph is walked."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}
        self._channels: dict[str, int] = {}
        self._pinned: dict[str, str] = {}
        self._ordered: dict[str, str] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._parent

    def make(self, name: str, channels: int) -> str:
        """A new set of its own; returns its name."""
        self._parent[name], self._channels[name] = name, channels
        return name

    def root(self, name: str) -> str:
        """The name that all joined sets share."""
        while self._parent[name] != name:
            name = self._parent[name]
        return name

    def roots(self) -> tuple[str, ...]:
        """All sets, in the order in which they were made."""
        return tuple(name for name in self._parent if self._parent[name] == name)

    def join(self, first: str, second: str) -> None:
        """The two sets are one from now on; the earlier one gives the name, and a pin on either holds for both."""
        a, b = self.root(first), self.root(second)
        if a == b:
            return
        order = list(self._parent)
        if order.index(b) < order.index(a):
            a, b = b, a
        self._parent[b] = a
        for reasons in (self._pinned, self._ordered):
            if b in reasons:
                reasons.setdefault(a, reasons.pop(b))

    def pin(self, name: str, reason: str) -> None:
        """The set keeps all of its channels in their order; the first reason counts."""
        self._pinned.setdefault(self.root(name), reason)

    def keep_order(self, name: str, reason: str) -> None:
        """The set keeps the original channel order, in which some may be left out."""
        self._ordered.setdefault(self.root(name), reason)

    def pinned(self, name: str) -> str:
        return self._pinned.get(self.root(name), "")

    def ordered(self, name: str) -> str:
        return self._ordered.get(self.root(name), "")

    def channels(self, name: str) -> int:
        return self._channels[self.root(name)]
