"""ForwardGNN: layers against PyG, losses by hand, locality of training, top-down states, links, stored bytes."""

import math

import pytest
import torch
import torch.nn.functional as F

from glocal.data.pyg import data_class
from glocal.graphs.forwardgnn import (
    Runs,
    augmented_features,
    augmented_graph,
    best_depth,
    copy_losses,
    sf_logits,
    train_forward,
    virtual_edges,
)
from glocal.graphs.forwardgnn_baselines import StackedEncoder, label_propagation, one_hot, train_backprop
from glocal.graphs.forwardgnn_contrast import (
    appended_inputs,
    branch_rows,
    candidate_assignments,
    ff_loss,
    goodness,
    positive_outputs,
    train_contrast,
    training_assignments,
    virtual_inputs,
)
from glocal.graphs.forwardgnn_layers import (
    KINDS,
    make_layer,
    stacked_graph,
    train_copies,
    unit_rows,
)
from glocal.graphs.forwardgnn_links import (
    auc,
    edge_logits,
    link_runs,
    non_edges,
    pair_products,
    train_links,
    train_links_backprop,
)
from glocal.graphs.forwardgnn_memory import backprop_bytes, forward_bytes
from glocal.graphs.forwardgnn_topdown import TopDown, blended, label_states, layer_input, train_topdown, update_order
from glocal.graphs.node_tasks import contextual_block_model
from glocal.seeding import torch_generator

N, K = 60, 3
TINY = {"n_hidden": 8, "lr": 0.02, "epochs": 12, "val_every": 3}


def generator(*names) -> torch.Generator:
    return torch_generator(0, *names)


def toy_runs(copies: int = 2) -> Runs:
    data = contextual_block_model(
        [20] * K, degree=5.0, homophily=0.8, means=2 * torch.eye(K, 6), generator=generator("graph")
    )
    orders = torch.stack([torch.randperm(N, generator=generator("split", copy)) for copy in range(copies)])
    return Runs(data.x, data.edge_index, data.y, orders[:, :18], orders[:, 18:33], orders[:, 33:], K)


