"""GRAND with local augmentation: DropNode, mixed orders, blocks per input and the shared layer, against references."""

import pytest
import torch
import torch.nn.functional as F

from glocal.graphs import lagnn, lagnn_backbones, lagnn_baselines, lagnn_grand, lagnn_products, lagnn_training
from glocal.graphs.node_classification import seeded
from glocal.graphs.node_tasks import NodeTask, row_normalized
from glocal.graphs.parts import Parts
from glocal.graphs.sparse import propagation_operator
from glocal.seeding import torch_generator


def make_task(n: int = 60, f: int = 20, seed: int = 0) -> tuple[NodeTask, torch.Tensor]:
    """A ring of classes with words of their own; raw features beside the task."""
    g = torch_generator(seed, "toy")
    y = torch.arange(n) * 3 // n
    topics = torch.rand(3, f, generator=g) * 0.6
    raw = (torch.rand(n, f, generator=g) < topics[y]).float()
    ring = torch.stack([torch.arange(n), (torch.arange(n) + 1) % n])
    parts = torch.randperm(n, generator=g)
    task = NodeTask(
        row_normalized(raw), lagnn.neighbor_pairs(ring), y, parts[:15].sort().values, parts[15:30], parts[30:], 3
    )
    return task, raw


def stack(*tasks: NodeTask) -> Parts:
    return Parts(tasks[0].y, *(torch.stack([getattr(t, p) for t in tasks]) for p in ("train", "val", "test")))


def grand(task: NodeTask, **options) -> lagnn_grand.AugmentedGRAND:
    """A GRAND with weights and biases that are not zero."""
    defaults = {"n_hidden": 4, "concat": 1, "runs": 1, "dropout": 0.5, "order": 3}
    network = lagnn_backbones.build_backbone(
        "grand", task, generator=torch_generator(0, "weights"), **(defaults | options)
    )
    with torch.no_grad(), seeded(torch_generator(1)):
        network.first_bias.uniform_(-1, 1)
        network.second_bias.uniform_(-1, 1)
    return network


def mlp(network: lagnn_grand.AugmentedGRAND, inputs: list[torch.Tensor], run: int = 0) -> torch.Tensor:
    """One run's classifier, by torch's own linear maps."""
    blocks = torch.block_diag(*[w[run].T for w, _ in zip(network.first, inputs, strict=True)])
    h = F.linear(torch.cat(inputs, 1), blocks, network.first_bias[run]).relu()
    return F.linear(h, network.second[run].T, network.second_bias[run])


# --- DropNode and propagation --------------------------------------------------------------------------------------


def test_dropped_nodes_are_whole_rows_and_the_mean_stays():
    x = torch.rand(50, 7, generator=torch_generator(0)) + 0.1
    before = x.clone()
    with seeded(torch_generator(1)):
        draws = torch.stack([lagnn_grand.drop_nodes(x, 0.3) for _ in range(4000)])
    is_zero = draws == 0
    assert bool((is_zero.all(2) == is_zero.any(2)).all())  # a node as a whole or not at all
    torch.testing.assert_close(draws[~is_zero.any(2)], (x / 0.7).expand(4000, -1, -1)[~is_zero.any(2)])
    assert float(is_zero.float().mean()) == pytest.approx(0.3, abs=0.01)
    torch.testing.assert_close(draws.mean(0), x, atol=0.06, rtol=0)
    assert torch.equal(x, before)
    assert lagnn_grand.drop_nodes(x, 0.3, is_training=False) is x
    assert lagnn_grand.drop_nodes(x, 0.0) is x
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\), got 1"):
        lagnn_grand.drop_nodes(x, 1.0)


def test_masks_of_nodes_are_independent():
    with seeded(torch_generator(1)):
        kept = torch.stack([lagnn_grand.drop_nodes(torch.ones(2, 1), 0.5)[:, 0] > 0 for _ in range(4000)]).float()
    assert abs(float(torch.corrcoef(kept.T)[0, 1])) < 0.05


