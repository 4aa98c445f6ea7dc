"""clustering.json: what TMI-GKP clustered, so that another rate or selection can be tried without clustering again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from edgeprune.errors import InputError
from edgeprune.graph import Graph, Layer
from edgeprune.io.files import sha256_of
from edgeprune.io.json_files import read_json
from edgeprune.methods.shared.clustering import Clusters, is_equal_division

SCHEMA_VERSION = 1
FILE_NAME = "clustering.json"


class LayerClustering(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The clusters of one layer's filters."""

    name: str
    chosen: str
    """The scheme whose clusters are used."""
    clusters: dict[str, Clusters]
    """Scheme -> per group its filters; every scheme that was tried."""
    votes: dict[str, int] = {}
    """Scheme -> tickets that prefer it; empty where no vote was needed."""
    pacesetter: str = ""
    """The layer whose clusters this one copies; empty if they are its own."""
    remarks: dict[str, str] = {}
    """Scheme -> how its clusters came about, where there is something to say."""


class Clustering(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The clusters of all grouped layers, in forward order."""

    groups: int
    """That were asked for; alignment may give layers fewer."""
    seed: int
    tickets: tuple[int, ...]
    """Epochs of the tickets that voted."""
    layers: tuple[LayerClustering, ...]
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> bytes:
        """Canonical JSON: the same clustering gives the same bytes."""
        return msgspec.json.encode(self, order="sorted")

    def by_name(self) -> dict[str, LayerClustering]:
        return {layer.name: layer for layer in self.layers}


def load_clustering(path: Path) -> tuple[Clustering, str]:
    """A recorded clustering and the SHA-256 of its file; InputError if it is missing, none, or of another schema."""
    expected, remedy = (
        f"a {FILE_NAME} that an earlier run of tmi-gkp wrote",
        "cluster again with this version of edgeprune",
    )
    clustering = read_json(path, Clustering, SCHEMA_VERSION, what="clustering", expected=expected, remedy=remedy)
    return clustering, sha256_of(path)


def check_fits(
    clustering: Clustering, graph: Graph, layers: Sequence[Layer], groups: int, groups_of: Mapping[str, int], where: str
) -> None:
    """InputError unless the clustering has clusters of equal groups for each of the layers of this network.

    `groups` were asked for, `groups_of` has those of each layer.
    """
    if clustering.groups != groups:
        raise InputError(
            f"the clustering has {clustering.groups} groups",
            where=where,
            expected=f"{groups} groups",
            remedy=f"use --groups {clustering.groups}, or cluster again (leave out --set clusters=...)",
        )
    again = "it belongs to another network or other flags: cluster again (leave out --set clusters=...)"
    recorded = clustering.by_name()
    for name in recorded:
        if name not in graph:
            raise InputError(f"the clustering names layer {name}, which the network lacks", where=where, remedy=again)
    for layer in layers:
        if layer.name not in recorded:
            raise InputError(f"the clustering lacks layer {layer.name}", where=where, remedy=again)
        entry = recorded[layer.name]
        if entry.chosen not in entry.clusters:
            raise InputError(
                f"layer {layer.name} chose {entry.chosen!r}, of which there are no clusters", where=where, remedy=again
            )
        for clusters in entry.clusters.values():
            if len(clusters) != groups_of[layer.name] or not is_equal_division(clusters, layer.out_channels):
                raise InputError(
                    f"the clusters of layer {layer.name} are no division of its filters",
                    where=where,
                    expected=f"{layer.out_channels} filters in {groups_of[layer.name]} equal groups",
                    remedy=again,
                )