def pyg_layers(kind: str, n_in: int, n_out: int, copies: int) -> list[torch.nn.Module]:
    data_class()
    from torch_geometric.nn import GATConv, GCNConv, SAGEConv

    make = {"gcn": GCNConv, "sage": SAGEConv, "gat": lambda a, b: GATConv(a, b // 4, heads=4)}[kind]
    return [make(n_in, n_out) for _ in range(copies)]


def copy_weights(stack, layers, kind: str, n_in: int) -> None:
    with torch.no_grad():
        for copy, layer in enumerate(layers):
            if kind == "gcn":
                stack.weight[copy] = layer.lin.weight.T
            elif kind == "sage":
                stack.weight[copy, :n_in], stack.weight[copy, n_in:] = layer.lin_l.weight.T, layer.lin_r.weight.T
            else:
                stack.weight[copy] = layer.lin.weight.T
                stack.source[copy], stack.target[copy] = layer.att_src, layer.att_dst
            bias = layer.lin_l.bias if kind == "sage" else layer.bias
            bias += 0.1
            stack.bias[copy, 0] = bias


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_layers_are_those_of_pyg(kind):
    runs = toy_runs()
    graphs = [runs.edge_index, runs.edge_index[:, ::3]]  # the second one is directed
    x = torch.randn(2, N, 6, generator=generator("x"))
    stack = make_layer(kind, 2, 6, 8, generator=generator("layer"))
    layers = pyg_layers(kind, 6, 8, 2)
    copy_weights(stack, layers, kind, 6)
    graph = stacked_graph(graphs, N)
    ours, some = stack(stack.prepare(graph, x)), stack(stack.prepare(graph, x, runs.train))
    for copy, layer in enumerate(layers):
        expected = layer(x[copy], graphs[copy])
        assert (ours[copy] - expected).abs().max() < 1e-5
        assert (some[copy] - expected[runs.train[copy]]).abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_encoder_has_pyg_gradients(kind):
    runs = toy_runs(1)
    network = StackedEncoder(kind, 1, [6, 8, 4], n_heads=4, generator=generator("encoder"))
    if kind == "gat":
        network.layers[1] = make_layer("gat", 1, 8, 4, generator=generator("second"))
    first, second = pyg_layers(kind, 6, 8, 1), pyg_layers(kind, 8, 4, 1)
    copy_weights(network.layers[0], first, kind, 6)
    copy_weights(network.layers[1], second, kind, 8)
    graph = stacked_graph([runs.edge_index], N)
    copy_losses(network(graph, runs.x[None], runs.train), runs.y[runs.train]).sum().backward()
    logits = second[0](first[0](runs.x, runs.edge_index).relu(), runs.edge_index)
    F.cross_entropy(logits[runs.train[0]], runs.y[runs.train[0]]).backward()
    reference = first[0].lin_r if kind == "sage" else first[0].lin
    ours = network.layers[0].weight.grad[0]
    assert (ours[-6:].T - reference.weight.grad).abs().max() < 1e-6


def test_rows_have_length_one_and_zero_rows_stay():
    x = torch.randn(5, 4, generator=generator("rows"))
    x[2] = 0
    lengths = unit_rows(x).norm(dim=1)
    assert lengths.sub(torch.tensor([1.0, 1, 0, 1, 1])).abs().max() < 1e-6


def test_forward_forward_loss_by_hand():
    assert goodness(torch.tensor([1.0, 1.0])) == 0
    loss = ff_loss(torch.zeros(1, 4), torch.zeros(1, 3, 4))
    assert abs(float(loss) - 2 * math.log(2)) < 1e-6  # 1.3863
    hand = ff_loss(torch.tensor([[1.0]]), torch.tensor([[[2.0], [0.0]]]))
    expected = math.log(1 + math.exp(-1)) + (math.log(1 + math.exp(2)) + math.log(2)) / 2
    assert abs(float(hand) - expected) < 1e-6


def test_logits_are_inner_products_and_follow_the_classes():
    z = torch.tensor([[[1.0, 2.0], [0.0, 1.0], [3.0, 0.0], [1.0, 1.0]]])
    virtual = torch.tensor([[[1.0, 0.0], [2.0, -1.0]]])
    logits = sf_logits(z, virtual, temperature=0.5)
    assert logits.tolist() == [[[2, 0], [0, -2], [6, 12], [2, 2]]]
    assert sf_logits(z, virtual[:, [1, 0]], 0.5).equal(logits[..., [1, 0]])


def test_gradient_flows_through_virtual_embeddings():
    runs = toy_runs(1)
    graph, x = augmented_graph(runs), augmented_features(runs, generator=generator("virtual"))
    layer = make_layer("gcn", 1, 6, 4, generator=generator("layer"))
    rows = torch.cat([runs.train, torch.arange(N, N + K)[None]], dim=1)
    prepared = layer.prepare(graph, unit_rows(x), rows).double()
    targets = runs.y[runs.train]

    def local_loss(weight, bias):
        z = torch.baddbmm(bias, prepared, weight).relu()
        return copy_losses(sf_logits(z[:, :-K], z[:, -K:]), targets).sum()

    weight = layer.weight.detach().double().requires_grad_()
    bias = torch.full((1, 1, 4), 0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(local_loss, (weight, bias))
    layer.double()
    z = layer(prepared).relu()
    with_both = copy_losses(sf_logits(z[:, :-K], z[:, -K:]), targets).sum()
    one_side = copy_losses(sf_logits(z[:, :-K], z[:, -K:].detach()), targets).sum()
    grads = [torch.autograd.grad(loss, layer.weight, retain_graph=True)[0] for loss in (with_both, one_side)]
    assert (grads[0] - grads[1]).abs().max() > 1e-4


def test_only_training_nodes_touch_virtual_nodes():
    runs = toy_runs()
    graph = augmented_graph(runs)
    assert graph.n_nodes == N + K
    assert graph.edge_index.shape[1] == sum(runs.edge_index.shape[1] + 2 * 18 for _ in range(2))
    for copy in range(2):
        edges = graph.edge_index - copy * (N + K)
        mine = edges[:, (edges >= 0).all(0) & (edges < N + K).all(0)]
        real = mine[:, (mine >= N).any(0)].amin(0)
        assert set(real.tolist()) == set(runs.train[copy].tolist())
        upward = mine[:, mine[1] >= N]
        assert (runs.y[upward[0]] == upward[1] - N).all()
    up = virtual_edges(torch.tensor([4]), torch.tensor([2]), N, "to_virtual")
    assert up.tolist() == [[4], [N + 2]]
    assert virtual_edges(torch.tensor([4]), torch.tensor([2]), N, "to_real").equal(up.flip(0))
    with pytest.raises(ValueError, match="direction must be one of both, to_virtual, to_real, got 'up'"):
        virtual_edges(torch.tensor([4]), torch.tensor([2]), N, "up")


def relabelled(runs: Runs) -> Runs:
    y = runs.y.clone()
    y[runs.test[0]] = (y[runs.test[0]] + 1) % K
    return Runs(runs.x, runs.edge_index, y, runs.train, runs.val, runs.test, K)


@pytest.mark.parametrize("train", [train_forward, train_contrast, train_topdown, train_backprop])
def test_test_labels_change_nothing(train):
    runs = toy_runs(1)
    fits = [train(some, n_layers=2, generator=generator("same"), **TINY) for some in (runs, relabelled(runs))]
    assert fits[0].scores.equal(fits[1].scores)
    assert fits[0].val.equal(fits[1].val)
    assert not fits[0].test.equal(fits[1].test)


def test_training_a_layer_leaves_the_one_below_alone():
    runs = toy_runs()
    shallow = train_forward(runs, n_layers=1, generator=generator("local"), **TINY)
    deep = train_forward(runs, n_layers=2, generator=generator("local"), **TINY)
    for before, after in zip(shallow.layers[0].parameters(), deep.layers[0].parameters(), strict=True):
        assert before.equal(after)
        assert after.grad is None or not after.grad.any()
    assert not any(state.requires_grad for state in deep.states)
    assert shallow.scores[0].equal(deep.scores[0])
    contrast = [train_contrast(runs, n_layers=n, generator=generator("local"), **TINY).layers[0] for n in (1, 2)]
    assert contrast[0].weight.equal(contrast[1].weight)


def test_accumulated_probabilities_sum_to_the_depth():
    runs = toy_runs()
    depths = torch.arange(1.0, 4.0)[:, None, None]
    for fit in (
        train_forward(runs, n_layers=3, generator=generator("sum"), **TINY),
        train_forward(runs, n_layers=3, readout="linear", generator=generator("sum"), **TINY),
        train_topdown(runs, n_layers=3, generator=generator("sum"), **TINY),
    ):
        assert (fit.scores.sum(-1) - depths).abs().max() < 1e-5
        assert fit.test[2].equal(runs.accuracy(fit.scores[2], runs.test))


def test_side_by_side_equals_alone():
    runs = toy_runs()
    graph, x = augmented_graph(runs), unit_rows(augmented_features(runs, generator=generator("two")))
    stack = make_layer("gcn", 2, 6, 4, generator=generator("stack"))
    alone = [make_layer("gcn", 1, 6, 4, generator=generator("alone")) for _ in range(2)]
    for copy, layer in enumerate(alone):
        layer.weight.data = stack.weight.data[copy : copy + 1].clone()

    def train(layer, some, copy_slice):
        rows = torch.cat([some.train, torch.arange(N, N + K).expand(some.copies, -1)], dim=1)
        prepared = layer.prepare(augmented_graph(some), x[copy_slice], rows)
        history = []

        def losses():
            z = layer(prepared).relu()
            return copy_losses(sf_logits(z[:, :-K], z[:, -K:]), some.y[some.train])

        def evaluate():
            history.append(-losses().double())
            return history[-1]

        train_copies(list(layer.parameters()), losses, evaluate, lr=0.05, epochs=9, val_every=3)
        return torch.stack(history)

    together = train(stack, runs, slice(0, 2))
    for copy, layer in enumerate(alone):
        history = train(layer, runs.subset(slice(copy, copy + 1)), slice(copy, copy + 1))
        assert (history[:, 0] - together[:, copy]).abs().max() < 1e-5
        assert (layer.weight[0] - stack.weight[copy]).abs().max() < 1e-4
    assert graph.copies == 2


def test_each_copy_keeps_its_best_epoch_and_stops_by_itself():
    weight = torch.nn.Parameter(torch.zeros(2, 1, 1))
    values = iter([(1.0, 1.0), (3.0, 2.0), (2.0, 3.0), (9.0, 4.0)])
    kept = []

    def evaluate():
        kept.append(weight.detach().clone())
        return torch.tensor(next(values), dtype=torch.float64)

    best = train_copies([weight], lambda: weight.sum((1, 2)), evaluate, lr=0.1, epochs=4, val_every=1, patience=1)
    assert best.tolist() == [3, 4]  # the first copy stopped after its third epoch, the nine came too late
    assert weight[0].equal(kept[1][0])
    assert weight[1].equal(kept[3][1])


def test_gradients_are_clipped_per_copy():
    weight = torch.nn.Parameter(torch.zeros(2, 1, 2))
    slopes = torch.tensor([[[3.0, 4.0]], [[0.3, 0.4]]])
    seen = []

    def evaluate():
        seen.append(weight.grad.clone())
        return torch.zeros(2, dtype=torch.float64)

    options = {"lr": 0.1, "epochs": 1, "clip_groups": [[weight]]}
    train_copies([weight], lambda: (weight * slopes).sum((1, 2)), evaluate, **options)
    assert (seen[0] - torch.tensor([[[0.6, 0.8]], [[0.3, 0.4]]])).abs().max() < 1e-5


def test_assignments_of_labels():
    runs = toy_runs()
    assigned = training_assignments(runs, generator=generator("negatives"))
    assert assigned.shape == (2, K, N)
    assert training_assignments(runs, 9, generator=generator("negatives")).equal(assigned)
    for copy in range(2):
        nodes = runs.train[copy]
        assert assigned[copy, 0, nodes].equal(runs.y[nodes])
        assert assigned[copy][:, nodes].sort(0).values.T.tolist() == [[0, 1, 2]] * 18  # every class once
        assert (assigned[copy] >= 0).sum() == K * 18
    asked = candidate_assignments(runs, runs.val, runs.train)
    assert asked[1, :, runs.val[1]].T.tolist() == [[0, 1, 2]] * 15
    assert (asked[1, :, runs.train[1]] == runs.y[runs.train[1]]).all()
    assert (asked[1, :, runs.test[1]] == -1).all()


def test_inputs_of_the_branches():
    runs = toy_runs()
    assigned = training_assignments(runs, 1, generator=generator("negatives"))
    graph, x = appended_inputs(runs, assigned)
    assert (graph.copies, graph.n_nodes, x.shape) == (2, 2 * N, (2, 2 * N, 9))
    assert x[1, N:, 6:].equal(one_hot(assigned[1, 1], K))
    assert one_hot(torch.tensor([-1, 2]), K).tolist() == [pytest.approx([1 / 3] * 3), [0, 0, 1]]
    virtual = torch.randn(2, K, 6, generator=generator("virtual"))
    graph, x = virtual_inputs(runs, assigned, virtual)
    assert (graph.copies, graph.n_nodes) == (2, 2 * (N + K))
    assert graph.edge_index.shape[1] == 4 * (runs.edge_index.shape[1] + 2 * 18)
    assert x[1, -K:].equal(virtual[1])
    node, size = int(runs.train[1, 0]), N + K
    wrong = int(assigned[1, 1, node])
    place = 2 * size + size + node  # copy 1, branch 1
    linked = graph.edge_index[1][graph.edge_index[0] == place]
    assert linked[linked % size >= N].tolist() == [3 * size + N + wrong]
    assert branch_rows(torch.tensor([[1, 2]]), 2, 10).tolist() == [[1, 2, 11, 12]]


def test_goodness_prediction_by_hand():
    """One layer trained for no epoch would predict from its start; the scores are means of squares minus theta."""
    runs = toy_runs(1)
    fit = train_contrast(runs, n_layers=1, threshold=0.5, generator=generator("hand"), **TINY)
    known = torch.cat([runs.train, runs.val], dim=1)
    graph, x = appended_inputs(runs, candidate_assignments(runs, runs.test, known))
    layer = fit.layers[0]
    z = layer(layer.prepare(graph, unit_rows(x))).relu().view(1, K, N, 8)
    expected = z.square().mean(-1).sub(0.5)[0].T
    assert (fit.scores[0, 0, runs.test[0]] - expected[runs.test[0]]).abs().max() < 1e-5


def test_wrong_graphs_of_virtual_nodes_read_the_right_outputs():
    state = torch.arange(12.0).view(1, 6, 2)
    assert positive_outputs(state, 3).equal(state[:, :2].repeat(1, 3, 1))
    runs, name, size = toy_runs(1), "vn", N + K
    options = TINY | {"epochs": 1, "val_every": 1}
    fit = train_contrast(runs, variant="virtual", n_layers=2, generator=generator(name), **options)
    again = generator(name)  # the same draws: virtual features, labels, first and second weights
    virtual = torch.randn(1, K, 6, generator=again)
    graph, x = virtual_inputs(runs, training_assignments(runs, generator=again), virtual)
    make_layer("gcn", 1, 6, 8, generator=again)
    second = make_layer("gcn", 1, 8, 8, generator=again)
    first = fit.layers[0]
    z = first(first.prepare(graph, unit_rows(x))).relu()
    right = z[:, :size].repeat(1, K, 1)

    def losses():
        h = second(second.prepare(graph, unit_rows(right), branch_rows(runs.train, K, size))).relu()
        gamma = goodness(h).view(1, K, -1)
        return ff_loss(gamma[:, 0], gamma[:, 1:])

    nothing = torch.zeros(1, dtype=torch.float64)
    train_copies(list(second.parameters()), losses, lambda: nothing, lr=TINY["lr"], epochs=1, val_every=1)
    assert (second.weight - fit.layers[1].weight).abs().max() < 1e-6


def topdown(runs: Runs, signal: str, n_layers: int) -> TopDown:
    return TopDown(
        runs,
        signal=signal,
        kind="gcn",
        n_layers=n_layers,
        n_hidden=4,
        n_heads=4,
        temperature=1.0,
        is_alternating=True,
        generator=generator("top", signal),
    )


def test_the_order_and_the_labels_of_top_down_states():
    assert update_order(3) == ((1, 3), (2,))
    assert update_order(4, is_alternating=False) == ((1, 2, 3, 4),)
    runs = toy_runs()
    labels = label_states(runs)
    assert labels[0, runs.train[0]].argmax(-1).equal(runs.y[runs.train[0]])
    assert (labels[0, runs.test[0]] == 1 / K).all()
    assert labels[1, N:].equal(torch.eye(K))


def test_top_to_input_reads_both_neighbours():
    model = topdown(toy_runs(), "input", 3)
    states = model.initial_states()
    assert [state.shape[-1] for state in states] == [6, 4, 4, 4, 3]
    x = layer_input(states, 3)
    assert x.shape[-1] == 4 + 3
    assert x[..., 4:].equal(unit_rows(model.top))
    new, _ = model.step(states)
    for j in (1, 3):  # the outer layers come first ...
        outer = model.layers[j - 1]
        assert outer(outer.prepare(model.graph, layer_input(states, j))).relu().equal(new[j])
    fresh = [new[0], new[1], states[2], new[3], states[4]]
    middle = model.layers[1]
    assert middle(middle.prepare(model.graph, layer_input(fresh, 2))).relu().equal(new[2])  # ... seen by the middle
    assert not any(state.requires_grad for state in new)


def test_top_to_loss_averages_what_is_above():
    one, two, three = torch.ones(1, 2, 2, requires_grad=True), torch.full((1, 2, 2), 4.0), torch.full((1, 2, 2), 7.0)
    assert blended(one, [two, three]).eq(4).all()
    assert blended(one, []).equal(one)
    model = topdown(toy_runs(), "loss", 2)
    states = model.initial_states()
    new, embeddings = model.step(states)
    lower = model.layers[0]
    own = lower(lower.prepare(model.graph, states[0])).relu()
    assert embeddings[0].equal((own + states[2]) / 2)
    assert new[1].equal(unit_rows(own.detach()))
    embeddings[0].sum().backward()
    assert model.layers[1].weight.grad is None  # nothing crosses a layer


@pytest.mark.parametrize("signal", ["input", "loss"])
def test_predictions_of_top_down_learners_by_hand(signal):
    model = topdown(toy_runs(), signal, 3)
    states, steps = model.initial_states(), []
    for _ in range(5):
        states, embeddings = model.step(states)
        steps.append(torch.stack([model.logits(z).softmax(-1) for z in embeddings]))
    expected = torch.stack(steps[2:]).mean(0).cumsum(0)  # the first two do not count
    assert (model.scores(5) - expected).abs().max() < 1e-6
    if signal == "loss":  # a fixed point from the start
        assert (steps[0] - steps[4]).abs().max() < 1e-6


def test_top_to_loss_with_one_layer_is_sf():
    runs = toy_runs()
    model = topdown(runs, "loss", 1)
    _, (z,) = model.step(model.initial_states())
    layer = model.layers[0]
    rows = torch.cat([runs.train, torch.arange(N, N + K).expand(2, -1)], dim=1)
    local = layer(layer.prepare(model.graph, unit_rows(model.bottom), rows)).relu()
    targets = runs.y[runs.train]
    expected = copy_losses(sf_logits(local[:, :-K], local[:, -K:]), targets)
    assert (copy_losses(model.logits(z, runs.train), targets) - expected).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["gcn", "sage"])
def test_all_learners_learn(kind):
    runs = toy_runs()
    options = TINY | {"epochs": 60, "kind": kind, "patience": 0, "lr": 0.05}
    fits = {
        "sf": train_forward(runs, n_layers=2, generator=generator("sf"), **options),
        "greedy": train_forward(runs, n_layers=2, readout="linear", generator=generator("greedy"), **options),
        "append": train_contrast(runs, generator=generator("la"), **options),
        "input": train_topdown(runs, n_layers=2, generator=generator("input"), **options),
        "loss": train_topdown(runs, n_layers=2, signal="loss", generator=generator("loss"), **options),
        "bp": train_backprop(runs, n_layers=2, generator=generator("bp"), **options),
        "augmented": train_backprop(runs, n_layers=2, graph="augmented", generator=generator("aug"), **options),
    }
    for name, fit in fits.items():
        assert fit.test[-1].mean() > 0.6, name
    assert len(fits["sf"].zero_share) == 2
    assert train_contrast(runs, variant="virtual", generator=generator("vn"), **options).test.mean() > 0.4


def test_perceptron_ignores_the_graph_and_labels_propagate():
    runs = toy_runs()
    lonely = Runs(runs.x, runs.edge_index[:, :0], runs.y, runs.train, runs.val, runs.test, K)
    fits = [train_backprop(r, n_layers=2, graph="none", generator=generator("mlp"), **TINY) for r in (runs, lonely)]
    assert fits[0].scores.equal(fits[1].scores)
    assert label_propagation(runs).mean() > 0.6
    blind = Runs(torch.zeros_like(runs.x), runs.edge_index, runs.y, runs.train, runs.val, runs.test, K)
    assert label_propagation(blind).equal(label_propagation(runs))


def test_depth_is_chosen_on_validation_nodes():
    val, test = torch.tensor([[0.5, 0.9], [0.7, 0.9]]), torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    assert best_depth(val, test).tolist() == pytest.approx([0.3, 0.2])


def test_link_splits_and_scores():
    data = toy_runs()
    runs = link_runs(data.x, data.edge_index, [generator("links", r) for r in range(2)])
    linked = {tuple(pair) for pair in data.edge_index.T.tolist()}
    for copy in range(2):
        held = {tuple(pair) for pair in runs.test[copy, :, : runs.test.shape[2] // 2].T.tolist()}
        none = {tuple(pair) for pair in runs.test[copy, :, runs.test.shape[2] // 2 :].T.tolist()}
        assert held <= linked
        assert not none & linked
        edges = runs.graph.edge_index - copy * N
        mine = edges[:, (edges >= 0).all(0) & (edges < N).all(0)]
        assert not held & {tuple(pair) for pair in mine.T.tolist()}
    assert link_runs(data.x, data.edge_index, [generator("links", 1)]).test[0].equal(runs.test[1])
    with pytest.raises(ValueError, match="count must be at most the number of non-edges drawn, 0, got 2"):
        non_edges(torch.tensor([[0, 1], [1, 0]]), 2, 2, generator=generator("dense"))
    z = torch.tensor([[[1.0, 2.0], [3.0, 0.5]]])
    products = pair_products(z, torch.tensor([[[0], [1]]]))
    assert products.tolist() == [[[3, 1]]]
    assert edge_logits(products).tolist() == [[4]]
    assert edge_logits(products, "contrast").tolist() == [[8]]


def test_area_under_the_curve_is_that_of_scikit_learn():
    from sklearn.metrics import roc_auc_score

    scores = torch.randint(0, 6, (3, 40), generator=generator("auc")).float()
    labels = [1] * 20 + [0] * 20
    for row, value in zip(scores, auc(scores), strict=True):
        assert abs(roc_auc_score(labels, row.numpy()) - float(value)) < 1e-12


def test_links_are_learned():
    data = toy_runs()
    runs = link_runs(data.x, data.edge_index, [generator("links", r) for r in range(2)])
    options = {"n_hidden": 8, "lr": 0.03, "epochs": 40, "val_every": 5}
    for fit in (
        train_links(runs, generator=generator("fl"), **options),
        train_links_backprop(runs, generator=generator("bp"), **options),
        train_links(runs, loss="contrast", generator=generator("ff"), **options),
    ):
        assert fit.test.mean() > 0.55


@pytest.mark.parametrize("kind", KINDS)
def test_only_back_propagation_stores_more_with_depth(kind):
    runs = toy_runs(1)
    options = {"kind": kind, "n_hidden": 8, "generator": generator("bytes")}
    wide = Runs(F.pad(runs.x, (0, 2)), runs.edge_index, runs.y, runs.train, runs.val, runs.test, K)  # as wide as layers
    local = [forward_bytes(wide, depth, **options) for depth in (1, 2, 3, 6)]
    assert 0 < local[0] == local[1] == local[2] == local[3]
    whole = [backprop_bytes(runs, depth, **options) for depth in (2, 4, 6)]
    assert whole[2] - whole[1] == whole[1] - whole[0] > 0


def test_bad_choices_are_errors():
    runs = toy_runs()
    with pytest.raises(ValueError, match="kind must be one of gcn, sage, gat, got 'gin'"):
        make_layer("gin", 1, 2, 2, generator=generator("bad"))
    with pytest.raises(ValueError, match="n_out must be a multiple of the 4 heads, got 6"):
        make_layer("gat", 1, 2, 6, generator=generator("bad"))
    with pytest.raises(ValueError, match="readout must be one of virtual, linear, got 'mlp'"):
        train_forward(runs, readout="mlp", generator=generator("bad"))
    with pytest.raises(ValueError, match="variant must be one of append, virtual, got 'la'"):
        train_contrast(runs, variant="la", generator=generator("bad"))
    with pytest.raises(ValueError, match="signal must be one of input, loss, got 'top'"):
        train_topdown(runs, signal="top", generator=generator("bad"))
    with pytest.raises(ValueError, match="graph must be one of plain, augmented, none, got 'full'"):
        train_backprop(runs, graph="full", generator=generator("bad"))
