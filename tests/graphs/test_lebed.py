"""LeBeD: structural loss, re-training from the same start, stopping, scores, shifts and full-scale sources."""

import gzip
import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from sklearn.linear_model import LinearRegression

from glocal.data.errors import DataError
from glocal.data.pyg import data_class
from glocal.graphs import lebed, lebed_evaluation, lebed_graphs, lebed_sources, lebed_tasks
from glocal.graphs.lebed_baselines import (
    CONFIDENCE_SCORES,
    atc_threshold,
    confidence_scores,
    partial_spearman,
    pearson,
    r_squared,
    spearman,
    true_errors,
)
from glocal.graphs.lebed_networks import KINDS, Network, initial_network, pyg_model, stacked
from glocal.graphs.node_classification import seeded
from glocal.graphs.node_tasks import nearest_neighbor_graph
from glocal.seeding import torch_generator

SIZES = {"n_hidden": 8, "width": 4, "n_classes": 3}


def graph(n: int = 40, name: str = "graph", f: int = 6):
    generator = torch_generator(0, name, n)
    y = torch.arange(n) % 3
    x = torch.randn(n, f, generator=generator) + F.one_hot(y, f) * 2.0
    return lebed_graphs.graph_of(x, nearest_neighbor_graph(x, 4), y, generator=generator)


def start(kind: str = "GCN", name: str = "start") -> Network:
    return initial_network(kind, 6, **SIZES, generator=torch_generator(0, name, kind))


def with_pyg(kind: str, network: Network):
    """PyG's model with the weights of a one-copy network."""
    with seeded(torch_generator(0, "any")):
        model = pyg_model(kind, 6, 8, 4, 3)
    names = dict(model.named_parameters())
    with torch.no_grad():
        for name, p in network.weights.items():
            names[name if name.startswith("classifier") else f"encoder.{name}"].copy_(p[0])
    return model


