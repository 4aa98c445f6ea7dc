"""Which clusters each layer of a TMI-GKP run uses, and why: recorded, copied from a pacesetter, fixed, or voted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeprune.errors import InputError
from edgeprune.graph import Layer
from edgeprune.methods.base import MethodInput, Ticket
from edgeprune.methods.shared.clustering import Clusters
from edgeprune.methods.tmi_gkp.clusterings import SCHEMES, Scheme, cluster_filters
from edgeprune.methods.tmi_gkp.records import Clustering, LayerClustering
from edgeprune.methods.tmi_gkp.votes import clustering_scores, count_votes, filter_tmi


@dataclass(frozen=True)
class Choice:
    """One layer's clusters."""

    record: LayerClustering
    note: str
    """Scheme and reason, for the plan."""

    @property
    def clusters(self) -> Clusters:
        return self.record.clusters[self.record.chosen]


@dataclass(frozen=True)
class Policy:
    """How the clusters of a run are chosen."""

    groups: Mapping[str, int]
    """Of each layer that is grouped."""
    schemes: tuple[Scheme, ...]
    """Those allowed, in the order of `SCHEMES`."""
    fixed: bool
    """The user named the one scheme."""
    tickets: tuple[Ticket, ...]
    alpha: float
    by_block: bool
    recorded: Clustering | None


def allowed_schemes(schemes: Sequence[str], fixed: str) -> tuple[Scheme, ...]:
    """The schemes that may be used, in the order in which ties are broken."""
    return tuple(scheme for scheme in SCHEMES if (scheme == fixed if fixed else scheme in schemes))


class Chooser:
    """Decides each layer's clusters, once a layer.

    - A follower copies the clusters of its coupled set's pacesetter: the set's first producer that is grouped.
    - A recorded clustering is taken as it stands.
    - With one scheme allowed, or without tickets, the first allowed scheme of `SCHEMES` is used.
    - Else the tickets vote: on the layer, or (`by_block`) on the first layer of its block that is no follower, whose
      scheme the others of the block use. A block is the layers whose names agree up to the last dot; a layer with no
      dot in its name is a block of its own. Ties go to the scheme that stands first in `SCHEMES`.
    """

    def __init__(self, given: MethodInput, layers: Sequence[Layer], policy: Policy) -> None:
        self.given, self.layers, self.policy = given, layers, policy
        self._recorded = policy.recorded.by_name() if policy.recorded else None
        self._grouped = {layer.name: layer for layer in layers}
        self._choices: dict[str, Choice] = {}
        self._block_leaders: dict[str, LayerClustering] = {}
        self._fallbacks: list[str] = []

    def choice(self, layer: Layer) -> Choice:
        """The layer's clusters; layers are asked for in forward order."""
        if layer.name not in self._choices:
            self._choices[layer.name] = self._choose(layer)
        return self._choices[layer.name]

    def records(self) -> tuple[LayerClustering, ...]:
        """What was decided for each grouped layer, in forward order."""
        return tuple(self.choice(layer).record for layer in self.layers)

    def notes(self) -> list[str]:
        """Sentences for the user on the schemes of the whole run."""
        notes = []
        schemes = self.policy.schemes
        if self._recorded is None and not self.policy.tickets and len(schemes) > 1:
            notes.append(
                f"No tickets to vote with: the clustering scheme is {schemes[0]} for every layer, the first allowed of "
                f"{', '.join(SCHEMES)}. With --tickets, earlier checkpoints choose a scheme for each layer."
            )
        if self._fallbacks:
            notes.append(
                f"t-SNE + DBSCAN found too few clusters in {', '.join(self._fallbacks)}; k-means took its place there."
            )
        return notes

    def _choose(self, layer: Layer) -> Choice:
        pacesetter = self._pacesetter(layer)
        if pacesetter.name != layer.name:
            source = self.choice(pacesetter).record
            clusters = {source.chosen: source.clusters[source.chosen]}
            record = LayerClustering(layer.name, source.chosen, clusters, pacesetter=pacesetter.name)
            return Choice(record, f"{source.chosen} (clusters of {pacesetter.name})")
        if self._recorded is not None:
            return self._from_record(self._recorded[layer.name])
        schemes = self.policy.schemes
        if len(schemes) == 1:
            return self._with_scheme(layer, schemes[0], "fixed" if self.policy.fixed else "the only scheme allowed")
        if not self.policy.tickets:
            return self._with_scheme(layer, schemes[0], "no tickets")
        block = layer.name.rpartition(".")[0] or layer.name
        if self.policy.by_block and block in self._block_leaders:
            leader = self._block_leaders[block]
            scheme = next(scheme for scheme in SCHEMES if scheme == leader.chosen)
            return self._with_scheme(layer, scheme, f"vote of {leader.name}")
        choice = self._by_vote(layer)
        self._block_leaders[block] = choice.record
        return choice

    def _pacesetter(self, layer: Layer) -> Layer:
        if not self.given.request.share_partitions:
            return layer
        producers = self.given.graph.coupled_set(layer.writes).producers
        return next(self._grouped[name] for name in producers if name in self._grouped)

    def _from_record(self, entry: LayerClustering) -> Choice:
        chosen = self.policy.schemes[0] if self.policy.fixed else entry.chosen
        if chosen not in entry.clusters:
            raise InputError(
                f"the recorded clustering has no {chosen} clusters of layer {entry.name}",
                expected=f"one of {', '.join(sorted(entry.clusters))}",
                remedy="leave out --set scheme=..., or cluster again (leave out --set clusters=...)",
            )
        record = LayerClustering(entry.name, chosen, entry.clusters, entry.votes, entry.pacesetter, entry.remarks)
        return Choice(record, f"{chosen} (recorded clustering)")

    def _with_scheme(self, layer: Layer, scheme: Scheme, reason: str) -> Choice:
        clusters, remarks = self._cluster(layer, (scheme,))
        return Choice(LayerClustering(layer.name, scheme, clusters, remarks=remarks), f"{scheme} ({reason})")

    def _by_vote(self, layer: Layer) -> Choice:
        clusters, remarks = self._cluster(layer, self.policy.schemes)
        tickets = [ticket.weights[layer.name] for ticket in self.policy.tickets]
        tmi = filter_tmi(self.given.weights[layer.name], tickets)
        counts = count_votes(clustering_scores(tmi, list(clusters.values()), self.policy.alpha))
        votes: dict[str, int] = dict(zip(self.policy.schemes, counts, strict=True))
        ranking = sorted(votes, key=lambda scheme: -votes[scheme])  # stable: of equals the first of SCHEMES
        record = LayerClustering(layer.name, ranking[0], clusters, votes, remarks=remarks)
        counted = ", ".join(f"{scheme} {votes[scheme]}" for scheme in ranking)
        return Choice(record, f"{ranking[0]} (votes: {counted})")

    def _cluster(self, layer: Layer, schemes: Sequence[Scheme]) -> tuple[dict[str, Clusters], dict[str, str]]:
        """Clusters and remarks by scheme."""
        weight, groups, seed = self.given.weights[layer.name], self.policy.groups[layer.name], self.given.request.seed
        found = {scheme: cluster_filters(scheme, weight, groups, layer=layer.name, seed=seed) for scheme in schemes}
        if any(one.is_fallback for one in found.values()):
            self._fallbacks.append(layer.name)
        clusters: dict[str, Clusters] = {scheme: one.clusters for scheme, one in found.items()}
        return clusters, {scheme: one.remark for scheme, one in found.items() if one.remark}