@pytest.mark.parametrize("order", [1, 2, 5])
def test_mixed_orders_are_the_mean_of_dense_powers(order):
    task, _ = make_task()
    operator = propagation_operator(task.edge_index, 60)
    x = torch.rand(60, lagnn_grand.COLUMNS + 9, generator=torch_generator(0))  # more than one block of columns
    before, dense = x.clone(), operator.matrix.to_dense()
    powers = [torch.linalg.matrix_power(dense, k) for k in range(order + 1)]
    torch.testing.assert_close(lagnn_grand.mixed_order(operator, x, order), torch.stack(powers).mean(0) @ x)
    assert torch.equal(x, before)


def test_propagation_limits():
    task, _ = make_task()
    operator = propagation_operator(task.edge_index, 60)  # a ring: all degrees are equal, so rows sum to one
    assert lagnn_grand.mixed_order(operator, task.x, 0) is task.x
    constant = torch.full((60, 2), 0.7)
    torch.testing.assert_close(lagnn_grand.mixed_order(operator, constant, 8), constant)
    path = propagation_operator(torch.tensor([[0, 1], [1, 0]]), 2)  # by hand: half of (1, 0) + half of (1/2, 1/2)
    torch.testing.assert_close(
        lagnn_grand.mixed_order(path, torch.tensor([[1.0], [0.0]]), 1), torch.tensor([[0.75], [0.25]])
    )
    with pytest.raises(ValueError, match="order must be at least 0, got -1"):
        lagnn_grand.mixed_order(operator, task.x, -1)


def test_random_propagation_is_right_on_average():
    task, _ = make_task()
    network = grand(task, concat=0)
    assert not torch.equal(network.propagated(task.x), network.propagated(task.x))  # new masks
    with seeded(torch_generator(2)):
        mean = torch.stack([network.train().propagated(task.x) for _ in range(4000)]).mean(0)
    clean = network.eval().propagated(task.x)
    torch.testing.assert_close(mean, clean, atol=0.01, rtol=0)
    torch.testing.assert_close(clean, lagnn_grand.mixed_order(network.operator, task.x, 3))


# --- networks ------------------------------------------------------------------------------------------------------


def test_order_zero_is_an_mlp_without_graph():
    task, _ = make_task()
    inputs = [task.x, task.x.flip(0)]
    network = grand(task, order=0, runs=2).eval()
    other = NodeTask(task.x, task.edge_index[:, :4], task.y, task.train, task.val, task.test, 3)
    for run in range(2):
        torch.testing.assert_close(network(inputs)[..., run], mlp(network, inputs, run))
    assert torch.equal(network(inputs), grand(other, order=0, runs=2).eval()(inputs))
    assert not torch.allclose(network(inputs), grand(task, order=1, runs=2).eval()(inputs))


def test_every_input_is_propagated_and_has_its_own_block():
    task, _ = make_task()
    network = grand(task, concat=2).eval()
    inputs = [task.x, task.x.flip(0), task.x.roll(1, 0)]
    mixed = [lagnn_grand.mixed_order(network.operator, x, 3) for x in inputs]
    torch.testing.assert_close(network(inputs)[..., 0], mlp(network, mixed))
    assert [tuple(w.shape) for w in network.first] == [(1, 20, 4)] * 3
    assert len({float(w.sum().detach()) for w in network.first}) == 3


def test_known_inputs_change_nothing():
    task, _ = make_task()
    network = grand(task)
    known, inputs = network.prepared(task.x), [task.x, task.x.flip(0)]
    assert isinstance(known, lagnn_grand.KnownInput)
    torch.testing.assert_close(network.eval()([known, inputs[1]]), network(inputs))
    results = []
    for first in (known, inputs[0]):
        with seeded(torch_generator(3)):
            results.append(network.train()([first, inputs[1]]))
    assert torch.equal(*results)
    assert not torch.allclose(results[0], network.eval()(inputs))  # training drops


def test_inputs_have_their_own_masks_of_nodes():
    task, _ = make_task()
    ones = torch.ones(60, 20)
    network = grand(task, order=0, dropout=0.0)
    seen = []
    network.per_input = lambda inputs: seen.extend(inputs) or torch.zeros(60, 1, 8)
    network([ones, ones])
    masks = [x[:, 0] > 0 for x in seen]
    assert [round(float(mask.float().mean()), 1) for mask in masks] != [1.0, 1.0]
    assert not torch.equal(*masks)


