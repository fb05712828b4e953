"""TEDDY's further network and competitor: GAT, WD-GLT, Sinkhorn's distance, sparse features."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linprog

import glocal.graphs.teddy_products as products
from glocal.graphs.node_tasks import NodeTask, contextual_block_model, node_task
from glocal.graphs.teddy import both_directions, edge_scores, n_removed, pruned, sparsity_levels, undirected_pairs
from glocal.graphs.teddy_gat import GatNetwork, attention, attention_graphs
from glocal.graphs.teddy_networks import stack_graphs
from glocal.graphs.teddy_products import Features, Pattern
from glocal.graphs.teddy_training import fit_tickets, graphs_for, ticket_network
from glocal.graphs.teddy_ugs import SoftGraph, mask_inputs, masked_logits, train_masks, ugs_tickets
from glocal.graphs.teddy_wasserstein import class_separation, sinkhorn_distance
from glocal.seeding import torch_generator

STAR = torch.tensor([[0, 0, 0, 1], [1, 2, 3, 2]])
HEADS, WIDTH = 3, 4


def small_task() -> NodeTask:
    means = 2 * F.one_hot(torch.arange(3), 8).float()
    data = contextual_block_model(
        [40, 40, 40], degree=5.0, homophily=0.8, means=means, generator=torch_generator(0, "sbm")
    )
    return node_task(data, labels_per_class=5, n_val=30, generator=torch_generator(0, "task"))


TASK = small_task()
PAIRS = undirected_pairs(TASK.edge_index)
FEW = replace(TASK, train=TASK.train[:2])


def kept(sparsity: float) -> torch.Tensor:
    return pruned(PAIRS, edge_scores(PAIRS, TASK.n_nodes), sparsity, generator=torch_generator(0, "ties"))


def gat(copies: int = 1, **options) -> GatNetwork:
    generator = torch_generator(0, "gat")
    return GatNetwork(
        TASK.x.shape[1], WIDTH, TASK.n_classes, copies=copies, heads=HEADS, generator=generator, **options
    )


def any_network(net: str) -> torch.nn.Module:
    return ticket_network(net, TASK.x.shape[1], 6, TASK.n_classes, heads=2, generator=torch_generator(0, net))


# GAT


def test_copies_are_gat_convolutions_of_pyg_on_their_filtered_graphs():
    from torch_geometric.nn import GATConv

    graphs = [kept(0.2), kept(0.7)]
    model = gat(copies=2).eval()
    with torch.no_grad():  # copies that differ
        for weight in model.weights:
            weight[1] += 0.3 * torch.randn(weight[1].shape, generator=torch_generator(0, "other"))
    target = torch.randn(2, TASK.n_nodes, TASK.n_classes, generator=torch_generator(0, "target"))
    logits = model(graphs_for("gat", graphs, TASK.x))
    (logits * target).sum().backward()
    for copy, pairs in enumerate(graphs):
        first = GATConv(TASK.x.shape[1], WIDTH, heads=HEADS, bias=False)
        second = GATConv(HEADS * WIDTH, TASK.n_classes, heads=1, concat=False, bias=False)
        ours = [weight[copy].detach() for weight in model.weights]
        with torch.no_grad():
            for layer, (matrix, source, end) in zip((first, second), (ours[:3], ours[3:]), strict=True):
                layer.lin.weight.copy_(matrix.T), layer.att_src[0].copy_(source), layer.att_dst[0].copy_(end)
        edges = both_directions(pairs)  # GATConv adds the loops
        expected = second(F.elu(first(TASK.x, edges)), edges)
        assert (logits[copy] - expected).abs().max() < 1e-6
        (expected * target[copy]).sum().backward()
        gradients = [
            part
            for layer in (first, second)
            for part in (layer.lin.weight.grad.T, layer.att_src.grad, layer.att_dst.grad)
        ]
        for weight, gradient in zip(model.weights, gradients, strict=True):
            assert (weight.grad[copy] - gradient.reshape(weight.grad[copy].shape)).abs().max() < 1e-4


def test_attention_by_hand_loops_stay():
    graphs = attention_graphs([STAR[:, :1]], torch.eye(4))  # only the edge 0-1 is left
    zeros = torch.zeros(4, 1)
    source = torch.tensor([[math.log(3.0)], [0.0], [5.0], [5.0]])
    alpha = attention(graphs.pattern, source, zeros)[:, 0]
    places = list(zip(graphs.pattern.rows.tolist(), graphs.pattern.columns.tolist(), strict=True))
    assert places == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 2), (3, 3)]
    assert alpha.tolist() == pytest.approx([0.75, 0.25, 0.75, 0.25, 1, 1])
    negative = attention(graphs.pattern, -source, zeros)[:, 0]  # the leaky ReLU shrinks negative logits to a fifth
    low = 3**-0.2
    assert negative.tolist() == pytest.approx([low / (1 + low), 1 / (1 + low)] * 2 + [1, 1])
    # a mask multiplies the logit and does not remove the edge
    factors = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    assert attention(graphs.pattern, source, zeros, factors)[:4, 0].tolist() == pytest.approx([0.5] * 4)
    huge = attention(graphs.pattern, 1000 * source, zeros)[:, 0]
    assert huge.tolist() == pytest.approx([1, 0, 1, 0, 1, 1])


def test_gradients_of_the_attention_masks_equal_those_of_a_dense_computation():
    model = gat(dropout=0.0)
    soft = SoftGraph("gat", PAIRS, TASK.n_nodes)
    start = 0.5 + torch.rand(PAIRS.shape[1], generator=torch_generator(0, "mask"))
    target = torch.randn(TASK.n_nodes, TASK.n_classes, generator=torch_generator(0, "target"))
    mask, ones = start.clone().requires_grad_(), [torch.ones_like(w) for w in model.weights]
    logits = masked_logits(model, soft, mask_inputs(soft, TASK.x), mask, ones)
    (logits * target).sum().backward()

    reference = start.clone().requires_grad_()
    half = torch.zeros(TASK.n_nodes, TASK.n_nodes).index_put((PAIRS[0], PAIRS[1]), reference)
    factors = half + half.T + torch.eye(TASK.n_nodes)
    adjacency = torch.eye(TASK.n_nodes).bool()
    adjacency[PAIRS[0], PAIRS[1]] = adjacency[PAIRS[1], PAIRS[0]] = True

    def layer(h, matrix, source, end):
        out = []
        for head in range(len(source)):
            z = (h @ matrix).view(len(h), len(source), -1)[:, head]
            scores = F.leaky_relu(factors * ((z @ source[head])[None] + (z @ end[head])[:, None]), 0.2)
            out.append(scores.masked_fill(~adjacency, -math.inf).softmax(1) @ z)
        return torch.cat(out, dim=1)

    w = [weight[0].detach() for weight in model.weights]
    expected = layer(F.elu(layer(TASK.x, *w[:3])), *w[3:])
    (expected * target).sum().backward()
    assert (logits - expected).abs().max() < 1e-5
    assert reference.grad.abs().max() > 1e-2
    assert (mask.grad - reference.grad).abs().max() < 1e-4


def test_the_neighbourhood_of_the_labels_gives_the_logits_of_gat():
    graphs = graphs_for("gat", [kept(0.2), kept(0.7)], TASK.x)
    part, places = graphs.around(FEW.train)
    assert len(part.x) < TASK.n_nodes
    model = gat(copies=2).eval()
    assert (model(part)[:, places] - model(graphs)[:, FEW.train]).abs().max() < 1e-6


def test_dropout_of_gat_is_equal_for_all_copies_and_absent_in_evaluation():
    graphs = graphs_for("gat", [kept(0.3)] * 2, TASK.x)
    model = gat(copies=2)
    first = model(graphs)
    assert first[0].equal(first[1])
    assert not model(graphs).equal(first)
    model.eval()
    assert model(graphs).equal(model(graphs))


def test_attention_that_is_dropped_is_the_same_edge_in_every_copy():
    graphs = graphs_for("gat", [PAIRS, kept(0.5)], TASK.x)
    n = TASK.n_nodes
    names = (graphs.pattern.rows % n) * n + graphs.pattern.columns % n
    for copy in range(2):
        own = graphs.pattern.rows // n == copy
        assert len(graphs.edge_ids[own].unique()) == int(own.sum())
    assert len(torch.stack([names, graphs.edge_ids]).unique(dim=1).T) == graphs.n_ids == 2 * PAIRS.shape[1] + n


def test_without_pruning_and_teacher_the_dense_gat_comes_back():
    dense = fit_tickets(gat(), graphs_for("gat", [PAIRS], TASK.x), TASK, epochs=5)
    ticket = fit_tickets(
        gat(), graphs_for("gat", [kept(0.0)], TASK.x), TASK, teacher=dense.logits[0], distill_weight=0.0, epochs=5
    )
    assert ticket.logits.equal(dense.logits)


def test_tickets_of_gat_side_by_side_equal_separate_ones_and_have_the_wanted_size():
    graphs, share, strength = [kept(0.2), kept(0.6)], torch.tensor([0.3, 0.7]), torch.tensor([0.5, 2.0])
    teacher = torch.randn(TASK.n_nodes, TASK.n_classes, generator=torch_generator(0, "teacher"))
    model = gat(copies=2, dropout=0.0)
    options = {"teacher": teacher, "epochs": 5}
    together = fit_tickets(
        model, graphs_for("gat", graphs, TASK.x), TASK, weight_sparsity=share, distill_weight=strength, **options
    )
    sizes = sum(weight[0].numel() for weight in model.weights)
    left = sum((weight != 0).flatten(1).sum(1) for weight in model.weights)
    assert left.tolist() == [sizes - math.ceil(0.3 * sizes - 1e-6), sizes - math.ceil(0.7 * sizes - 1e-6)]
    for copy in range(2):
        alone = fit_tickets(
            gat(dropout=0.0),
            graphs_for("gat", graphs[copy : copy + 1], TASK.x),
            TASK,
            weight_sparsity=share[copy : copy + 1],
            distill_weight=strength[copy : copy + 1],
            **options,
        )
        assert (alone.logits[0] - together.logits[copy]).abs().max() < 1e-4


def test_gat_learns():
    fit = fit_tickets(gat(), graphs_for("gat", [PAIRS], TASK.x), TASK, epochs=60, eval_every=5)
    assert float(fit.test) > 0.75


# UGS and WD-GLT


@pytest.mark.parametrize("net", ["gcn", "gin", "gat"])
@pytest.mark.parametrize("wasserstein_weight", [0.0, 0.1])
def test_rounds_prune_exactly_and_stay_nested(net, wasserstein_weight):
    edges, weights = sparsity_levels(0.3, 2), sparsity_levels(0.4, 2)
    tickets = ugs_tickets(
        lambda: any_network(net),
        TASK,
        PAIRS,
        edges,
        weights,
        generator=torch_generator(0, "ugs"),
        wasserstein_weight=wasserstein_weight,
        epochs=3,
    )
    n_weights = sum(weight.numel() for weight in any_network(net).weights)
    for k, ticket in enumerate(tickets):
        assert ticket.pairs.shape[1] == PAIRS.shape[1] - n_removed(PAIRS.shape[1], edges[k])
        left = sum(int(mask.sum()) for mask in ticket.weight_masks)
        assert left == n_weights - math.ceil(weights[k] * n_weights - 1e-9)
    for before, after in itertools.pairwise(tickets):
        assert set(map(tuple, after.pairs.T.tolist())) < set(map(tuple, before.pairs.T.tolist()))
        assert all((b >= a).all() for b, a in zip(before.weight_masks, after.weight_masks, strict=True))
    masks = tickets[-1].weight_masks
    fit = fit_tickets(any_network(net), graphs_for(net, [tickets[-1].pairs], TASK.x), TASK, masks=masks, epochs=3)
    assert fit.density[0].tolist() == pytest.approx([float(mask.mean()) for mask in masks])


def masks_of(net: str, task: NodeTask, **options):
    model = any_network(net)
    model.dropout = 0.0
    return train_masks(
        model, task, PAIRS, [torch.ones_like(w) for w in model.weights], generator=torch_generator(0), **options
    )


def test_masks_of_gat_from_the_neighbourhood_are_those_of_the_whole_graph():
    results = [
        masks_of("gat", FEW, weight_decay=0.0, epochs=4, eval_every=4, whole_graph=whole) for whole in (True, False)
    ]
    assert (results[0][0] - results[1][0]).abs().max() < 1e-3
    assert results[0][0].std() > 1e-3


@pytest.mark.parametrize("net", ["gcn", "gin", "gat"])
def test_the_wasserstein_term_reaches_edges_that_the_labels_do_not(net):
    options = {"weight_decay": 0.0, "epochs": 1, "lr": 0.01}
    near = set(SoftGraph("gcn", PAIRS, TASK.n_nodes, around=FEW.train).nodes.tolist())
    is_far = torch.tensor([i not in near and j not in near for i, j in PAIRS.T.tolist()])
    assert int(is_far.sum()) > 20
    moved = [(masks_of(net, FEW, wasserstein_weight=weight, **options)[0] - 1).abs() for weight in (0.0, 0.1)]
    assert moved[0][is_far].max() < 1e-4  # the noise of the start
    assert (moved[1][is_far] > 1e-3).double().mean() > 0.1  # many steps point above one and are clipped
    assert masks_of(net, FEW, wasserstein_weight=0.1, **options)[0].max() <= 1


def test_the_wasserstein_term_separates_the_classes():
    separations = []
    for weight in (0.0, 10.0):
        model = any_network("gcn")
        model.dropout = 0.0
        ones = [torch.ones_like(w) for w in model.weights]
        options = {"epochs": 10, "eval_every": 10, "generator": torch_generator(0)}
        edge_mask, masks = train_masks(model, TASK, PAIRS, ones, wasserstein_weight=weight, **options)
        soft = SoftGraph("gcn", PAIRS, TASK.n_nodes)
        logits = masked_logits(model.eval(), soft, mask_inputs(soft, TASK.x), edge_mask, masks)
        separations.append(float(class_separation(logits.detach())))
    assert separations[1] > separations[0] + 0.1


def test_distances_may_be_computed_on_drawn_nodes():
    options = {"wasserstein_weight": 0.5, "epochs": 2}
    whole, drawn, more = (masks_of("gcn", TASK, n_compared=n, **options)[0] for n in (0, 30, 1000))
    assert not whole.allclose(drawn, atol=1e-4)
    assert whole.equal(more)  # more than there are means all


# Sinkhorn's distance


def clouds(n: int, m: int):
    generator = torch_generator(0, "clouds", n, m)
    x, y = (torch.rand(k, 3, dtype=torch.float64, generator=generator) for k in (n, m))
    return torch.cdist(x, y), *(torch.full((k,), 1 / k, dtype=torch.float64) for k in (n, m))


@pytest.mark.parametrize(("n", "m"), [(5, 5), (4, 9)])
def test_small_regularization_gives_the_optimal_transport_of_a_linear_program(n, m):
    cost, a, b = clouds(n, m)
    rows, columns = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    exact = linprog(cost.flatten().numpy(), A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([a, b])).fun
    ours = float(sinkhorn_distance(cost, a, b, regularization=2e-3, n_steps=3000))
    assert ours == pytest.approx(exact, abs=1e-4)
    blurred = float(sinkhorn_distance(cost, a, b, regularization=10.0, n_steps=50))
    assert blurred == pytest.approx(float(cost.mean()), abs=1e-2)  # the independent coupling
    assert blurred > exact + 0.05


def test_the_distance_is_symmetric_and_zero_between_equal_clouds():
    cost, a, b = clouds(6, 8)
    options = {"regularization": 0.01, "n_steps": 2000}
    there, back = sinkhorn_distance(cost, a, b, **options), sinkhorn_distance(cost.T, b, a, **options)
    assert float(there) == pytest.approx(float(back), abs=1e-6)
    x = torch.rand(7, 3, generator=torch_generator(0, "x"))
    weights = torch.full((7,), 1 / 7)
    assert float(sinkhorn_distance(torch.cdist(x, x), weights, weights)) == pytest.approx(0, abs=1e-5)


def plain_distance(x, y, eps, n_steps):
    """The iterations as in textbooks, in multiplicative form; needs a regularization that is not small."""
    cost = (x[:, None] - y[None]).square().sum(-1).sqrt()
    kernel = (-cost / eps).exp()
    a, b = (torch.full((len(z),), 1 / len(z), dtype=torch.float64) for z in (x, y))
    v = b
    for _ in range(n_steps):
        u = a / (kernel @ v)
        v = b / (kernel.T @ u)
    return (u[:, None] * kernel * v[None] * cost).sum()


@pytest.mark.parametrize("n_steps", [1, 10])
def test_classes_are_compared_with_all_other_nodes(n_steps):
    logits = torch.randn(20, 4, dtype=torch.float64, generator=torch_generator(0, "logits"))
    logits[:, 3] -= 100  # a class without nodes
    logits.requires_grad_()
    ours = class_separation(logits, regularization=0.1, n_steps=n_steps)
    (gradient,) = torch.autograd.grad(ours, logits)
    probs, assigned = logits.softmax(1), logits.argmax(1)
    assert sorted(assigned.unique().tolist()) == [0, 1, 2]
    parts = [plain_distance(probs[assigned == c], probs[assigned != c], 0.1, n_steps) for c in range(3)]
    expected = torch.stack(parts).sum()
    assert float(ours.detach()) == pytest.approx(float(expected.detach()), rel=1e-8)
    (reference,) = torch.autograd.grad(expected, logits)
    assert reference.abs().max() > 1e-3
    assert (gradient - reference).abs().max() < 1e-8


def test_one_class_alone_has_no_distance_and_no_gradient():
    logits = torch.zeros(5, 3)
    logits[:, 1] = 1
    logits.requires_grad_()
    loss = class_separation(logits)
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad.equal(torch.zeros(5, 3))
    tight = torch.tensor([[9.0, 0, 0]] * 3 + [[0, 9.0, 0]] * 4, requires_grad=True)  # equal points, far apart
    class_separation(tight).backward()
    assert tight.grad.isfinite().all()
    gap = math.sqrt(2) * (math.exp(9) - 1) / (math.exp(9) + 2)
    assert float(class_separation(tight.detach())) == pytest.approx(2 * gap, rel=1e-4)


# Sparse products


def test_products_with_any_entries_and_their_gradients():
    pattern = Pattern.of(*both_directions(STAR).flip(0), 4)
    generator = torch_generator(0, "values")
    values = torch.randn(8, dtype=torch.float64, generator=generator, requires_grad=True)
    x = torch.randn(4, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    dense = torch.zeros(4, 4, dtype=torch.float64).index_put((pattern.rows, pattern.columns), values)
    assert (pattern.multiply(values, x) - dense @ x).abs().max() < 1e-12
    assert torch.autograd.gradcheck(pattern.multiply, (values, x))
    assert (pattern.matrix(values[pattern.reverse]).to_dense() - dense.T).abs().max() < 1e-12
    twice = pattern.repeated(2)
    both = twice.matrix(torch.cat([values, 2 * values])).to_dense()
    assert (both - torch.block_diag(dense, 2 * dense)).abs().max() < 1e-12
    assert twice.matrix(torch.cat([values, 2 * values])[twice.reverse]).to_dense().equal(both.T)
    with pytest.raises(ValueError, match=r"both directions of every edge: pass both_directions\(pairs\)"):
        Pattern.of(STAR[0], STAR[1], 4)


def sparse_x() -> torch.Tensor:
    generator = torch_generator(0, "words")
    return (torch.rand(TASK.n_nodes, 50, generator=generator) < 0.06) * torch.rand(
        TASK.n_nodes, 50, generator=generator
    )


def test_sparse_features_multiply_like_dense_ones():
    x = sparse_x()
    features = Features(x)
    assert features.is_sparse
    assert not Features(TASK.x).is_sparse
    weights = torch.randn(50, 5, generator=torch_generator(0, "weights"), requires_grad=True)
    target = torch.randn(len(x), 5, generator=torch_generator(0, "target"))
    factors = torch.rand(features.shape_of_factors, generator=torch_generator(0, "factors"))
    dropped = x.clone()
    dropped[x != 0] *= factors  # row after row, as the entries are stored
    for ours, dense in ((features, x), (features.times(factors), dropped)):
        product = ours @ weights
        assert (product - dense @ weights).abs().max() < 1e-5
        (gradient,) = torch.autograd.grad((product * target).sum(), weights)
        assert (gradient - dense.T @ target).abs().max() < 1e-5


@pytest.mark.parametrize("net", ["gcn", "gin", "mlp", "gat"])
def test_networks_on_sparse_features_equal_those_on_dense_ones(net, monkeypatch):
    task = replace(FEW, x=sparse_x())
    graphs = [kept(0.2), kept(0.7)]
    teacher = torch.randn(TASK.n_nodes, TASK.n_classes, generator=torch_generator(0, "teacher"))
    results = []
    for bound in (0.0, 0.1):
        monkeypatch.setattr(products, "SPARSE_BELOW", bound)
        for options in ({}, {"teacher": teacher, "distill_weight": 1.0}):
            model = ticket_network(net, 50, 6, TASK.n_classes, copies=2, heads=2, generator=torch_generator(0, net))
            model.dropout = 0.0
            stacked = graphs_for(net, graphs, task.x)
            assert stacked.features.is_sparse == (bound > 0)
            results.append(fit_tickets(model, stacked, task, epochs=4, eval_every=4, **options).logits)
    for dense, sparse in zip(results[:2], results[2:], strict=True):
        assert (dense - sparse).abs().max() < 1e-4


@pytest.mark.parametrize("net", ["gcn", "gin"])
def test_the_neighbourhood_suffices_for_sparse_features(net):
    graphs = stack_graphs(net, [kept(0.2), kept(0.7)], sparse_x())
    assert graphs.propagated is None
    model = ticket_network(net, 50, 6, TASK.n_classes, copies=2, generator=torch_generator(0, net)).eval()
    part, places = graphs.around(FEW.train)
    assert len(part.x) < TASK.n_nodes
    assert (model(part)[:, places] - model(graphs)[:, FEW.train]).abs().max() < 1e-5


def test_messages():
    cost, a, b = clouds(3, 4)
    with pytest.raises(ValueError, match=r"regularization and n_steps must be positive, got 0\.0 and 10"):
        sinkhorn_distance(cost, a, b, regularization=0.0)
    with pytest.raises(ValueError, match=r"regularization and n_steps must be positive, got 0\.001 and 0"):
        sinkhorn_distance(cost, a, b, n_steps=0)
