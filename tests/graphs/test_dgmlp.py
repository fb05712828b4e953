"""DGMLP: propagation and its limit, smoothing levels, designs, joint training."""

import networkx as nx
import pytest
import torch
import torch.nn.functional as F

from glocal.data.pyg import data_class
from glocal.graphs import dgmlp
from glocal.graphs.dgmlp_baselines import HopAttention, PropagatedPredictions
from glocal.graphs.dgmlp_networks import (
    Design,
    StackedNetwork,
    gcn,
    gcn_few_propagations,
    gcn_few_transformations,
    perceptron,
    propagate,
)
from glocal.graphs.dgmlp_reach import receptive_fields
from glocal.graphs.dgmlp_training import fit_stack, tune
from glocal.graphs.parts import Parts
from glocal.graphs.sparse import propagation_operator
from glocal.seeding import torch_generator

RUNS = torch.arange(2)


def edges_of(graph: nx.Graph) -> torch.Tensor:
    pairs = torch.tensor(sorted(graph.edges)).T
    return torch.cat([pairs, pairs.flip(0)], dim=1)


def connected(n: int = 20) -> torch.Tensor:
    return edges_of(nx.connected_watts_strogatz_graph(n, 4, 0.3, seed=1))


def features(n: int, f: int = 5, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, f, generator=torch_generator(0, "features", n), dtype=dtype)


def network(design: Design, n_features: int = 5, **options) -> StackedNetwork:
    options.setdefault("runs", RUNS)
    return StackedNetwork(design, n_features, 7, 3, generator=torch_generator(0, "network"), **options).double()


@pytest.mark.parametrize("r", [0.0, 0.5, 1.0])
def test_propagation_ends_in_the_limit(r):
    edges, x = connected(), features(20)
    operator = propagation_operator(edges, 20, r=r, dtype=torch.float64)
    hops = dgmlp.propagated_features(operator, x, 500)
    assert (hops[-1] - dgmlp.limit_features(edges, x, r=r)).abs().max() < 1e-6
    eigenvalues = torch.linalg.eigvals(operator.matrix.to_dense()).real
    assert abs(float(eigenvalues.max()) - 1) < 1e-8


def test_every_component_has_its_own_limit():
    one, two = connected(8), connected(12) + 8
    edges, x = torch.cat([one, two], dim=1), features(21)  # node 20 is isolated
    limit = dgmlp.limit_features(edges, x)
    assert torch.allclose(limit[:8], dgmlp.limit_features(one, x[:8]))
    assert torch.allclose(limit[8:20], dgmlp.limit_features(two - 8, x[8:20]))
    assert torch.equal(limit[20], x[20])
    hops = dgmlp.propagated_features(propagation_operator(edges, 21, dtype=torch.float64), x, 500)
    assert (hops[-1] - limit).abs().max() < 1e-6


def test_smoothing_level_at_both_ends():
    edges, x = connected(), features(20)
    x = torch.cat([x, x[:1]])
    hops = dgmlp.propagated_features(propagation_operator(edges, 21, dtype=torch.float64), x, 400)
    limit = dgmlp.limit_features(edges, x)
    level = dgmlp.node_smoothing_level(hops, limit)
    assert level[-1].abs().max() < 1e-6
    assert torch.allclose(level[0], 1 - F.cosine_similarity(x, limit))
    assert level[:, 20].abs().max() < 1e-12  # an isolated node is its own limit ...
    weights = dgmlp.step_weights(level)
    assert (weights[:, 20] - 1 / 401).abs().max() < 1e-12  # ... and weighs all steps alike
    assert (weights.sum(0) - 1).abs().max() < 1e-12


def test_a_zero_feature_row_gives_no_nan():
    x = features(20)
    x[3] = 0
    hops = torch.stack([x, torch.zeros_like(x)])
    assert torch.isfinite(dgmlp.node_smoothing_level(hops, torch.zeros_like(x))).all()


