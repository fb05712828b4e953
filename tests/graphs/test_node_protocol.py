"""The shared protocol of node classification: tasks, splits, training."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from glocal.data import load
from glocal.graphs.node_classification import GCN, MLP, accuracy, fit, predict, seeded
from glocal.graphs.node_tasks import (
    NodeTask,
    contextual_block_model,
    edge_homophily,
    induced_subgraph,
    large_components,
    nearest_neighbor_graph,
    node_task,
    principal_components,
    row_normalized,
    shared_task,
)
from glocal.seeding import torch_generator


def block_model(seed: int = 0, degree: float = 6.0):
    means = 2 * F.one_hot(torch.arange(3), 8).float()
    generator = torch_generator(seed, "sbm")
    return contextual_block_model([60, 60, 60], degree=degree, homophily=0.8, means=means, generator=generator)


def small_task(seed: int = 0) -> NodeTask:
    data = block_model(seed)
    generator = torch_generator(seed, "task")
    return node_task(data, labels_per_class=5, n_val=40, features="components", generator=generator)


def test_parts_are_disjoint_and_cover_the_graph():
    task = shared_task(0, 1)
    assert (len(task.train), len(task.val)) == (120, 500)
    assert torch.cat([task.train, task.val, task.test]).sort().values.equal(torch.arange(task.n_nodes))
    assert task.y[task.train].bincount().tolist() == [10] * 12
    assert task.x.shape == (2650, 64)
    assert abs(float(task.x.square().mean()) - 1) < 1e-5


def test_the_shared_task_is_the_same_everywhere_but_not_for_every_run():
    one, same, other = shared_task(0, 0), shared_task(0, 0, features="words"), shared_task(0, 1)
    assert one.test.equal(same.test)
    assert not one.test.equal(other.test)
    assert same.x.sum(1).sub(1).abs().max() < 1e-5
    assert not shared_task(1, 0).test.equal(one.test)
    assert shared_task(0, 0, fake=True).x.shape == one.x.shape


def test_the_public_split_is_the_stored_one():
    data = load("cora", fake=True)
    task = node_task(data, split="public", features="words", generator=torch_generator(0))
    assert (len(task.train), len(task.val), len(task.test)) == (140, 500, 1000)
    with pytest.raises(ValueError, match="split must be 'random' for this graph"):
        node_task(block_model(), split="public", generator=torch_generator(0))
    with pytest.raises(ValueError, match="features must be one of words, components, got 'pca'"):
        node_task(data, features="pca", generator=torch_generator(0))
    with pytest.raises(ValueError, match="split must be one of random, public, got 'kfold'"):
        node_task(data, split="kfold", generator=torch_generator(0))


def test_components_are_those_of_scikit_learn():
    from sklearn.decomposition import TruncatedSVD

    rows = F.normalize(load("docgraph").x.double(), dim=1)
    ours = principal_components(load("docgraph").x, 8).double()
    theirs = torch.from_numpy(TruncatedSVD(8, algorithm="arpack").fit_transform(rows.numpy()))
    theirs = theirs / theirs.square().mean().sqrt() * (ours * theirs).sum(0).sign()
    assert (ours - theirs).abs().max() < 1e-5


def test_rows_of_zeros_stay_zero():
    assert row_normalized(torch.tensor([[0.0, 0.0], [1.0, 3.0]])).tolist() == [[0, 0], [0.25, 0.75]]


def test_nearest_neighbors_of_points_on_a_line():
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    edges = nearest_neighbor_graph(x, 1).T.tolist()
    assert edges == [[0, 1], [1, 0], [1, 2], [2, 1], [2, 3], [3, 2]]
    with pytest.raises(ValueError, match="k must be between 1 and 3, got 4"):
        nearest_neighbor_graph(x, 4)


def test_small_components_are_left_out():
    data = block_model()
    pair, triangle = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[3, 4, 5, 4, 5, 3], [4, 5, 3, 3, 4, 5]])
    data.edge_index = torch.cat([pair, triangle], dim=1)
    kept = large_components(data, min_size=3)
    assert kept.x.equal(data.x[3:6])
    assert kept.edge_index.T.tolist() == [[0, 1], [1, 2], [2, 0], [1, 0], [2, 1], [0, 2]]
    assert len(large_components(data, min_size=2, max_nodes=4).y) == 4
    swapped = induced_subgraph(data, torch.tensor([1, 0]))
    assert swapped.edge_index.tolist() == [[1, 0], [0, 1]]


def test_the_block_model_has_the_wanted_degree_and_homophily():
    data = block_model(degree=12.0)
    n_edges = data.edge_index.shape[1]
    expected, spread = 12 * 180, 2 * math.sqrt(12 * 180 / 2)
    assert abs(n_edges - expected) < 4 * spread
    assert abs(edge_homophily(data.edge_index, data.y) - 0.8) < 4 * math.sqrt(0.16 / (n_edges / 2))
    assert data.edge_index.unique(dim=1).shape[1] == n_edges
    assert (data.edge_index[0] != data.edge_index[1]).all()
    with pytest.raises(ValueError, match="degree must be lower"):
        block_model(degree=150.0)


def test_degree_corrections_make_hubs():
    weights = torch.ones(180)
    weights[:10] = 6.0
    means = torch.zeros(3, 2)
    data = contextual_block_model(
        [60, 60, 60], degree=4.0, homophily=0.5, means=means, weights=weights, generator=torch_generator(0)
    )
    degrees = data.edge_index[0].bincount(minlength=180).double()
    assert degrees[:10].mean() > 3 * degrees[10:].mean()


def test_the_convolution_is_that_of_pyg_and_follows_the_graph():
    from torch_geometric.nn import GCNConv

    task = small_task()
    with seeded(torch_generator(0, "init")):
        model = GCN(task.x.shape[1], 5, 3)
    theirs = [GCNConv(task.x.shape[1], 5), GCNConv(5, 3)]
    for ours, reference in zip(model.layers, theirs, strict=True):
        reference.load_state_dict(ours.state_dict())
    for edges in (task.edge_index, task.edge_index[:, :40], task.edge_index):
        expected = theirs[1](theirs[0](task.x, edges).relu(), edges)
        assert (predict(model, task.x, edges) - expected).abs().max() < 1e-5
    with pytest.raises(ValueError, match="n_layers must be at least 1, got 0"):
        GCN(2, 2, 2, n_layers=0)


def test_training_uses_the_graph():
    task = small_task()
    with seeded(torch_generator(0, "train")):
        graph = fit(GCN(task.x.shape[1], 16, 3), task, epochs=60)
        alone = fit(MLP(task.x.shape[1], 16, 3), task, epochs=60)
    assert graph.test_accuracy > alone.test_accuracy > 0.4
    assert 1 <= graph.best_epoch <= graph.n_epochs == 60
    assert graph.seconds > 0


def test_training_follows_from_the_seed_and_leaves_the_global_generator_alone():
    task = small_task()
    before = torch.random.get_rng_state()
    runs = []
    for seed in (0, 0, 1):
        with seeded(torch_generator(seed, "train")):
            runs.append(fit(GCN(task.x.shape[1], 16, 3), task, epochs=5).logits)
    assert runs[0].equal(runs[1])
    assert not runs[0].equal(runs[2])
    assert torch.random.get_rng_state().equal(before)


class Scripted(nn.Module):
    """Right on the first `counts[t]` nodes at evaluation t."""

    def __init__(self, y: torch.Tensor, counts: list[int]) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.register_buffer("calls", torch.zeros(1))
        self.y, self.counts = y, counts

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        logits = F.one_hot(self.y, 3).float()
        if not self.training:
            logits[self.counts[int(self.calls)] :] *= -1
            self.calls += 1
        return logits + self.anchor


def test_the_first_best_epoch_counts_and_patience_stops():
    y = torch.zeros(6, dtype=torch.long)
    everything = torch.arange(6)
    task = NodeTask(torch.zeros(6, 1), torch.zeros(2, 0, dtype=torch.long), y, everything, everything, everything, 3)
    model = Scripted(y, [1, 4, 2, 4, 5, 6])
    result = fit(model, task, epochs=6, patience=2)
    assert (result.best_epoch, result.n_epochs) == (2, 4)
    assert result.test_accuracy == result.val_accuracy == 4 / 6
    assert accuracy(result.logits, y, everything) == 4 / 6
    assert int(model.calls) == 2  # buffers are restored as well
    rare = fit(Scripted(y, [1, 4, 6]), task, epochs=5, eval_every=2)
    assert (rare.best_epoch, rare.n_epochs) == (5, 5)
    with pytest.raises(ValueError, match="at least 1, got 0 and 1"):
        fit(model, task, epochs=0)


def test_own_loss_and_projection_are_used():
    task = small_task()
    model = MLP(task.x.shape[1], 4, 3)

    def clip() -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.clamp_(-0.01, 0.01)

    fit(model, task, epochs=3, loss=lambda logits: logits.square().mean(), after_step=clip)
    assert max(float(p.detach().abs().max()) for p in model.parameters()) <= 0.01 + 1e-7