def pyg_forward(kind: str, model, g):
    z = model["encoder"](g.x) if kind == "MLP" else model["encoder"](g.x, g.edge_index)
    return z, model["classifier"](z)


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_networks_are_those_of_pyg_whatever_stands_beside(kind):
    directed = lebed_graphs.perturbed(graph(25, "b"), "edges", 0.4, generator=torch_generator(0, "drop"))
    graphs = [graph(40, "a"), directed, graph(30, "c")]
    networks = [start(kind, f"start {i}") for i in range(3)]
    batch, network = lebed_graphs.batch_graphs(graphs), stacked(networks)
    z = network.embeddings(batch, is_training=True)
    for i, g in enumerate(graphs):
        model = with_pyg(kind, networks[i]).train()
        expected, logits = pyg_forward(kind, model, g)
        assert torch.allclose(z[i, : len(g.y)], expected, atol=1e-5)
        assert torch.allclose(network.logits(z)[i, : len(g.y)], logits, atol=1e-5)
        if kind == "MLP":  # the running statistics that evaluation mode uses
            norm = model["encoder"].norms[0].module
            assert torch.allclose(network.buffers["mean"][i], norm.running_mean, atol=1e-6)
            assert torch.allclose(network.buffers["var"][i], norm.running_var, atol=1e-5)
            evaluated = network.embeddings(batch, is_training=False)[i, : len(g.y)]
            assert torch.allclose(evaluated, pyg_forward(kind, model.eval(), g)[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["GCN", "MLP"])
def test_retraining_side_by_side_is_retraining_one_by_one_with_pyg(kind):
    graphs = [graph(40, "a"), graph(25, "b")]
    batch, origin = lebed_graphs.batch_graphs(graphs), start(kind)
    labels = lebed_graphs.padded_labels([g.y for g in graphs])
    options = {"epochs": 12, "lr": 0.01, "weight_decay": 5e-4}
    path, after = lebed.retrain(origin.copies(2), start(kind, "trained").copies(2), batch, labels, **options)
    for i, g in enumerate(graphs):
        model = with_pyg(kind, origin).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
        for epoch in range(12):
            z, logits = pyg_forward(kind, model, g)
            ends = torch.cat([g.edge_index, g.neg_edge_index], dim=1)
            target = torch.cat([torch.ones(g.edge_index.shape[1]), torch.zeros(g.neg_edge_index.shape[1])])
            cosines = F.cosine_similarity(z[ends[0]], z[ends[1]], dim=-1)
            expected = F.binary_cross_entropy_with_logits(cosines, target)
            assert abs(float(path.structural[i, epoch] - expected.detach())) < 1e-4
            optimizer.zero_grad()
            F.cross_entropy(logits, g.y).backward()
            optimizer.step()
        flat = torch.nn.utils.parameters_to_vector(model.parameters())
        assert abs(float(flat.norm().detach() - after.vector()[i].norm())) < 1e-3


def test_same_start_same_labels_same_path():
    g, origin = graph(), start()
    batch, y = lebed_graphs.batch_graphs([g]), g.y[None]
    options = {"epochs": 15, "lr": 0.01, "weight_decay": 5e-4}
    _, last = lebed.retrain(origin, origin, batch, y, **options)
    path, _ = lebed.retrain(origin, last, batch, y, **options)
    assert float(path.distance[0, -1]) < 1e-5
    other, _ = lebed.retrain(start(name="other"), last, batch, y, **options)
    assert float(other.distance[0, -1]) > 1


def test_pretraining_takes_the_first_best_epoch_and_follows_the_same_path():
    g, val, origin = graph(), graph(30, "val"), start()
    batch, val_batch = lebed_graphs.batch_graphs([g]), lebed_graphs.batch_graphs([val])
    options = {"lr": 0.01, "weight_decay": 5e-4}
    best, accuracy = lebed.pretrain(origin, batch, g.y[None], val_batch, val.y[None], epochs=6, **options)
    accuracies, vectors = [], []
    for epochs in range(1, 7):
        _, after = lebed.retrain(origin, origin, batch, g.y[None], epochs=epochs, **options)
        predictions = after.logits(after.embeddings(val_batch, is_training=False)).argmax(-1)[0]
        accuracies.append(float((predictions == val.y).float().mean()))
        vectors.append(after.vector())
    assert float(accuracy) == pytest.approx(max(accuracies))
    assert torch.allclose(best.vector(), vectors[int(np.argmax(accuracies))], atol=1e-6)


def test_structural_loss_at_its_known_values():
    g = graph()
    g.edge_index, g.neg_edge_index = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[0, 2], [2, 1]])
    batch = lebed_graphs.batch_graphs([g])
    z = torch.ones(1, 40, 4)
    equal = 0.5 * (math.log(1 + math.exp(-1)) + math.log(1 + math.e))
    assert float(lebed.structural_loss(z, batch)) == pytest.approx(equal, abs=1e-5)
    assert equal == pytest.approx(0.8133, abs=1e-4)
    z[0, 2] = -3.0  # node 2 opposite to 0 and 1
    assert float(lebed.structural_loss(z, batch)) == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-5)
    assert math.log(1 + math.exp(-1)) == pytest.approx(0.3133, abs=1e-4)


def test_stops_at_the_first_close_epoch_never_too_early_else_at_the_last():
    gaps = torch.tensor([[0.0, 0.5, 0.01, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.5, -0.01]])
    assert lebed.stop_epochs(gaps, 0.02, first=1).tolist() == [2, 3, 1]
    assert lebed.stop_epochs(gaps, torch.tensor([0.6, 2.0, 0.005]), first=2).tolist() == [2, 2, 3]
    random = torch.randn(50, 30, generator=torch_generator(0, "gaps"))
    stops = lebed.stop_epochs(random, 0.05, first=5)
    reached = random.gather(1, stops[:, None])[:, 0].abs() < 0.05
    assert bool((stops >= 5).all())
    assert bool((reached | (stops == 29)).all())
    with pytest.raises(ValueError, match="first must be an epoch between 0 and 3, got 4"):
        lebed.stop_epochs(gaps, 0.02, first=4)