def test_temperature_goes_from_average_to_best_step():
    edges, x = connected(), features(20)
    hops = dgmlp.propagated_features(propagation_operator(edges, 20, dtype=torch.float64), x, 6)
    level = dgmlp.node_smoothing_level(hops, dgmlp.limit_features(edges, x))
    flat = dgmlp.combined_features(hops, dgmlp.step_weights(level, 1e9))
    assert (flat - dgmlp.mean_features(hops)).abs().max() < 1e-6
    sharp = dgmlp.combined_features(hops, dgmlp.step_weights(level, 1e-6))
    assert (sharp - hops[level.argmax(0), torch.arange(20)]).abs().max() < 1e-6
    together = dgmlp.dgmlp_features(edges, x, 6, temperature=0.7)
    assert torch.allclose(together, dgmlp.combined_features(hops, dgmlp.step_weights(level, 0.7)))
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        dgmlp.step_weights(level, 0.0)


def test_two_nodes_smooth_in_one_step():
    edges, x = torch.tensor([[0, 1], [1, 0]]), features(2)
    operator = propagation_operator(edges, 2, dtype=torch.float64)
    assert torch.allclose(operator.matrix.to_dense(), torch.full((2, 2), 0.5, dtype=torch.float64))
    hops = dgmlp.propagated_features(operator, x, 1)
    limit = dgmlp.limit_features(edges, x)
    assert torch.allclose(hops[1], limit)
    assert dgmlp.node_smoothing_level(hops, limit)[1].abs().max() < 1e-12


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # raised inside PyG's SIGN
def test_propagated_features_are_those_of_pyg():
    data = data_class()(x=features(20, dtype=torch.float32), edge_index=connected())
    from torch_geometric.nn import SGConv
    from torch_geometric.transforms import SIGN

    hops = dgmlp.propagated_features(propagation_operator(data.edge_index, 20), data.x, 3)
    convolution = SGConv(5, 5, K=3, bias=False)
    convolution.lin.weight.data = torch.eye(5)
    assert (convolution(data.x, data.edge_index) - hops[3]).abs().max() < 1e-5
    kept = dgmlp.concatenated_features(hops, [0, 3])
    assert torch.equal(kept, torch.cat([data.x, hops[3]], dim=1))
    sign = SIGN(2)(data)  # PyG's SIGN has no loops: compare with the operator without them
    plain = torch.zeros(20, 20)
    plain[data.edge_index[0], data.edge_index[1]] = 1
    degrees = plain.sum(1)
    plain = plain / (degrees[:, None] * degrees[None, :]).sqrt()
    assert (sign.x2 - plain @ plain @ data.x).abs().max() < 1e-5


def test_fixed_weights_of_the_steps():
    hops = torch.arange(3.0)[:, None, None].expand(3, 2, 1)
    weights = torch.tensor([0.0, -1.0, -2.0]).softmax(0)
    assert torch.allclose(dgmlp.decaying_features(hops), (weights[1] + 2 * weights[2]).expand(2, 1))
    assert torch.allclose(dgmlp.mean_features(hops), torch.ones(2, 1))


def test_designs_meet_in_the_two_layer_gcn():
    from torch_geometric.nn import GCNConv

    edges, x = connected(), features(20)
    operator = propagation_operator(edges, 20, dtype=torch.float64)
    assert gcn(2) == gcn_few_transformations(2)
    model = network(gcn(2))
    ours = model((operator @ x).expand(2, -1, -1), operator)
    data_class()
    layers = [GCNConv(5, 7).double(), GCNConv(7, 3).double()]
    for copy in range(2):
        for layer, weight in zip(layers, model.weights, strict=True):
            layer.lin.weight.data = weight[copy].detach().T
        expected = layers[1](layers[0](x, edges).relu(), edges)
        assert (ours[copy] - expected).abs().max() < 1e-6
    assert Design((4,)).is_decoupled
    assert gcn_few_propagations(3).schedule == (2, 0, 0)
    assert not gcn(2).is_decoupled


def test_without_activations_a_gcn_is_sgc():
    edges = connected()
    operator = propagation_operator(edges, 20, dtype=torch.float64)
    x = features(20).abs()
    model = network(gcn(3))
    for weight in model.weights:
        weight.data.abs_()  # positive everywhere: the ReLU is the identity
    product = model.weights[0] @ model.weights[1] @ model.weights[2]
    expected = dgmlp.propagated_features(operator, x, 3)[-1] @ product
    assert (model((operator @ x).expand(2, -1, -1), operator) - expected).abs().max() < 1e-6