def test_generated_inputs_of_zeros_leave_plain_grand():
    """Without entries in the second input its block adds constants only; with no biases it adds nothing."""
    task, _ = make_task()
    plain, augmented = grand(task, concat=0), grand(task, concat=1)
    with torch.no_grad():
        augmented.first[0].copy_(plain.first[0])
        augmented.first_bias.zero_()
        augmented.first_bias[:, :4].copy_(plain.first_bias)
        augmented.second[:, :4].copy_(plain.second)
        augmented.second_bias.copy_(plain.second_bias)
    zeros = torch.zeros_like(task.x)
    torch.testing.assert_close(augmented.eval()([task.x, zeros]), plain.eval()([task.x]))
    assert not torch.allclose(augmented([task.x, task.x]), plain([task.x]))
    loss = F.cross_entropy(augmented([task.x, zeros])[..., 0], task.y)
    assert float(torch.autograd.grad(loss, augmented.first[1])[0].abs().max()) == 0


@pytest.mark.parametrize("is_shared", [False, True])
def test_gradients_are_those_of_the_formula(is_shared):
    task, _ = make_task()
    network = grand(task, runs=2, dropout=0.0, drop_node=0.0, is_shared=is_shared)
    inputs = [task.x, task.x.flip(0)]
    mixed = [lagnn_grand.mixed_order(network.operator, x, 3) for x in inputs]
    passes = network.passes(inputs)
    assert len(passes) == 1 + is_shared
    groups = [[x] for x in mixed] if is_shared else [mixed]
    expected = [torch.stack([mlp(network, group, run) for run in range(2)], 2) for group in groups]
    parameters = list(network.parameters())
    assert len(parameters) == (2 - is_shared) + 3
    results = []
    for some in (passes, expected):
        loss = torch.stack([F.cross_entropy(z, task.y[:, None].expand(-1, 2)) for z in some]).mean()
        results.append(torch.autograd.grad(loss, parameters))
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference)
        assert float(mine.abs().max()) > 0


def test_shared_layer_trains_on_all_inputs_and_predicts_from_the_real_one():
    task, _ = make_task()
    network = grand(task, concat=2, is_shared=True, dropout=0.0, drop_node=0.0)
    inputs = [task.x, task.x.flip(0), task.x.roll(1, 0)]
    assert (network.n_inputs, len(network.first)) == (3, 1)
    passes = network.passes(inputs)
    for x, logits in zip(inputs, passes, strict=True):
        mixed = lagnn_grand.mixed_order(network.operator, x, 3)
        torch.testing.assert_close(logits[..., 0], mlp(network, [mixed]))
    torch.testing.assert_close(network.eval()(inputs), passes[0])
    assert torch.equal(network([task.x, *inputs[:0:-1]]), network(inputs))


# --- training ------------------------------------------------------------------------------------------------------


def test_training_of_a_plain_grand_is_that_of_a_loop():
    task, _ = make_task()
    epochs, samples, lr = 5, 3, 0.05
    network = grand(task, concat=0)
    fit_network = network.twin()
    fit = lagnn_training.fit_augmented(
        fit_network,
        task.x,
        None,
        stack(task),
        samples=samples,
        consistency=0.7,
        temperature=0.4,
        lr=lr,
        epochs=epochs,
        generator=torch_generator(9),
    )
    parameters = [network.first[0], network.first_bias, network.second, network.second_bias]
    optimizer = torch.optim.Adam(parameters, lr=lr, weight_decay=5e-4)
    operator, losses, probs = network.operator, [], []

    def forward(is_training: bool) -> torch.Tensor:
        x = lagnn_grand.drop_nodes(task.x, 0.5, is_training)
        h = lagnn_products.dropped(lagnn_grand.mixed_order(operator, x, 3), 0.5, is_training)
        h = (h @ parameters[0][0] + parameters[1][0]).relu()[:, None]
        return lagnn_products.dropped(h, 0.5, is_training)[:, 0] @ parameters[2][0] + parameters[3][0]

    with seeded(torch_generator(9)):
        for _ in range(epochs):
            optimizer.zero_grad()
            logits = [forward(True) for _ in range(samples)]
            p = torch.stack([z.softmax(1) for z in logits])
            q = p.mean(0).detach().pow(1 / 0.4)
            q = q / q.sum(1, keepdim=True)
            loss = sum(F.cross_entropy(z[task.train], task.y[task.train]) for z in logits) / samples
            (loss + 0.7 * (p - q).square().sum(2).mean()).backward()
            optimizer.step()
            with torch.no_grad():
                outputs = forward(False)
            losses.append(float(F.cross_entropy(outputs[task.val], task.y[task.val])))
            probs.append(outputs.softmax(1))
    best = losses.index(min(losses))
    assert int(fit.epoch) == best + 1
    assert float(fit.val_loss) == pytest.approx(losses[best], rel=1e-4)
    torch.testing.assert_close(fit.probs[..., 0], probs[best], atol=1e-4, rtol=1e-3)


