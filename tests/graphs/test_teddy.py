"""TEDDY: scores, pruning, projection, distillation, stacked training, and UGS."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from glocal.graphs.node_classification import seeded
from glocal.graphs.node_tasks import NodeTask, contextual_block_model, node_task
from glocal.graphs.sparse import propagation_operator
from glocal.graphs.teddy import (
    both_directions,
    degree_product_scores,
    degrees_of,
    distillation_loss,
    edge_scores,
    edge_survival,
    l0_mask,
    n_removed,
    node_scores,
    project,
    pruned,
    similarity_scores,
    sparsity_levels,
    undirected_pairs,
)
from glocal.graphs.teddy_measures import (
    far_share,
    fitted_exponent,
    hub_block_task,
    isolated_share,
    neighbor_task,
    repeated_task,
    with_new_split,
)
from glocal.graphs.teddy_networks import TicketNetwork, stack_graphs
from glocal.graphs.teddy_training import fit_tickets
from glocal.graphs.teddy_ugs import SoftGraph, mask_inputs, masked_logits, train_masks, ugs_tickets
from glocal.seeding import torch_generator

STAR = torch.tensor([[0, 0, 0, 1], [1, 2, 3, 2]])  # a star with three leaves, two of them joined


def small_task(seed: int = 0) -> NodeTask:
    means = 2 * F.one_hot(torch.arange(3), 8).float()
    data = contextual_block_model(
        [40, 40, 40], degree=5.0, homophily=0.8, means=means, generator=torch_generator(seed, "sbm")
    )
    generator = torch_generator(seed, "task")
    return node_task(data, labels_per_class=5, n_val=30, generator=generator)


TASK = small_task()
PAIRS = undirected_pairs(TASK.edge_index)


def network(net: str, copies: int = 1, seed: int = 0, **options) -> TicketNetwork:
    generator = torch_generator(seed, "network", net)
    return TicketNetwork(net, TASK.x.shape[1], 12, TASK.n_classes, copies=copies, generator=generator, **options)


# Check 1


def test_scores_of_the_star_by_hand():
    assert degrees_of(STAR, 4).tolist() == [3, 2, 2, 1]
    assert node_scores(STAR, 4).tolist() == pytest.approx([0.2682, 0.3211, 0.3211, 0.5774], abs=1e-3)
    assert edge_scores(STAR, 4).tolist() == pytest.approx([0.0861, 0.0861, 0.1549, 0.1031], abs=1e-3)
    places = edge_survival(edge_scores(STAR, 4), generator=torch_generator(0))
    assert sorted(places[:2].tolist()) == [0, 1]  # 0-1 and 0-2 leave first, tied
    assert places[2:].tolist() == [3, 2]  # 0-3 leaves last
    assert degree_product_scores(STAR, 4).tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 3, 1 / 4])


# Check 2


def test_scores_equal_the_dense_formula_and_move_with_the_nodes():
    n, pairs = TASK.n_nodes, PAIRS[:, (PAIRS != 7).all(0)]  # node 7 is isolated
    adjacency = torch.zeros(n, n, dtype=torch.float64)
    adjacency[pairs[0], pairs[1]] = adjacency[pairs[1], pairs[0]] = 1
    degrees = adjacency.sum(1)
    inverse = torch.where(degrees > 0, 1 / degrees.clamp_min(1), 0.0)
    t = inverse**2 * (adjacency @ inverse.sqrt())
    dense = torch.outer(t, t) * adjacency
    scores = edge_scores(pairs, n)
    assert (scores - dense[pairs[0], pairs[1]]).abs().max() < 1e-12
    assert (edge_scores(pairs.flip(0), n) - scores).abs().max() < 1e-15
    renamed = torch.randperm(n, generator=torch_generator(0))
    assert (edge_scores(renamed[pairs], n) - scores).abs().max() < 1e-12
    assert node_scores(pairs, n)[7] == 0


def test_each_edge_is_stored_once_and_loops_are_not():
    edges = torch.cat([both_directions(STAR), torch.tensor([[2], [2]])], dim=1)
    assert undirected_pairs(edges).tolist() == STAR.tolist()


# Check 3


def test_levels_are_nested_and_exact():
    scores = edge_scores(PAIRS, TASK.n_nodes)
    assert len(scores.unique()) < len(scores)  # ties occur
    levels = [0.0, 0.1, 0.35, 0.64, 0.9]
    kept = [pruned(PAIRS, scores, level, generator=torch_generator(0, "ties")) for level in levels]
    names = [set(map(tuple, part.T.tolist())) for part in kept]
    assert names[0] == set(map(tuple, PAIRS.T.tolist()))
    for more, less in itertools.pairwise(names):
        assert less < more
    for level, part in zip(levels, kept, strict=True):
        assert part.shape[1] == PAIRS.shape[1] - math.floor(level * PAIRS.shape[1])
    removed = torch.tensor([pair not in names[3] for pair in map(tuple, PAIRS.T.tolist())])
    assert scores[removed].max() <= scores[~removed].min()
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\), got 1.0"):
        n_removed(10, 1.0)
    assert n_removed(100, 0.29) == 29  # 0.29 * 100 is 28.999... in floating point


def test_loops_of_the_convolution_survive_and_degrees_are_computed_again():
    kept = STAR[:, 2:]  # edges 0-3 and 1-2
    matrix = stack_graphs("gcn", [kept], torch.eye(4)).operator.matrix.to_dense()
    expected = 0.5 * torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1.0]])
    assert (matrix - expected).abs().max() < 1e-6
    alone = stack_graphs("gcn", [kept[:, :0]], torch.eye(4)).operator.matrix.to_dense()
    assert alone.equal(torch.eye(4))


def test_the_schedule_is_the_official_one():
    edges, weights = sparsity_levels(0.05, 20), sparsity_levels(0.1, 20)
    assert (edges[0], edges[1]) == (pytest.approx(0.05), pytest.approx(0.0975))
    assert (edges[-1], weights[-1]) == (pytest.approx(0.6415, abs=1e-4), pytest.approx(0.8784, abs=1e-4))


# Check 4


@pytest.mark.parametrize("d", [2, 4])
def test_regular_graphs_have_equal_scores(d):
    n = 11
    steps = torch.arange(1, d // 2 + 1)
    pairs = torch.stack([torch.arange(n).repeat(len(steps)), (torch.arange(n)[None] + steps[:, None]).flatten() % n])
    pairs = pairs.sort(0).values
    assert edge_scores(pairs, n).tolist() == pytest.approx([d**-3.0] * pairs.shape[1])


# Check 5


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.88])
def test_projection_is_the_nearest_sparse_vector(sparsity):
    vector = torch.randn(1, 8, dtype=torch.float64, generator=torch_generator(0, "vector"))
    n_kept = 8 - math.ceil(sparsity * 8)
    distances = {
        support: float(vector[0, [i for i in range(8) if i not in support]].square().sum())
        for support in itertools.combinations(range(8), n_kept)
    }
    best = min(distances, key=distances.__getitem__)
    mask = l0_mask(vector, torch.tensor([sparsity], dtype=torch.float64))
    assert mask.nonzero()[:, 1].tolist() == list(best)


def test_selection_equals_a_stable_sort_also_among_ties():
    rows = torch.randint(-4, 5, (5, 40), generator=torch_generator(0, "rows")).float()
    shares = torch.tensor([0.0, 0.25, 0.5, 0.9, 1.0])
    for mask, row, share in zip(l0_mask(rows, shares), rows, shares.tolist(), strict=True):
        order = row.abs().argsort(stable=True)
        expected = torch.ones(40)
        expected[order[: math.ceil(share * 40 - 1e-6)]] = 0
        assert mask.equal(expected)


def test_projection_ranks_all_tensors_of_a_copy_together():
    first, second = torch.tensor([[[3.0, -0.1]], [[3.0, -0.1]]]), torch.tensor([[0.2, -5.0], [0.2, -5.0]])
    project([first, second], torch.tensor([0.5, 0.0]))
    assert first.tolist() == [[[3.0, 0.0]], [[3.0, pytest.approx(-0.1)]]]
    assert second.tolist() == [[0.0, -5.0], [pytest.approx(0.2), -5.0]]


@pytest.mark.parametrize("net", ["gcn", "gin"])
def test_training_ends_with_the_wanted_number_of_weights(net):
    model = network(net, copies=2)
    sizes = sum(parameter[0].numel() for parameter in model.parameters())
    share = torch.tensor([0.6, 0.88])
    fit = fit_tickets(model, stack_graphs(net, [PAIRS] * 2, TASK.x), TASK, weight_sparsity=share, epochs=3)
    nonzero = sum((parameter != 0).flatten(1).sum(1) for parameter in model.parameters())
    assert nonzero.tolist() == [sizes - math.ceil(0.6 * sizes), sizes - math.ceil(0.88 * sizes)]
    assert fit.density.shape == (2, len(model.weights))
    once = network(net)
    fit_tickets(once, stack_graphs(net, [PAIRS], TASK.x), TASK, weight_sparsity=0.6, projection="once", epochs=3)
    assert sum(int((parameter != 0).sum()) for parameter in once.parameters()) == sizes - math.ceil(0.6 * sizes)


def test_zeroed_weights_may_return():
    model = network("gcn", dropout=0.0)
    graphs = stack_graphs("gcn", [PAIRS], TASK.x)
    supports = []
    for steps in (1, 40):
        model = network("gcn", dropout=0.0)
        # all epochs count as equally good for an empty comparison: keep the last one
        fit_tickets(model, graphs, TASK, weight_sparsity=0.5, epochs=steps, eval_every=steps, lr=0.05)
        supports.append(torch.cat([(weight != 0).flatten() for weight in model.weights]))
    assert (supports[1] & ~supports[0]).any()


# Check 6


def test_distillation_vanishes_at_the_teacher_up_to_a_constant():
    teacher = torch.randn(2, 7, 5, dtype=torch.float64, generator=torch_generator(0, "teacher"))
    shift = torch.arange(7, dtype=torch.float64)[None, :, None]
    student = (teacher + shift).requires_grad_()
    loss = distillation_loss(student, teacher)
    loss.sum().backward()
    assert loss.abs().max() < 1e-12
    assert student.grad.abs().max() < 1e-12


def test_distillation_is_the_divergence_from_the_teacher_averaged_over_nodes():
    generator = torch_generator(0, "logits")
    student, teacher = torch.randn(2, 7, 5, generator=generator), torch.randn(2, 7, 5, generator=generator)
    for copy, loss in enumerate(distillation_loss(student, teacher)):
        expected = F.kl_div(student[copy].log_softmax(1), teacher[copy].softmax(1), reduction="batchmean")
        assert float(loss) == pytest.approx(float(expected), abs=1e-6)


# Check 7


@pytest.mark.parametrize("net", ["gcn", "gin"])
def test_without_pruning_and_teacher_the_dense_run_comes_back(net):
    dense = fit_tickets(network(net), stack_graphs(net, [PAIRS], TASK.x), TASK, epochs=8)
    everything = pruned(PAIRS, edge_scores(PAIRS, TASK.n_nodes), 0.0, generator=torch_generator(0))
    graphs = stack_graphs(net, [everything], TASK.x)
    ticket = fit_tickets(
        network(net), graphs, TASK, teacher=dense.logits[0], distill_weight=0.0, weight_sparsity=0.0, epochs=8
    )
    assert ticket.logits.equal(dense.logits)
    assert ticket.test.equal(dense.test)
    other = fit_tickets(network(net, seed=1), graphs, TASK, epochs=8)
    assert not other.logits.equal(dense.logits)


@pytest.mark.parametrize("net", ["gcn", "gin", "mlp"])
def test_copies_side_by_side_equal_separate_trainings(net):
    kept = [pruned(PAIRS, edge_scores(PAIRS, TASK.n_nodes), p, generator=torch_generator(0)) for p in (0.2, 0.6)]
    share, strength = torch.tensor([0.0, 0.7]), torch.tensor([0.5, 2.0])
    teacher = torch.randn(TASK.n_nodes, TASK.n_classes, generator=torch_generator(0, "teacher"))
    together = fit_tickets(
        network(net, copies=2),
        stack_graphs(net, kept, TASK.x),
        TASK,
        teacher=teacher,
        distill_weight=strength,
        weight_sparsity=share,
        epochs=6,
    )
    for copy in range(2):
        alone = fit_tickets(
            network(net),
            stack_graphs(net, [kept[copy]], TASK.x),
            TASK,
            teacher=teacher,
            distill_weight=strength[copy : copy + 1],
            weight_sparsity=share[copy : copy + 1],
            epochs=6,
        )
        assert (alone.logits[0] - together.logits[copy]).abs().max() < 1e-4
        assert float(alone.val[0]) == pytest.approx(float(together.val[copy]), abs=0.04)


# Check 8


def test_the_networks_are_those_of_pyg_on_the_filtered_graph():
    kept = pruned(PAIRS, edge_scores(PAIRS, TASK.n_nodes), 0.5, generator=torch_generator(0))
    edges = both_directions(kept)
    from torch_geometric.nn import GCNConv, GINConv

    with seeded(torch_generator(0)):
        first, second = GCNConv(TASK.x.shape[1], 12, bias=False), GCNConv(12, TASK.n_classes, bias=False)
    ours = network("gcn").eval()
    with torch.no_grad():
        ours.weights[0][0], ours.weights[1][0] = first.lin.weight.T, second.lin.weight.T
        logits = ours(stack_graphs("gcn", [kept], TASK.x))[0]
        assert (logits - second(first(TASK.x, edges).relu(), edges)).abs().max() < 1e-6

    ours = network("gin").eval()
    with torch.no_grad():
        ours.epsilons[0].fill_(0.3), ours.epsilons[1].fill_(-0.2)
        linear = [torch.nn.Linear(*w[0].shape, bias=False) for w in ours.weights]
        for layer, weight in zip(linear, ours.weights, strict=True):
            layer.weight.copy_(weight[0].T)
        hidden = GINConv(linear[0], eps=0.3)
        hidden.nn = linear[0]  # the constructor resets the layer it is given
        linear[0].weight.copy_(ours.weights[0][0].T)
        h = hidden(TASK.x, edges).relu()
        top = GINConv(linear[1], eps=-0.2)
        linear[1].weight.copy_(ours.weights[1][0].T)
        expected = 0.5 * (linear[2](h) + top(h, edges).relu())
        assert (ours(stack_graphs("gin", [kept], TASK.x))[0] - expected).abs().max() < 1e-5


@pytest.mark.parametrize("net", ["gcn", "gin", "mlp"])
def test_the_neighbourhood_of_the_labels_gives_their_logits(net):
    kept = [pruned(PAIRS, edge_scores(PAIRS, TASK.n_nodes), p, generator=torch_generator(0)) for p in (0.2, 0.7)]
    graphs, model = stack_graphs(net, kept, TASK.x), network(net, copies=2).eval()
    part, places = graphs.around(TASK.train)
    assert len(part.x) < TASK.n_nodes
    assert (model(part)[:, places] - model(graphs)[:, TASK.train]).abs().max() < 1e-6


def test_dropout_is_fair_and_equal_for_all_copies():
    model = network("gcn", copies=3, dropout=0.3)
    dropped = model.dropped(torch.ones(3, 400, 50))
    assert dropped[0].equal(dropped[1])
    assert dropped[0].equal(dropped[2])
    kept = dropped[0] != 0
    assert dropped[0][kept].unique().tolist() == pytest.approx([1 / 0.7])
    assert abs(float(kept.float().mean()) - 0.7) < 4 * math.sqrt(0.21 / 20_000)
    assert not model.dropped(torch.ones(3, 400, 50)).equal(dropped)
    assert model.eval().dropped(torch.ones(3, 4, 5)).equal(torch.ones(3, 4, 5))


# UGS


@pytest.mark.parametrize("net", ["gcn", "gin"])
def test_masks_of_ones_change_nothing_and_zeros_remove_edges(net):
    model = network(net).eval()
    ones = [torch.ones_like(weight) for weight in model.weights]
    soft = SoftGraph(net, PAIRS, TASK.n_nodes)
    full = masked_logits(model, soft, mask_inputs(soft, TASK.x), torch.ones(PAIRS.shape[1]), ones)
    assert (full - model(stack_graphs(net, [PAIRS], TASK.x))[0]).abs().max() < 1e-5
    keep = torch.rand(PAIRS.shape[1], generator=torch_generator(0, "keep")) < 0.5
    partly = masked_logits(model, soft, mask_inputs(soft, TASK.x), keep.float(), ones)
    assert (partly - model(stack_graphs(net, [PAIRS[:, keep]], TASK.x))[0]).abs().max() < 1e-5


@pytest.mark.parametrize("net", ["gcn", "gin"])
def test_mask_training_needs_only_the_neighbourhood_of_the_labels(net):
    generator = torch_generator(0, "few")
    few = TASK.train[:2]
    whole, part = SoftGraph(net, PAIRS, TASK.n_nodes), SoftGraph(net, PAIRS, TASK.n_nodes, around=few)
    assert len(part.nodes) < TASK.n_nodes
    places = torch.searchsorted(part.nodes, few)
    start = 0.5 + torch.rand(PAIRS.shape[1], generator=generator)
    gradients = []
    for soft, where in ((whole, few), (part, places)):
        model, mask = network(net, dropout=0.0), start.clone().requires_grad_()
        ones = [torch.ones_like(weight) for weight in model.weights]
        logits = masked_logits(model, soft, mask_inputs(soft, TASK.x), mask, ones)[where]
        F.cross_entropy(logits, TASK.y[few]).backward()
        gradients.append([mask.grad, *(weight.grad for weight in model.weights)])
    for expected, ours in zip(*gradients, strict=True):
        assert expected.abs().max() > 1e-3
        assert (expected - ours).abs().max() < 1e-6


def test_gradients_of_edge_masks_equal_finite_differences():
    soft = SoftGraph("gcn", STAR, 4)
    features = torch.randn(4, 3, generator=torch_generator(0, "x"), dtype=torch.float64)
    target = torch.randn(4, 3, generator=torch_generator(0, "t"), dtype=torch.float64)

    def dense(mask):  # the same by automatic differentiation of a dense matrix
        rows = torch.zeros(4, 4, dtype=mask.dtype).index_put((STAR[0], STAR[1]), mask)
        adjacency = rows + rows.T + torch.eye(4, dtype=mask.dtype)
        scale = adjacency.sum(1).rsqrt()
        return scale[:, None] * adjacency * scale[None]

    mask = torch.tensor([0.9, 1.1, 0.4, 0.7], requires_grad=True)
    (soft.multiply(soft.values(mask), features.float()) * target.float()).sum().backward()
    reference = mask.detach().double().requires_grad_()
    ((dense(reference) @ features) * target).sum().backward()
    assert (mask.grad - reference.grad).abs().max() < 1e-5

    def value(entries):
        return float(((dense(entries) @ features) * target).sum())

    start = mask.detach().double()
    for k in range(4):
        step = 1e-5 * F.one_hot(torch.tensor(k), 4).double()
        difference = (value(start + step) - value(start - step)) / 2e-5
        assert float(mask.grad[k]) == pytest.approx(difference, abs=1e-4)


@pytest.mark.parametrize("net", ["gcn", "gin"])
def test_rounds_prune_exactly_stay_nested_and_rewind(net):
    edges, weights = sparsity_levels(0.3, 3), sparsity_levels(0.4, 3)
    made = []

    def rewound():
        made.append(network(net))
        return made[-1]

    tickets = ugs_tickets(
        rewound,
        TASK,
        PAIRS,
        edges,
        weights,
        generator=torch_generator(0, "ugs"),
        edge_penalty=1e-2,
        weight_penalty=1e-3,
        epochs=4,
    )
    assert len(made) == 4  # sizes, and once per round
    n_weights = sum(weight.numel() for weight in made[0].weights)
    for k, ticket in enumerate(tickets):
        assert ticket.pairs.shape[1] == PAIRS.shape[1] - n_removed(PAIRS.shape[1], edges[k])
        left = sum(int(mask.sum()) for mask in ticket.weight_masks)
        assert left == n_weights - math.ceil(weights[k] * n_weights - 1e-9)
    for before, after in itertools.pairwise(tickets):
        assert set(map(tuple, after.pairs.T.tolist())) < set(map(tuple, before.pairs.T.tolist()))
        assert all((b >= a).all() for b, a in zip(before.weight_masks, after.weight_masks, strict=True))
    retrained = fit_tickets(
        network(net), stack_graphs(net, [tickets[-1].pairs], TASK.x), TASK, masks=tickets[-1].weight_masks, epochs=3
    )
    shares = [float(mask.mean()) for mask in tickets[-1].weight_masks]
    assert retrained.density[0].tolist() == pytest.approx(shares)


@pytest.mark.parametrize("net", ["gcn", "gin"])
def test_masks_trained_on_the_neighbourhood_are_those_of_the_whole_graph(net):
    task = replace(TASK, train=TASK.train[:2])
    results = []
    for whole_graph in (True, False):
        model = network(net, dropout=0.0)
        ones = [torch.ones_like(weight) for weight in model.weights]
        edge_mask, weight_masks = train_masks(
            model,
            task,
            PAIRS,
            ones,
            edge_penalty=1e-2,
            weight_penalty=1e-3,
            generator=torch_generator(0, "noise"),
            epochs=4,
            eval_every=4,
            whole_graph=whole_graph,
        )
        results.append([edge_mask, *weight_masks])
    for whole, part in zip(*results, strict=True):
        assert (whole - part).abs().max() < 1e-3
    assert results[0][0].std() > 1e-3  # edges near the labels went elsewhere than the others


def test_the_penalty_shrinks_the_masks():
    ones = [torch.ones_like(weight) for weight in network("gcn").weights]
    sums = []
    for penalty in (0.0, 1.0):
        edge_mask, weight_masks = train_masks(
            network("gcn"),
            TASK,
            PAIRS,
            ones,
            edge_penalty=penalty,
            weight_penalty=penalty,
            generator=torch_generator(0, "noise"),
            epochs=5,
            eval_every=5,
        )
        sums.append((float(edge_mask.mean()), float(weight_masks[0].mean())))
    # a penalty that outweighs everything moves each entry by the learning rate in every step
    assert sums[1] == (pytest.approx(0.95, abs=1e-3), pytest.approx(0.95, abs=1e-3))
    assert min(sums[0]) > 0.97


# Measures and errors


def test_shares_of_isolated_and_far_nodes_of_a_path():
    path = torch.tensor([[0, 1, 2], [1, 2, 3]])
    labelled = torch.tensor([0])
    assert isolated_share(path, 5) == pytest.approx(0.2)
    assert far_share(path, 5, labelled) == pytest.approx(0.4)  # nodes 3 and 4
    assert far_share(path, 5, labelled, hops=3) == pytest.approx(0.2)
    assert far_share(path[:, 1:], 5, labelled) == pytest.approx(0.8)


def test_the_other_graphs_have_hubs():
    task = hub_block_task(600, n_val=100, generator=torch_generator(0, "hubs"))
    degrees = degrees_of(undirected_pairs(task.edge_index), 600).double()
    assert 3.0 < float(degrees.mean()) < 4.2  # 2 * 2.2 / 1.2 = 3.67, less what the limits cut off
    assert (
        float(hub_block_task(600, n_val=100, min_degree=4.0, generator=torch_generator(0)).edge_index.shape[1] / 600)
        > 6
    )
    assert degrees.max() > 5 * degrees.mean()
    images, labels = torch.rand(300, 1, 6, 6, generator=torch_generator(0, "images")), torch.arange(300) % 10
    pictures = neighbor_task(images, labels, n_val=50, generator=torch_generator(0, "split"))
    moved = neighbor_task(
        torch.cat([images[..., :3], images[..., 3:].flip(0)], dim=3), labels, n_val=50, generator=torch_generator(0)
    )
    assert pictures.edge_index.equal(moved.edge_index)  # the right half plays no part in the edges
    assert not pictures.x.equal(moved.x)
    assert (pictures.x.double().T @ pictures.x.double()).fill_diagonal_(0).abs().max() < 1e-2  # principal components
    again = with_new_split(pictures, n_val=50, generator=torch_generator(1, "split"))
    assert again.edge_index is pictures.edge_index
    assert torch.cat([again.train, again.val, again.test]).sort().values.equal(torch.arange(300))
    assert not again.train.equal(pictures.train)
    assert again.y[again.train].bincount().tolist() == [10] * 10


def test_similarity_and_costs():
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    assert similarity_scores(STAR, x).tolist() == pytest.approx([1, 0, -1, 0])
    twice = repeated_task(TASK, 2)
    assert twice.edge_index.shape[1] == 2 * TASK.edge_index.shape[1]
    operator, single = propagation_operator(twice.edge_index, 240), propagation_operator(TASK.edge_index, 120)
    assert (operator @ twice.x)[120:].sub(single @ TASK.x).abs().max() < 1e-6
    sizes = torch.tensor([1.0, 2.0, 4.0])
    assert fitted_exponent(sizes, 3 * sizes**1.5) == pytest.approx(1.5)


def test_messages():
    with pytest.raises(ValueError, match="net must be one of gcn, gin, mlp, got 'gat'"):
        stack_graphs("gat", [PAIRS], TASK.x)
    with pytest.raises(ValueError, match="net must be one of gcn, gin, mlp, got 'gat'"):
        network("gat")
    with pytest.raises(ValueError, match="projection must be one of every step, once, got 'never'"):
        fit_tickets(network("gcn"), stack_graphs("gcn", [PAIRS], TASK.x), TASK, projection="never")
    with pytest.raises(ValueError, match="costs and sizes must be positive"):
        fitted_exponent(torch.ones(3), torch.ones(3))