def test_residual_layers_without_weights_do_nothing():
    x = features(20).expand(2, -1, -1)
    model = network(perceptron(5, "residual"))
    for weight in list(model.weights)[1:-1]:
        weight.data.zero_()
    hidden = (x @ model.weights[0]).relu()
    assert torch.allclose(model(x), hidden @ model.weights[-1])
    dense = network(perceptron(4, "dense"))
    h1 = (x @ dense.weights[0]).relu()
    h2 = (h1 @ dense.weights[1]).relu() + h1
    h3 = (h2 @ dense.weights[2]).relu() + h1 + h2
    assert torch.allclose(dense(x), h3 @ dense.weights[3])


def test_few_transformations_propagate_half_before_each():
    edges, x = connected(), features(20)
    operator = propagation_operator(edges, 20, dtype=torch.float64)
    model = network(gcn_few_transformations(6))
    for bias in model.biases:
        bias.data.normal_(generator=torch_generator(0, "bias"))
    dense = torch.linalg.matrix_power(operator.matrix.to_dense(), 3)
    hidden = (dense @ x @ model.weights[0] + model.biases[0]).relu()
    expected = dense @ hidden @ model.weights[1] + model.biases[1]
    assert torch.allclose(model((dense @ x).expand(2, -1, -1), operator), expected)


def test_initial_connection_mixes_with_the_first_output():
    x = features(20).expand(2, -1, -1)
    model = network(perceptron(3, "initial"))
    assert len(model.gates) == 1
    h1 = (x @ model.weights[0]).relu()
    h2 = (h1 @ model.weights[1]).relu()
    gate = (torch.cat([h2, h1], -1) @ model.gates[0]).sigmoid()
    assert torch.allclose(model(x), ((1 - gate) * h2 + gate * h1) @ model.weights[2])


def test_hop_attention_by_hand():
    hops = features(3 * 6).view(3, 6, 5)
    model = HopAttention(5, 2, 3, runs=RUNS, generator=torch_generator(0, "air")).double()
    x = dgmlp.concatenated_features(hops, [0, 1, 2]).expand(2, -1, -1)
    u = model.attention[1, :, 0]
    for node in range(6):
        scores = torch.stack([torch.cat([hops[0, node], hops[k, node]]) @ u for k in range(3)]).sigmoid().softmax(0)
        combined = (scores[:, None] * hops[:, node]).sum(0)
        assert torch.allclose(model(x)[1, node], combined @ model.weights[0][1])


def test_propagated_predictions_are_appnp():
    data_class()
    from torch_geometric.nn import APPNP

    edges, x = connected(), features(20)
    operator = propagation_operator(edges, 20, dtype=torch.float64)
    model = PropagatedPredictions(2, 4, 5, 7, 3, alpha=0.2, runs=RUNS, generator=torch_generator(0, "ppr")).double()
    own = (x @ model.weights[0][1]).relu() @ model.weights[1][1]
    expected = APPNP(4, 0.2)(own, edges)
    assert (model(x.expand(2, -1, -1), operator)[1] - expected).abs().max() < 1e-6
    with pytest.raises(ValueError, match="operator must be given"):
        model(x.expand(2, -1, -1))


def toy_parts() -> tuple[Parts, torch.Tensor]:
    y = torch.arange(30) % 3
    x = 2 * F.one_hot(y, 5).float() + torch.randn(30, 5, generator=torch_generator(0, "toy"))
    order = torch.stack([torch.randperm(30, generator=torch_generator(0, "order", run)) for run in range(2)])
    return Parts(y, order[:, :9], order[:, 9:18], order[:, 18:]), x[None]