def test_losses_of_a_shared_layer_are_means_over_the_passes_of_all_inputs():
    task, raw = make_task()
    fixed = row_normalized(raw).flip(0)
    network = grand(task, concat=2, is_shared=True, dropout=0.0, drop_node=0.0)
    by_hand = network.twin()
    fit = lagnn_training.fit_augmented(
        network, task.x, lambda g: fixed, stack(task), samples=2, lr=0.05, epochs=4, generator=torch_generator(0)
    )
    optimizer, best, probs = torch.optim.Adam(by_hand.parameters(), lr=0.05, weight_decay=5e-4), float("inf"), None
    mixed = [lagnn_grand.mixed_order(network.operator, x, 3) for x in (task.x, fixed, fixed)]
    for _ in range(4):
        optimizer.zero_grad()
        logits = [mlp(by_hand, [x]) for x in mixed]
        p = torch.stack([z.softmax(1) for z in logits])
        q = p.mean(0).detach().square()
        q = q / q.sum(1, keepdim=True)
        loss = sum(F.cross_entropy(z[task.train], task.y[task.train]) for z in logits) / 3
        (loss + (p - q).square().sum(2).mean()).backward()
        optimizer.step()
        with torch.no_grad():
            outputs = mlp(by_hand, [mixed[0]])
        loss_val = float(F.cross_entropy(outputs[task.val], task.y[task.val]))
        if loss_val < best:
            best, probs = loss_val, outputs.softmax(1)
    assert float(fit.val_loss) == pytest.approx(best, rel=1e-4)
    torch.testing.assert_close(fit.probs[..., 0], probs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("is_shared", [False, True])
def test_new_draws_of_features_in_every_pass_and_learning(is_shared):
    task, raw = make_task()
    inner, draws = lagnn_baselines.RealNeighbors(raw, task.edge_index), []

    def source(generator: torch.Generator) -> torch.Tensor:
        draws.append(inner(generator))
        return draws[-1]

    other = make_task(seed=2)[0]
    network = grand(task, runs=2, n_hidden=8, dropout=0.2, drop_node=0.2, is_shared=is_shared)
    fit = lagnn_training.fit_augmented(
        network, task.x, source, stack(task, other), samples=2, epochs=40, lr=0.1, generator=torch_generator(4)
    )
    assert len(draws) == 40 * (2 + 1)
    assert not torch.equal(draws[0], draws[1])
    assert float(fit.test.min()) > 0.6
    for run, epoch in enumerate(fit.epoch.tolist()):
        with torch.no_grad():
            again = fit.model.eval()([task.x, draws[3 * epoch - 1]])[..., run].softmax(-1)
        torch.testing.assert_close(again, fit.probs[..., run])


def test_shared_runs_side_by_side_do_not_influence_each_other():
    task, raw = make_task()
    source = lagnn_baselines.RealNeighbors(raw, task.edge_index)
    other = make_task(seed=1)[0]
    probs = []
    for second in (task, other):
        network = grand(task, runs=2, dropout=0.0, is_shared=True)
        fit = lagnn_training.fit_augmented(
            network, task.x, source, stack(task, second), samples=2, epochs=4, generator=torch_generator(3)
        )
        probs.append(fit.probs)
    torch.testing.assert_close(probs[0][..., 0], probs[1][..., 0])
    assert not torch.allclose(probs[0][..., 1], probs[1][..., 1])