def score_of(g, trained: Network) -> tuple[torch.Tensor, lebed.Reference]:
    batch = lebed_graphs.batch_graphs([g])
    ref = lebed.reference(trained, batch)
    path, _ = lebed.retrain(start(), trained, batch, ref.predictions, epochs=15, lr=0.01)
    return lebed.lebed_score(path, ref, margin_rate=0.02, first=3)[0], ref


def test_score_ignores_node_order_and_labels():
    g, trained = graph(), start(name="trained")
    score, _ = score_of(g, trained)
    order = torch.randperm(40, generator=torch_generator(0, "order"))
    place = order.argsort()
    moved = data_class()(
        x=g.x[order], edge_index=place[g.edge_index], y=g.y[order], neg_edge_index=place[g.neg_edge_index]
    )
    assert float((score_of(moved, trained)[0] - score).abs()) < 1e-4
    relabelled = g.clone()
    relabelled.y = torch.randint(3, (40,), generator=torch_generator(0, "labels"))
    assert torch.equal(score_of(relabelled, trained)[0], score)


def test_score_is_the_distance_of_parameter_vectors_without_buffers():
    g, origin, trained = graph(), start("MLP"), start("MLP", "trained")
    path, after = lebed.retrain(origin, trained, lebed_graphs.batch_graphs([g]), g.y[None], epochs=7, lr=0.01)
    vectors = [torch.nn.utils.parameters_to_vector(with_pyg("MLP", net).parameters()) for net in (after, trained)]
    assert float(path.distance[0, -1]) == pytest.approx(float((vectors[0] - vectors[1]).norm().detach()), rel=1e-5)
    assert after.vector().shape[1] == len(vectors[0])
    stop = torch.tensor([4])
    assert torch.equal(lebed.at_epoch(path.distance, stop), path.distance[:, 4])


def test_atc_threshold_reproduces_the_validation_error():
    generator = torch_generator(0, "atc")
    certainty = torch.rand(101, generator=generator)
    is_correct = torch.rand(101, generator=generator) < 0.3 + 0.6 * certainty
    threshold = atc_threshold(certainty, is_correct)
    error = float((~is_correct).double().mean())
    assert abs(float((certainty < threshold).double().mean()) - error) <= 1 / 101
    gaps = [abs(float((certainty < c).double().mean()) - error) for c in certainty]
    assert abs(float((certainty < threshold).double().mean()) - error) <= min(gaps) + 1e-12
    assert atc_threshold(certainty, torch.ones(101, dtype=torch.bool)) == -math.inf
    assert atc_threshold(certainty, torch.zeros(101, dtype=torch.bool)) == math.inf


def test_confidence_scores_on_two_nodes_by_hand():
    def reference(confidence, entropy, predictions):
        row = torch.tensor([confidence])
        zero = torch.zeros(1)
        return lebed.Reference(torch.tensor([predictions]), row, torch.tensor([entropy]), zero, zero, torch.zeros(1, 2))

    test = reference([0.95, 0.75, 0.0], [0.2, 0.6, 0.0], [0, 1, -1])
    is_node = torch.tensor([[True, True, False]])
    val = reference([0.9, 0.6], [0.3, 0.7], [0, 0])
    found = confidence_scores(test, is_node, val, is_node[:, :2], torch.tensor([[True, False]]))
    expected = [0.15, 0.4, 0.0, 0.5, 0.0, 0.5, 0.5]
    assert [float(found[name][0]) for name in CONFIDENCE_SCORES] == pytest.approx(expected, abs=1e-6)
    assert true_errors(test, torch.tensor([[0, 0, -1]]), is_node).tolist() == [0.5]


def test_correlations_equal_scipy_and_scikit_learn():
    rng = np.random.default_rng(0)
    a = rng.normal(size=30).round(1)  # with ties
    b = a + rng.normal(size=30)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    fitted = LinearRegression().fit(a[:, None], b).score(a[:, None], b)
    assert r_squared(a, b) == pytest.approx(fitted) == pytest.approx(pearson(a, b) ** 2)
    assert spearman(a, np.ones(30)) == 0
    assert abs(partial_spearman(a, b, rng.normal(size=30)) - spearman(a, b)) < 0.2
    assert abs(partial_spearman(a, b, a + 1e-9 * b)) < 1e-3 + abs(spearman(a, b))