def test_side_by_side_equals_alone():
    parts, x = toy_parts()
    joint = StackedNetwork(perceptron(2), 5, 7, 3, runs=RUNS, generator=torch_generator(0, "joint"))
    starts = [(w.detach().clone(), b.detach().clone()) for w, b in zip(joint.weights, joint.biases, strict=True)]
    together = fit_stack(joint, x, parts, epochs=30, weight_decay=0.1, eval_every=5)
    for run in range(2):
        alone = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3))
        for layer, (weight, bias) in zip((alone[0], alone[2]), starts, strict=True):
            layer.weight.data, layer.bias.data = weight[run].T.clone(), bias[run, 0].clone()
        optimizer = torch.optim.Adam(alone.parameters(), lr=0.01, weight_decay=0.1)
        val, test = [], []
        for epoch in range(1, 31):
            optimizer.zero_grad()
            F.cross_entropy(alone(x[0, parts.train[run]]), parts.y[parts.train[run]]).backward()
            optimizer.step()
            if epoch % 5 == 0:
                right = alone(x[0]).argmax(-1) == parts.y
                val.append(right[parts.val[run]].double().mean())
                test.append(right[parts.test[run]].double().mean())
        val = torch.stack(val)
        assert together.val[run] == val.max()
        assert together.test[run] == test[int(val.argmax())]
        assert together.train[run] == right[parts.train[run]].double().mean()


def test_every_copy_may_have_its_own_rate_and_decay():
    parts, x = toy_parts()
    rates, decays = torch.tensor([0.01, 0.1]), torch.tensor([0.0, 0.5])

    def weights_after(runs, rows, **options):
        model = StackedNetwork(perceptron(2), 5, 7, 3, runs=runs, generator=torch_generator(0, "rates"))
        chosen = Parts(parts.y, parts.train[rows], parts.val[rows], parts.test[rows])
        fit = fit_stack(model, x, chosen, epochs=12, eval_every=4, **options)
        return fit, [weight.detach() for weight in model.weights]

    zeros = torch.zeros(2).long()
    joint, together = weights_after(zeros, [0, 0], lr=rates, weight_decay=decays)
    for copy, fit in enumerate(joint.split(2)):
        single, alone = weights_after(zeros[:1], [0], lr=float(rates[copy]), weight_decay=float(decays[copy]))
        assert torch.equal(fit.val, single.val)
        assert torch.equal(fit.test, single.test)
        for a, b in zip(together, alone, strict=True):
            assert torch.allclose(a[copy], b[0], atol=1e-5)
    assert not torch.allclose(together[0][0], together[0][1], atol=0.01)


def test_every_copy_ends_at_its_best_epoch():
    parts, x = toy_parts()
    x = x + 2 * torch.randn(x.shape, generator=torch_generator(0, "noise"))
    model = StackedNetwork(perceptron(2), 5, 7, 3, runs=RUNS, generator=torch_generator(0, "best"))
    fit = fit_stack(model, x, parts, epochs=40, eval_every=1, lr=1.0)
    right = model(x.expand(2, -1, -1)).argmax(-1) == parts.y
    for run in range(2):
        assert right[run, parts.val[run]].double().mean() == fit.val[run]
        assert right[run, parts.test[run]].double().mean() == fit.test[run]


def test_shared_features_and_missing_test_nodes_change_nothing_else():
    parts, x = toy_parts()

    def fitted(x, parts):
        model = StackedNetwork(perceptron(2), 5, 7, 3, runs=RUNS, generator=torch_generator(0, "shared"))
        return fit_stack(model, x, parts, epochs=12, eval_every=4)

    shared, own = fitted(x, parts), fitted(x.expand(2, -1, -1).contiguous(), parts)
    blind = fitted(x, Parts(parts.y, parts.train, parts.val, parts.test[:, :0]))
    assert torch.equal(shared.val, own.val)
    assert torch.equal(shared.test, own.test)
    assert torch.equal(shared.val, blind.val)
    assert blind.test.isnan().all()


def test_dropout_spares_the_copies_without_it():
    x = features(4000, 5, torch.float32).expand(2, -1, -1)
    options = {"runs": torch.zeros(2).long(), "dropout": torch.tensor([0.0, 0.5])}
    model = StackedNetwork(perceptron(1), 5, 1, 3, generator=torch_generator(0, "mask"), **options)
    model.weights[0].data = torch.eye(5)[:, :3].repeat(2, 1, 1)
    logits = model.train()(x)
    assert torch.equal(logits[0], x[0, :, :3])
    kept = logits[1] != 0
    assert torch.allclose(logits[1][kept], 2 * x[1, :, :3][kept])
    assert abs(kept.double().mean() - 0.5) < 0.02
    assert torch.equal(model.eval()(x)[1], x[1, :, :3])


