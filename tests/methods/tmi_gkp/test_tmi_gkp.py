"""TMI-GKP as a whole: plans that can be carried out, repeatable, and errors that say what to do."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from edgeprune.errors import InputError
from edgeprune.graph import CoupledSet, Graph, Layer
from edgeprune.methods import METHODS, describe_type, load_method, parse_settings
from edgeprune.methods.base import MethodInput, MethodResult, PruneRequest, Ticket
from edgeprune.methods.shared.clustering import is_equal_division
from edgeprune.methods.tmi_gkp import method as tmi_gkp
from edgeprune.methods.tmi_gkp.method import Settings, prune
from edgeprune.plans.check import check_plan
from edgeprune.plans.plan import LayerPlan, Plan

# name, C_in, C_out, kernel, reads, writes
CONVS = [
    ("stem", 3, 16, 3, "input", "s"),
    ("b1.a", 16, 8, 1, "s", "b1.mid"),
    ("b1.b", 8, 16, 3, "b1.mid", "s"),
    ("b2.a", 16, 24, 3, "s", "b2.mid"),
    ("b2.b", 24, 16, 3, "b2.mid", "s"),
    ("odd", 16, 10, 3, "s", "t"),
]


def make_graph() -> Graph:
    layers = [
        Layer(name, "conv", c_in, c_out, (k, k), 1, 64, reads, writes, is_first=name == "stem")
        for name, c_in, c_out, k, reads, writes in CONVS
    ]
    layers.append(Layer("head", "linear", 10, 5, (), 1, 1, "t", "output"))
    channels = {layer.reads: layer.in_channels for layer in layers} | {
        layer.writes: layer.out_channels for layer in layers
    }
    return Graph(
        tuple(layers),
        tuple(
            CoupledSet(
                name,
                count,
                tuple(layer.name for layer in layers if layer.writes == name),
                tuple(layer.name for layer in layers if layer.reads == name),
            )
            for name, count in channels.items()
        ),
        (3, 8, 8),
    )


def make_weights(graph: Graph, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        layer.name: rng.normal(size=(layer.out_channels, layer.in_channels, *layer.kernel_size)).astype(np.float32)
        for layer in graph.layers
    }


GRAPH = make_graph()
FINAL = make_weights(GRAPH, 0)
TICKETS = [
    Ticket(
        epoch,
        f"epoch_{epoch}.pt",
        {name: 0.7 * FINAL[name] + 0.3 * w for name, w in make_weights(GRAPH, epoch).items()},
    )
    for epoch in (5, 10, 15, 20, 25)
]


def run(
    settings: Settings | None = None,
    *,
    tickets: list[Ticket] | None = None,
    weights: Mapping[str, Any] = FINAL,
    **request: Any,
) -> MethodResult:
    asked = PruneRequest(**{"groups": 4, **request})
    given = MethodInput(GRAPH, weights, asked, TICKETS if tickets is None else tickets)
    return prune(given, settings or Settings())


def notes(plan: Plan) -> dict[str, str]:
    return {entry.name: entry.note for entry in plan.layers}


def filters(plan: Plan) -> dict[str, Any]:
    return {entry.name: entry.filters for entry in plan.layers}


def check_canonical(entry: LayerPlan) -> None:
    assert all(list(group) == sorted(group) for group in (*entry.filters, *entry.inputs))
    assert [group[0] for group in entry.filters] == sorted(group[0] for group in entry.filters)


def test_the_plan_can_be_carried_out_and_is_canonical() -> None:
    result = run()
    assert check_plan(result.plan, GRAPH) == []
    grouped = result.plan.grouped()
    assert list(grouped) == ["b1.a", "b1.b", "b2.a", "b2.b"]
    assert {name: entry.kept for name, entry in grouped.items()} == {"b1.a": 9, "b1.b": 5, "b2.a": 9, "b2.b": 14}
    for entry in grouped.values():
        assert entry.groups == 4
        check_canonical(entry)
    assert set(result.seconds) == {layer.name for layer in GRAPH.layers}


def test_dense_layers_say_why() -> None:
    said = notes(run().plan)
    assert "first convolution" in said["stem"]
    assert said["odd"] == "10 filters cannot be divided into 4 equal groups"
    assert said["head"] == "linear layers stay dense"
    assert run(include_first=True).plan.grouped()["stem"].kept == 2


def test_votes_are_in_the_note_and_in_the_record() -> None:
    result = run()
    record = json.loads(result.records["clustering.json"])
    layers = {layer["name"]: layer for layer in record["layers"]}
    assert record["tickets"] == [5, 10, 15, 20, 25]
    assert set(layers) == set(result.plan.grouped())
    for name in ("b1.a", "b2.a"):
        votes = layers[name]["votes"]
        assert sum(votes.values()) == 5
        assert layers[name]["chosen"] == max(("spectral", "kpca", "tsne"), key=lambda scheme: votes[scheme])
        assert set(layers[name]["clusters"]) == {"spectral", "kpca", "tsne"}
        chosen = layers[name]["clusters"][layers[name]["chosen"]]
        assert tuple(map(tuple, chosen)) == result.plan.grouped()[name].filters
        counted = ", ".join(f"{scheme} {count}" for scheme, count in sorted(votes.items(), key=lambda item: -item[1]))
        assert notes(result.plan)[name].startswith(f"{layers[name]['chosen']} (votes: ")
        assert sorted(notes(result.plan)[name].partition("votes: ")[2].rstrip(")").split(", ")) == sorted(
            counted.split(", ")
        )


def test_the_same_seed_gives_the_same_plan_whatever_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(seed=3)
    monkeypatch.setattr(tmi_gkp, "MAX_THREADS", 1)
    second = run(seed=3)
    assert first.plan.sha256() == second.plan.sha256()
    assert first.records == second.records
    assert run(seed=4).plan.sha256() != first.plan.sha256()


def test_the_order_in_which_schemes_are_named_does_not_matter() -> None:
    assert run(Settings(schemes=("tsne", "kpca"))).plan == run(Settings(schemes=("kpca", "tsne"))).plan


@pytest.mark.parametrize(
    "changed",
    [{"scheme": "kpca"}, {"beta": 0.0}, {"beta": 40.0}, {"gamma_ratio": 1.0}, {"schemes": ("tsne",)}],
)
def test_settings_change_the_plan(changed: dict[str, Any]) -> None:
    base, other = run(Settings()), run(Settings(**changed))
    assert [entry.inputs for entry in base.plan.layers] != [entry.inputs for entry in other.plan.layers]
    assert check_plan(other.plan, GRAPH) == []


def test_every_setting_is_recorded_and_no_local_path(tmp_path: Path) -> None:
    path = tmp_path / "clustering.json"
    path.write_bytes(run().records["clustering.json"])
    plan = run(Settings(clusters=str(path), beta=2), skip=("b1.*",)).plan
    names = {f.name for kind in (Settings, PruneRequest) for f in dataclasses.fields(kind)} - {
        "seed",
        "prices",
        "mixing_price",
    }
    assert names | {"tickets"} == set(plan.settings)
    assert plan.settings["skip"] == ["b1.*"]
    assert plan.settings["beta"] == 2.0
    assert len(plan.settings["clusters"]) == 64
    assert str(tmp_path) not in plan.to_json().decode()
    assert msgspec.json.decode(plan.to_json(), type=Plan) == plan


def test_followers_copy_the_pacesetters_clusters_but_choose_their_own_kernels() -> None:
    shared = run(share_partitions=True).plan.grouped()
    assert shared["b1.b"].filters == shared["b2.b"].filters
    assert shared["b1.b"].inputs != shared["b2.b"].inputs
    assert shared["b2.b"].note.endswith("(clusters of b1.b)")
    own = run(share_partitions=False).plan.grouped()
    assert "votes" in own["b2.b"].note
    assert own["b1.b"].filters == shared["b1.b"].filters  # a layer's clusters do not depend on other layers


def test_the_pacesetter_is_the_first_producer_that_is_grouped() -> None:
    plan = run(skip=("b1.b",)).plan
    assert notes(plan)["b1.b"] == "skipped by request"
    assert "votes" in notes(plan)["b2.b"]
    assert "clusters of stem" in notes(run(include_first=True).plan)["b1.b"]


def test_a_block_uses_the_scheme_that_its_first_layer_votes_for() -> None:
    plan = run(Settings(granularity="block"), share_partitions=False).plan
    said = notes(plan)
    assert "votes" in said["b1.a"]
    assert said["b1.b"] == f"{said['b1.a'].split()[0]} (vote of b1.a)"
    assert said["b2.b"] == f"{said['b2.a'].split()[0]} (vote of b2.a)"


def test_without_tickets_the_scheme_is_named() -> None:
    result = run(tickets=[])
    assert notes(result.plan)["b1.a"] == "spectral (no tickets)"
    assert any("No tickets to vote with: the clustering scheme is spectral" in note for note in result.notes)
    assert notes(run(Settings(schemes=("tsne", "kpca")), tickets=[]).plan)["b1.a"] == "kpca (no tickets)"
    assert filters(result.plan) == filters(run(Settings(scheme="spectral")).plan)


def test_tickets_that_have_no_vote_are_mentioned() -> None:
    result = run(Settings(scheme="tsne"))
    assert result.notes[0] == "Tickets were given but have no vote: tsne is the only scheme allowed."
    assert result.plan.settings["tickets"] == []


def test_window_and_step_limit_the_voters() -> None:
    assert run(Settings(ticket_window="10:25", ticket_step=2)).plan.settings["tickets"] == [10, 20]
    with pytest.raises(InputError, match="leaves none of the 5 tickets"):
        run(Settings(ticket_window="100:200"))
    with pytest.raises(InputError, match="there are no tickets; give --tickets DIR"):
        run(Settings(ticket_window="10:25"), tickets=[])


def test_tickets_of_the_final_epoch_are_refused() -> None:
    with pytest.raises(InputError, match="the tickets hold the final epoch only"):
        run(tickets=[Ticket(300, "last.pt", FINAL)])


def test_a_ticket_that_lacks_a_layer_is_refused() -> None:
    lacking = Ticket(5, "epoch_5.pt", {name: w for name, w in FINAL.items() if name != "b2.a"})
    with pytest.raises(
        InputError, match=r"epoch_5.pt: the ticket has no weight for layer b2.a; expected shape \(24, 16, 3, 3\)"
    ):
        run(tickets=[*TICKETS, lacking])


def test_a_clustering_is_reused_with_another_rate_and_selection(tmp_path: Path) -> None:
    first = run()
    path = tmp_path / "clustering.json"
    path.write_bytes(first.records["clustering.json"])
    again = run(Settings(clusters=str(path), beta=1.0), rate=0.25, tickets=[])
    assert filters(again.plan) == filters(first.plan)
    assert again.plan.grouped()["b1.a"].kept == 12
    assert notes(again.plan)["b1.a"].endswith("(recorded clustering)")
    same = run(Settings(clusters=str(path)))
    assert [(e.filters, e.inputs) for e in same.plan.layers] == [(e.filters, e.inputs) for e in first.plan.layers]
    record = json.loads(again.records["clustering.json"])
    assert record["layers"][0]["votes"] == json.loads(first.records["clustering.json"])["layers"][0]["votes"]


def test_a_recorded_scheme_can_be_picked(tmp_path: Path) -> None:
    path = tmp_path / "clustering.json"
    path.write_bytes(run().records["clustering.json"])
    assert filters(run(Settings(clusters=str(path), scheme="tsne")).plan) == filters(run(Settings(scheme="tsne")).plan)
    path.write_bytes(run(Settings(scheme="kpca")).records["clustering.json"])
    with pytest.raises(InputError, match=r"no tsne clusters of layer b1.a; expected one of kpca"):
        run(Settings(clusters=str(path), scheme="tsne"))


def test_a_clustering_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clustering.json"
    with pytest.raises(InputError, match="cannot be read"):
        run(Settings(clusters=str(path)))
    path.write_text('{"layers": 3}')
    with pytest.raises(InputError, match="is no clustering"):
        run(Settings(clusters=str(path)))
    good = json.loads(run(skip=("b2.b",)).records["clustering.json"])
    path.write_text(json.dumps(good))
    with pytest.raises(InputError, match="the clustering lacks layer b2.b"):
        run(Settings(clusters=str(path)))
    with pytest.raises(InputError, match="the clustering has 4 groups; expected 2 groups; use --groups 4"):
        run(Settings(clusters=str(path)), groups=2)
    path.write_text(json.dumps(good | {"layers": [good["layers"][0] | {"name": "elsewhere"}]}))
    with pytest.raises(InputError, match="names layer elsewhere, which the network lacks"):
        run(Settings(clusters=str(path)))
    good["layers"][0]["clusters"]["kpca"] = [[0, 1], [2, 3], [4, 5], [6, 6]]
    path.write_text(json.dumps(good))
    with pytest.raises(
        InputError, match=r"layer b1.a are no division of its filters; expected 8 filters in 4 equal groups"
    ):
        run(Settings(clusters=str(path)), skip=("b2.b",))
    path.write_text(json.dumps(good | {"schema_version": 99}))
    with pytest.raises(InputError, match="has clustering schema 99; expected schema 1"):
        run(Settings(clusters=str(path)))


def test_nothing_to_group_lists_layers_reasons_and_group_counts_that_fit() -> None:
    with pytest.raises(InputError) as caught:
        run(groups=7)
    assert "odd: 10 filters cannot" not in str(caught.value)  # only a few layers are listed
    assert "b1.a: 8 filters cannot be divided into 7 equal groups" in str(caught.value)
    assert "--groups 2 would fit 5 of them" in str(caught.value)


def test_a_rate_that_leaves_or_removes_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"rate 0.99 would leave none of its 16 input channels.*choose another --rate"):
        run(rate=0.99)
    with pytest.raises(InputError, match=r"would remove none of its 16 input channels"):
        run(rate=0.001)


def test_a_rate_that_empties_some_layers_leaves_those_dense() -> None:
    plan = run(rate=0.94).plan
    assert "would leave none of its 8" in notes(plan)["b1.b"]
    assert plan.grouped()["b1.a"].kept == 1
    assert check_plan(plan, GRAPH) == []


def test_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match=r"b1.a: the weights hold NaN or infinite values"):
        run(weights=FINAL | {"b1.a": np.full_like(FINAL["b1.a"], np.nan)})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Settings(alpha=-1.0), "setting alpha is -1.0"),
        (Settings(beta=-0.5), "setting beta is -0.5; expected auto, 0 or a positive number"),
        (Settings(beta="big"), "setting beta is 'big'"),  # type: ignore[arg-type]
        (Settings(gamma_ratio=0.0), "setting gamma_ratio is 0.0"),
        (Settings(ticket_step=0), "setting ticket_step is 0"),
        (Settings(granularity="net"), "setting granularity is 'net'"),  # type: ignore[arg-type]
        (Settings(schemes=()), "setting schemes is ()"),
        (Settings(schemes=("spectal",)), "did you mean spectral"),  # type: ignore[arg-type]
        (Settings(ticket_window="soon"), "ticket_window 'soon' is no window"),
    ],
)
def test_settings_without_meaning_are_refused(settings: Settings, said: str) -> None:
    with pytest.raises(InputError) as caught:
        run(settings)
    assert said in str(caught.value)


def test_dead_and_equal_filters_are_pruned_all_the_same() -> None:
    weights = FINAL | {"b1.a": np.zeros_like(FINAL["b1.a"]), "b2.a": np.ones_like(FINAL["b2.a"])}
    result = run(weights=weights)
    assert check_plan(result.plan, GRAPH) == []
    assert any("t-SNE + DBSCAN found too few clusters in b1.a, b2.a" in note for note in result.notes)
    assert all(is_equal_division(e.filters, GRAPH.layer(n).out_channels) for n, e in result.plan.grouped().items())


def test_one_filter_a_group_works() -> None:
    plan = run(groups=8, skip=("b1.b", "b2.*")).plan
    assert plan.grouped()["b1.a"].filters == tuple((f,) for f in range(8))


def test_settings_are_read_from_text() -> None:
    parsed = parse_settings(
        "tmi-gkp", ["schemes=spectral", "beta=2", "ticket-window=35:70", "clusters=a,b.json", "scheme="]
    )
    assert parsed == Settings(schemes=("spectral",), beta=2.0, ticket_window="35:70", clusters="a,b.json")
    assert parse_settings("tmi-gkp", ["schemes=tsne, kpca", "beta=auto"]) == Settings(schemes=("tsne", "kpca"))
    assert parse_settings("tmi-gkp", []) == Settings()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("beta=x", "--set beta=x cannot be read"),
        ("beta=x", "expected a number or auto"),
        ("schemes=spectral,q", "expected one or more of: spectral or kpca or tsne, separated by commas"),
        ("ticket_step=1.5", "expected an integer"),
        ("gama_ratio=1", "did you mean gamma_ratio"),
        ("alpha", "'alpha' has no value"),
    ],
)
def test_unreadable_settings_are_refused(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_settings("tmi-gkp", [text])
    assert said in str(caught.value)


def test_every_setting_has_help_and_the_papers_value() -> None:
    assert load_method("tmi-gkp") is tmi_gkp
    for field in dataclasses.fields(Settings):
        assert field.metadata["help"]
        assert field.metadata["paper"]
    assert describe_type(bool) == "true or false"


@pytest.mark.parametrize("method", METHODS)
def test_no_setting_is_explained_by_the_number_of_an_equation(method: str) -> None:
    for field in dataclasses.fields(load_method(method).Settings):
        assert not re.search(r"\(\d+(\.\d+)?\)", field.metadata["help"]), field.name


def real_resnet20(folder: Path) -> tuple[Graph, list[dict[str, np.ndarray]]]:
    """The stages of a trained ResNet-20 as a graph, and its weights: final first, then two tickets."""
    states = []
    for epoch in (300, 35, 60):
        state = torch.load(folder / f"epoch_{epoch}.pt", weights_only=True, map_location="cpu")
        state = state.get("model_state_dict", state)
        states.append({k.removesuffix(".weight"): v.numpy() for k, v in state.items() if v.ndim == 4})
    layers = []
    for name, weight in states[0].items():
        block, _, part = name.rpartition(".")
        stage = block.rpartition(".")[0] or "stage_1"
        reads = {"conv_a": stage if block[-1:] != "0" else f"before_{stage}", "conv_b": f"{block}.mid"}.get(
            part, "input"
        )
        writes = f"{block}.mid" if part == "conv_a" else stage
        layers.append(
            Layer(name, "conv", weight.shape[1], weight.shape[0], (3, 3), 1, 64, reads, writes, is_first=not block)
        )
    producers: dict[str, list[str]] = {}
    for layer in layers:
        producers.setdefault(layer.writes, []).append(layer.name)
    filters = {layer.name: layer.out_channels for layer in layers}
    sets = tuple(CoupledSet(name, filters[names[0]], tuple(names), ()) for name, names in producers.items())
    return Graph(tuple(layers), sets, (3, 32, 32)), states


def test_a_trained_resnet20_at_the_papers_settings(data_dir: Path) -> None:
    graph, (final, *earlier) = real_resnet20(data_dir / "tickets_resnet20")
    tickets = [Ticket(epoch, f"epoch_{epoch}.pt", w) for epoch, w in zip((35, 60), earlier, strict=True)]
    request = PruneRequest(skip=("stage_2.*", "stage_3.[12].*"))
    result = prune(MethodInput(graph, final, request, tickets), Settings())
    assert check_plan(result.plan, graph) == []
    grouped = result.plan.grouped()
    assert {name: entry.kept for name, entry in grouped.items() if name.startswith("stage_3")} == {
        "stage_3.0.conv_a": 18,
        "stage_3.0.conv_b": 36,
    }
    assert grouped["stage_1.2.conv_b"].filters == grouped["stage_1.0.conv_b"].filters
    for entry in grouped.values():
        check_canonical(entry)
    assert result.plan.settings["tickets"] == [35, 60]