def test_perturbations_do_what_they_say_and_leave_the_original_alone():
    generator = torch_generator(0, "perturb")
    g = graph(200, f=64)
    before = g.clone()
    noisy = lebed_graphs.perturbed(g, "noise", 0.5, noise_scale=2.0, generator=generator)
    assert float((noisy.x - g.x).std()) == pytest.approx(1.0, abs=0.05)
    shares = [
        float((lebed_graphs.perturbed(g, "mask", 0.3, generator=generator).x == 0).all(0).double().mean())
        for _ in range(100)
    ]
    assert abs(np.mean(shares) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 6400)
    dropped = lebed_graphs.perturbed(g, "edges", 0.4, generator=generator)
    n_edges = g.edge_index.shape[1]
    assert abs(dropped.edge_index.shape[1] - 0.6 * n_edges) < 4 * math.sqrt(0.24 * n_edges)
    assert dropped.neg_edge_index.shape == dropped.edge_index.shape
    small = lebed_graphs.perturbed(g, "subgraph", 0.5, generator=generator)
    sizes, kept = g.y.bincount(), small.y.bincount()
    assert bool(((kept - sizes / 2).abs() <= 1).all())
    assert all(torch.equal(g[name], before[name]) for name in ("x", "edge_index", "y", "neg_edge_index"))
    for wrong, message in (
        (("rotate", 0.5), "shift must be one of"),
        (("noise", 1.0), "strictly between 0 and 1, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            lebed_graphs.perturbed(g, *wrong, generator=generator)


def test_non_edges_are_distinct_and_absent():
    g = graph()
    codes = [(ends[0] * 40 + ends[1]).tolist() for ends in (g.edge_index, g.neg_edge_index)]
    assert len(set(codes[1])) == len(codes[1]) == len(codes[0])
    assert not set(codes[0]) & set(codes[1])
    assert bool((g.neg_edge_index[0] != g.neg_edge_index[1]).all())
    full = (1 - torch.eye(4)).nonzero().T
    with pytest.raises(ValueError, match="more non-edges than edges, got 12 edges on 4 nodes"):
        lebed_graphs.non_edges(full, 4, generator=torch_generator(0, "full"))


def test_rerun_keeps_the_order_of_graphs_and_does_not_depend_on_batches():
    tasks = lebed_tasks.digit_tasks(1, seed=0, n_draws=1, n_val_draws=1, n_train=100, n_nodes=60)
    few = {"epochs": 2, "epochs_again": 6, "graphs_at_once": 8}
    found = []
    for options in (few, few | {"graphs_at_once": 64}):
        (trained,) = lebed_evaluation.pretrained("GCN", tasks, lebed_evaluation.Settings(**options), seed=0)
        result = lebed_evaluation.rerun(trained, tasks[0].tests)
        found.append(lebed_evaluation.scores_of(trained, result, margin_rate=0.02)[0] | {"error": result.errors})
        assert result.sizes.tolist() == [len(item.graph.y) for item in tasks[0].tests]
    assert len(tasks[0].tests) == 14
    assert len(tasks[0].val_copies) == 5
    assert all(np.allclose(found[0][name], found[1][name], atol=1e-4) for name in found[0])


def test_digit_sources_share_no_digit():
    sources = lebed_graphs.digit_sources()
    assert [len(y) for _, y in sources.values()] == [1797, 3823, 5000, 5000]
    rows = [{row.tobytes() for row in (x * 16).round().numpy()} for x, _ in list(sources.values())[:2]]
    assert not rows[0] & rows[1]


def test_synthetic_copies_differ_by_a_constant_in_the_new_features():
    one, two = lebed_tasks.synthetic_copies(graph(), 2, generator=torch_generator(0, "copies"))
    difference = one.x - two.x
    assert one.x.shape == (40, 16)
    assert torch.equal(one.y, two.y)
    assert torch.equal(difference[:, :6], torch.zeros(40, 6))
    assert float(difference[:, 6:].std(0).max()) < 1e-5 < float(difference.abs().max())


def test_published_formats_are_read(tmp_path):
    adjacency = sp.csr_matrix(np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]]))
    attributes = sp.csr_matrix(np.array([[2.0, 0], [0, 1], [1, 1]]))
    file = tmp_path / lebed_sources.PHOTO
    file.parent.mkdir(parents=True)
    parts = {
        f"{name}_{part}": getattr(m, part)
        for name, m in (("adj", adjacency), ("attr", attributes))
        for part in ("data", "indices", "indptr", "shape")
    }
    np.savez(file, labels=np.array([0, 1, 1]), **parts)
    photo = lebed_sources.photo_graph(root=tmp_path)
    assert photo.edge_index.shape == (2, 4)
    assert photo.x.tolist() == [[1, 0], [0, 1], [1, 1]]

    folder = tmp_path / "UDAGCN/acm/raw"
    folder.mkdir(parents=True)
    (folder / "acm_docs.txt").write_text("1.0,0\n0,1\n0.5,0.5\n")
    (folder / "acm_labels.txt").write_text("2\n0\n1\n")
    (folder / "acm_edgelist.txt").write_text("0,1\n1,0\n2,2\n1,2\n")
    acm = lebed_sources.citation_domain("acm", root=tmp_path)
    assert acm.y.tolist() == [2, 0, 1]
    assert acm.edge_index.tolist() == [[0, 1, 1], [1, 0, 2]]
    (folder / "acm_labels.txt").write_text("2\n0\n")
    with pytest.raises(DataError, match="read 3 rows of features, 2 labels"):
        lebed_sources.citation_domain("acm", root=tmp_path)

    folder = tmp_path / lebed_sources.ARXIV
    folder.mkdir(parents=True)
    texts = {"node-feat": "0.5,1\n2,3\n", "node-label": "4\n5\n", "node_year": "2010\n2015\n", "edge": "1,0\n"}
    for name, text in texts.items():
        with gzip.open(folder / f"{name}.csv.gz", "wt") as stream:
            stream.write(text)
    arxiv, years = lebed_sources.dated_citations(root=tmp_path)
    assert arxiv.edge_index.tolist() == [[1], [0]]
    assert arxiv.y.tolist() == [4, 5]
    assert years.tolist() == [2010, 2015]
    with pytest.raises(DataError, match=r"dblp_docs\.txt: the file does not exist"):
        lebed_sources.citation_domain("dblp", root=tmp_path)


@pytest.mark.parametrize("dataset", ["acm", "arxiv"])
def test_full_scale_tasks_on_fakes(dataset):
    (task,) = lebed_tasks.evaluation_tasks(dataset, 1, seed=0, n_draws=1, n_val_draws=1, fake=True)
    assert len(task.tests) == 15
    assert len(task.val_copies) == 5
    assert int(max(item.graph.y.max() for item in task.tests)) < task.n_classes
    with pytest.raises(ValueError, match="dataset must be one of digits, cora, photo, acm"):
        lebed_tasks.evaluation_tasks("citation", 1, seed=0, n_draws=1, n_val_draws=1, fake=True)


def test_score_reads_the_distance_at_the_stop():
    rows = [torch.arange(4.0)[None] + 10 * i for i in range(5)]
    path, zero = lebed.Path(*rows), torch.zeros(1, 2)
    ref = lebed.Reference(torch.zeros(1, 2, dtype=torch.int64), zero, zero, torch.tensor([2.0]), torch.zeros(1), zero)
    for options in ({"margin_rate": 0.1}, {"margin": 0.5}):
        score, stop = lebed.lebed_score(path, ref, first=1, **options)
        assert (score.tolist(), stop.tolist()) == ([12.0], [2])