def test_no_epochs_are_an_error():
    parts, x = toy_parts()
    model = StackedNetwork(perceptron(1), 5, 1, 3, runs=RUNS, generator=torch_generator(0, "none"))
    with pytest.raises(ValueError, match="epochs and eval_every must be at least 1, got 0 and 10"):
        fit_stack(model, x, parts, epochs=0)


@pytest.mark.parametrize("r", [0.5, 0.0])
@pytest.mark.parametrize("design", [gcn(2), gcn(4, "residual"), gcn_few_transformations(6)])
def test_receptive_fields_give_the_outputs_and_gradients_of_the_whole_graph(design, r):
    edges = edges_of(nx.path_graph(40))
    operator, x = propagation_operator(edges, 40, r=r, dtype=torch.float64), features(40).expand(2, -1, -1)
    targets = torch.tensor([[0, 20], [5, 39]])
    copies = torch.arange(2)[:, None]
    model = network(design)
    field = receptive_fields(operator, targets, model.reach)
    assert field.nodes.shape[1] < 40
    outputs = []
    for whole in (True, False):
        model.zero_grad()
        inputs = x if whole else x[copies, field.nodes]
        logits = model(inputs, operator if whole else field.operator)[copies, targets if whole else field.targets]
        logits.square().sum().backward()
        outputs.append([logits.detach(), *(weight.grad.clone() for weight in model.weights)])
    for a, b in zip(*outputs, strict=True):
        assert torch.allclose(a, b)
    short = receptive_fields(operator, targets, model.reach - 1)  # one step less is not enough
    wrong = model(x[copies, short.nodes], short.operator)[copies, short.targets]
    assert not torch.allclose(wrong, outputs[0][0])


@pytest.mark.parametrize("design", [gcn(2), gcn_few_transformations(4)])
def test_training_on_receptive_fields_equals_training_on_the_whole_graph(design):
    parts, x = toy_parts()
    operator = propagation_operator(edges_of(nx.cycle_graph(30)), 30)
    fits, weights = [], []
    for whole in (True, False):
        model = StackedNetwork(design, 5, 7, 3, runs=RUNS, generator=torch_generator(0, "whole"))
        fits.append(fit_stack(model, x, parts, operator=operator, epochs=12, whole_graph=whole))
        weights.append([weight.detach() for weight in model.weights])
    assert torch.equal(fits[0].test, fits[1].test)
    for a, b in zip(*weights, strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    with pytest.raises(ValueError, match="operator must be given for a design that propagates"):
        fit_stack(model, x, parts, epochs=1)


def test_whole_graph_training_reads_the_same_nodes():
    parts, x = toy_parts()
    operator = propagation_operator(torch.tensor([[0], [0]])[:, :0], 30)  # loops only: propagation does nothing
    fits = []
    for design in (perceptron(2), gcn(2)):
        model = StackedNetwork(design, 5, 7, 3, runs=RUNS, generator=torch_generator(0, "same"))
        fits.append(fit_stack(model, x, parts, operator=operator, epochs=12))
    assert torch.equal(fits[0].test, fits[1].test)
    assert torch.equal(fits[0].val, fits[1].val)


def test_tuning_takes_the_best_on_validation():
    parts, x = toy_parts()
    fits = [
        fit_stack(
            StackedNetwork(perceptron(1), 5, 1, 3, runs=RUNS, generator=torch_generator(0, "t")),
            x,
            parts,
            epochs=epochs,
            lr=0.05,
        )
        for epochs in (1, 20)
    ]
    best = tune(fits)
    for copy in range(2):
        chosen = 0 if fits[0].val[copy] >= fits[1].val[copy] else 1
        assert best.test[copy] == fits[chosen].test[copy]
    assert best.seconds == fits[0].seconds + fits[1].seconds


def test_bad_designs_are_errors():
    with pytest.raises(ValueError, match="schedule must hold counts"):
        Design(())
    with pytest.raises(ValueError, match="connection must be one of none, residual, dense, initial, got 'skip'"):
        Design((1,), "skip")
    with pytest.raises(ValueError, match="depth must be even and at least 2, got 3"):
        gcn_few_transformations(3)
    with pytest.raises(ValueError, match="operator must be given for a design that propagates"):
        propagate(torch.zeros(1, 2, 3), None, 1)
