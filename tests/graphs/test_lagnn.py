"""Local augmentation: pairs, bound, score, sharpening, networks and training against hand computations and PyG."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binomtest

from glocal.data.pyg import data_class
from glocal.graphs import lagnn, lagnn_backbones, lagnn_baselines, lagnn_products, lagnn_selection, lagnn_training
from glocal.graphs.node_classification import seeded
from glocal.graphs.node_tasks import NodeTask, row_normalized
from glocal.graphs.parts import Parts
from glocal.graphs.sparse import propagation_operator
from glocal.seeding import torch_generator

PATH = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])


def make_task(n: int = 60, f: int = 20, seed: int = 0) -> tuple[NodeTask, torch.Tensor]:
    """A ring of classes with words of their own; raw features beside the task."""
    g = torch_generator(seed, "toy")
    y = torch.arange(n) * 3 // n
    topics = torch.rand(3, f, generator=g) * 0.6
    raw = (torch.rand(n, f, generator=g) < topics[y]).float()
    ring = torch.stack([torch.arange(n), (torch.arange(n) + 1) % n])
    edges = lagnn.neighbor_pairs(ring)
    parts = torch.randperm(n, generator=g)
    task = NodeTask(row_normalized(raw), edges, y, parts[:15].sort().values, parts[15:30], parts[30:], 3)
    return task, raw


def stack(*tasks: NodeTask) -> Parts:
    return Parts(tasks[0].y, *(torch.stack([getattr(t, p) for t in tasks]) for p in ("train", "val", "test")))


def backbone(name: str, task: NodeTask, *, runs: int = 1, concat: int = 1, **options):
    sizes = {"n_hidden": 4, "heads": 2, "n_layers": 3, "order": 2}
    defaults = sizes | {"dropout": 0.5, "generator": torch_generator(0, "weights")}
    return lagnn_backbones.build_backbone(name, task, concat=concat, runs=runs, **(defaults | options))


# --- generator ---------------------------------------------------------------------------------------------------


def test_pairs_of_a_path():
    pairs = lagnn.neighbor_pairs(PATH)
    assert pairs.T.tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]  # centre, neighbour


def test_pairs_ignore_repetition_direction_and_loops():
    messy = torch.tensor([[0, 0, 2, 1, 1], [1, 1, 1, 2, 1]])
    assert torch.equal(lagnn.neighbor_pairs(messy), lagnn.neighbor_pairs(PATH))


def test_held_out_edges_take_both_directions_along():
    task, _ = make_task()
    kept, held = lagnn.split_edges(task.edge_index, 0.25, generator=torch_generator(0))
    assert held.shape[1] == 30
    assert kept.shape[1] == 90
    assert torch.equal(lagnn.neighbor_pairs(held), held)  # closed under reversal
    assert not set(map(tuple, kept.T.tolist())) & set(map(tuple, held.T.tolist()))
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\), got 1"):
        lagnn.split_edges(task.edge_index, 1.0, generator=torch_generator(0))


def test_kl_is_that_of_torch_distributions():
    g = torch_generator(0)
    mean, log_variance = torch.randn(7, 5, generator=g), torch.randn(7, 5, generator=g)
    normal = torch.distributions.Normal
    reference = torch.distributions.kl_divergence(normal(mean, (0.5 * log_variance).exp()), normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(lagnn.kl_to_standard_normal(mean, log_variance), reference, atol=1e-5, rtol=1e-5)
    assert float(lagnn.kl_to_standard_normal(torch.zeros(1, 5), torch.zeros(1, 5))) == 0


def test_bound_of_a_constant_decoder_is_the_entropy_of_fair_coins():
    model = lagnn.NeighborVAE(6, n_hidden=4, generator=torch_generator(0))
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    x = (torch.rand(5, 6, generator=torch_generator(1)) < 0.5).float()
    bound = lagnn.negative_elbo(model, x, x, generator=torch_generator(2))
    torch.testing.assert_close(bound, torch.full((5,), 6 * float(torch.tensor(2.0).log())))


def test_real_features_use_squared_error():
    model = lagnn.NeighborVAE(6, n_hidden=4, is_binary=False, generator=torch_generator(0))
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.randn(5, 6, generator=torch_generator(1))
    bound = lagnn.negative_elbo(model, x, x, generator=torch_generator(2))
    torch.testing.assert_close(bound, x.square().sum(1))
    assert torch.equal(lagnn.NeighborSampler(model, x)(torch_generator(3)), torch.zeros(5, 6))


def test_sampler_agrees_with_the_decoder_and_normalises():
    _, raw = make_task()
    before = raw.clone()
    for is_conditional in (True, False):
        model = lagnn.NeighborVAE(20, n_hidden=16, is_conditional=is_conditional, generator=torch_generator(0))
        draw = lagnn.NeighborSampler(model, raw)(torch_generator(5))
        z = torch.randn((60, 10), generator=torch_generator(5))
        with torch.no_grad():
            expected = row_normalized(model.likely(model.decode(z, raw)))
        torch.testing.assert_close(draw, expected)
        assert bool((draw >= 0).all())
        torch.testing.assert_close(draw.sum(1), torch.ones(60))
        assert not draw.requires_grad
    assert torch.equal(raw, before)
    sampler = lagnn.NeighborSampler(model, raw)
    g = torch_generator(6)
    assert not torch.equal(sampler(g), sampler(g))  # new samples at every call


def test_unconditional_model_ignores_the_centre():
    model = lagnn.NeighborVAE(20, n_hidden=16, is_conditional=False, generator=torch_generator(0))
    z, c = torch.randn(4, 10), torch.ones(4, 20)
    assert torch.equal(model.decode(z, c), model.decode(z, 0 * c))


def known_conditional(n: int, f: int = 20):
    g = torch_generator(0, "known")
    centers = (torch.rand(n, f, generator=g) < 0.5).float()
    rotation = torch.linalg.qr(torch.randn(f, f, generator=g))[0]
    signal = (2 * centers - 1) @ rotation
    x = torch.cat([centers, (signal + torch.randn(n, f, generator=g) > 0).float()])
    pairs = torch.stack([torch.arange(n), n + torch.arange(n)])
    return x, pairs, torch.distributions.Normal(0.0, 1.0).cdf(signal)


def test_generator_approaches_a_known_conditional_and_needs_the_true_centre():
    x, pairs, analytic = known_conditional(1500)
    train, held = pairs[:, :1200], pairs[:, 1200:]
    model = lagnn.NeighborVAE(20, n_hidden=64, generator=torch_generator(1))
    losses = lagnn.fit_generator(model, x, train, steps=500, batch_size=128, generator=torch_generator(2))
    assert sum(losses[-20:]) < sum(losses[:20])
    with torch.no_grad():
        draws = [model.decode(z, x[:1500]).sigmoid() for z in torch.randn(20, 1500, 10, generator=torch_generator(3))]
        correlation = torch.corrcoef(torch.stack([torch.stack(draws).mean(0).flatten(), analytic.flatten()]))[0, 1]
        assert correlation > 0.8
        true = lagnn.negative_elbo(model, x[held[1]], x[held[0]], generator=torch_generator(4))
        permuted = lagnn.negative_elbo(model, x[held[1]], x[held[0].roll(1)], generator=torch_generator(4))
    assert binomtest(int((true < permuted).sum()), len(true), 0.5, alternative="greater").pvalue < 0.01


def test_generator_training_is_reproducible_and_needs_edges():
    _, raw = make_task()
    pairs = lagnn.neighbor_pairs(PATH)
    steps: list[int] = []
    weights = []
    for _ in range(2):
        model = lagnn.NeighborVAE(20, n_hidden=8, generator=torch_generator(0))
        lagnn.fit_generator(
            model, raw, pairs, steps=3, on_step=lambda s, m: steps.append(s), generator=torch_generator(1)
        )
        weights.append(model.decoder.weight.detach().clone())
    assert torch.equal(*weights)
    assert steps == [1, 2, 3] * 2
    with pytest.raises(ValueError, match="pairs must hold at least one pair"):
        lagnn.fit_generator(model, raw, pairs[:, :0], steps=1, generator=torch_generator(1))


def test_score_is_never_positive_and_zero_without_disagreement():
    labels = torch.arange(12) % 3
    for run in range(20):
        log_probs = (3 * torch.randn(5, 12, 3, generator=torch_generator(run))).log_softmax(2)
        assert lagnn_selection.dropout_score(log_probs, labels) <= 1e-6
    same = log_probs[:1].expand(5, -1, -1)
    assert abs(float(lagnn_selection.dropout_score(same, labels))) < 1e-6
    # by hand: p = 1/2 and 1/8 for the true class: log of the mean 5/16 against the mean of the logs
    pair = torch.tensor([[[0.5, 0.5]], [[0.125, 0.875]]]).log()
    expected = -torch.tensor(5 / 16).log() + 0.5 * (torch.tensor(0.5).log() + torch.tensor(0.125).log())
    torch.testing.assert_close(lagnn_selection.dropout_score(pair, torch.tensor([0])), expected)


def test_scorer_chooses_only_after_warmup_and_the_largest_score():
    task, raw = make_task()
    operator = propagation_operator(task.edge_index, 60)
    options = {"n_hidden": 8, "passes": 4, "warmup": 3, "pretrain_epochs": 5, "update_epochs": 2, "lr": 0.1}
    scorer = lagnn_selection.DropoutScorer(
        raw, operator, task.train, task.y, 3, generator=torch_generator(0), **options
    )
    model = lagnn.NeighborVAE(20, n_hidden=8, generator=torch_generator(1))
    lagnn.fit_generator(
        model, raw, task.edge_index, steps=30, batch_size=16, on_step=scorer.consider, generator=torch_generator(2)
    )
    assert len(scorer.scores) == 30
    assert max(scorer.scores) <= 1e-6
    records = [i + 1 for i, score in enumerate(scorer.scores) if score > max(scorer.scores[:i], default=-9) and i >= 3]
    assert scorer.chosen_step == (records[-1] if records else 0)
    assert (scorer.chosen is None) == (not records)
    still = lagnn_selection.DropoutScorer(
        raw, operator, task.train, task.y, 3, dropout=0.0, generator=torch_generator(0), **options
    )
    still.consider(1, model)
    assert abs(still.scores[0]) < 1e-6  # no dropout, no disagreement


def test_rows_in_reach_are_those_of_the_whole_operator():
    task, raw = make_task()
    operator = propagation_operator(task.edge_index, 60)
    rows, reached = lagnn_selection.rows_in_reach(operator, torch.tensor([7, 3, 59]))
    assert reached.tolist() == [0, 2, 3, 4, 6, 7, 8, 58, 59]  # the nodes and their neighbours on the ring
    torch.testing.assert_close(rows @ raw[reached], (operator @ raw)[[7, 3, 59]])
    torch.testing.assert_close(rows.transposed.to_dense(), rows.matrix.to_dense().T)


def test_scorer_computes_a_two_layer_gcn_on_its_training_nodes():
    task, raw = make_task()
    operator = propagation_operator(task.edge_index, 60)
    scorer = lagnn_selection.DropoutScorer(
        raw, operator, task.train, task.y, 3, dropout=0.0, pretrain_epochs=20, lr=0.1, generator=torch_generator(0)
    )
    assert len(scorer.nodes) < 60
    with torch.no_grad():
        hidden = (operator @ scorer.layers[0](row_normalized(raw))).relu()
        expected = (operator @ scorer.layers[1](hidden)).log_softmax(1)[task.train]
        torch.testing.assert_close(scorer._log_probs(row_normalized(raw)[scorer.nodes]), expected)
    assert float(F.nll_loss(expected, scorer.labels)) < 0.5  # it has learned


def test_scorer_reads_training_labels_only():
    task, raw = make_task()
    operator = propagation_operator(task.edge_index, 60)
    wrong = task.y.clone()
    wrong[task.test] = 0
    wrong[task.val] = 0
    model = lagnn.NeighborVAE(20, n_hidden=8, generator=torch_generator(1))
    scores = []
    for y in (task.y, wrong):
        scorer = lagnn_selection.DropoutScorer(
            raw, operator, task.train, y, 3, passes=3, pretrain_epochs=3, generator=torch_generator(0)
        )
        scorer.consider(1, model)
        scores.append(scorer.scores[0])
    assert scores[0] == scores[1]


# --- consistency -------------------------------------------------------------------------------------------------


def test_sharpening_and_consistency_by_hand():
    passes = [torch.tensor([0.6, 0.4]).view(1, 2, 1), torch.tensor([0.8, 0.2]).view(1, 2, 1)]
    mean = torch.stack(passes).mean(0)
    torch.testing.assert_close(mean.flatten(), torch.tensor([0.7, 0.3]))
    torch.testing.assert_close(
        lagnn_training.sharpened(mean, 0.5).flatten(), torch.tensor([0.8448, 0.1552]), atol=1e-4, rtol=0
    )
    assert float(lagnn_training.consistency_loss(passes, 0.5)) == pytest.approx(0.0620, abs=1e-3)
    torch.testing.assert_close(lagnn_training.sharpened(mean, 1.0), mean)
    torch.testing.assert_close(lagnn_training.sharpened(mean, 1e-3).flatten(), torch.tensor([1.0, 0.0]))
    onehot = F.one_hot(torch.tensor([0, 1, 2]), 3).float()[..., None]
    assert float(lagnn_training.consistency_loss([onehot] * 4)) == 0
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        lagnn_training.sharpened(mean, 0.0)


def test_targets_of_the_consistency_carry_no_gradient():
    logits = torch.randn(2, 5, 3, 4, generator=torch_generator(0))
    passes = [values.softmax(1).requires_grad_() for values in logits]
    loss = lagnn_training.consistency_loss(passes, 0.5)
    mean = torch.stack(passes).detach().mean(0)
    targets = lagnn_training.sharpened(mean, 0.5)
    torch.testing.assert_close(targets, mean.square() / mean.square().sum(1, keepdim=True))
    by_hand = torch.stack([(probs.detach() - targets).square().sum(1).mean(0) for probs in passes]).mean(0)
    torch.testing.assert_close(loss.detach(), by_hand)  # one number per run
    for probs, gradient in zip(passes, torch.autograd.grad(loss.sum(), passes), strict=True):
        torch.testing.assert_close(gradient, 2 * (probs.detach() - targets) / 10)


# --- networks ----------------------------------------------------------------------------------------------------


def test_dropout_keeps_the_mean_and_the_share():
    x = torch.ones(401, 503)
    with seeded(torch_generator(0)):
        for p in (0.5, 0.3):
            thinned = lagnn_products.dropped(x, p)
            assert float((thinned == 0).float().mean()) == pytest.approx(p, abs=0.01)
            torch.testing.assert_close(
                thinned[thinned > 0], torch.full_like(thinned[thinned > 0], 1 / (1 - p)), atol=1e-4, rtol=0
            )
    assert lagnn_products.dropped(x, 0.5, False) is x


def test_sparse_features_are_the_dense_ones_with_the_same_masks():
    task, _ = make_task()
    weight = torch.randn(20, 6, generator=torch_generator(1), requires_grad=True)
    results, gradients = [], []
    for is_training in (True, False):
        for features in (lagnn_products.SparseInput(task.x).dropped, partial(lagnn_products.dropped, task.x)):
            with seeded(torch_generator(0)):
                product = features(0.3, is_training) @ weight
            results.append(product)
            gradients.append(torch.autograd.grad(product.square().sum(), weight)[0])
    for values in (results, gradients):
        torch.testing.assert_close(values[0], values[1])
        torch.testing.assert_close(values[2], values[3])
        assert not torch.allclose(values[0], values[2])
    dense, sparse = backbone("gcn", task), backbone("gcn", task).prepared(task.x * (torch.arange(20) < 4))
    assert dense.prepared(task.x + 1).equal(task.x + 1)
    assert isinstance(sparse, lagnn_products.SparseInput)
    assert not isinstance(backbone("gat", task).prepared(0 * task.x), lagnn_products.SparseInput)


def test_products_by_run_have_the_gradients_of_einsum():
    g = torch_generator(0)
    h = torch.randn(7, 3, 4, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 4, 5, generator=g, dtype=torch.float64, requires_grad=True)
    product = lagnn_products.by_run(h, weight)
    torch.testing.assert_close(product, torch.einsum("nra,rab->nrb", h, weight))
    assert product.is_contiguous()
    assert torch.autograd.gradcheck(lagnn_products.by_run, (h, weight))
    assert torch.equal(lagnn_products.classes_first(product)[:, 2], product[:, :, 2])


def test_convolution_equals_pyg():
    data_class()
    from torch_geometric.nn import GCNConv

    task, _ = make_task()
    network = backbone("gcn", task, concat=0).eval()
    first, second = GCNConv(20, 4, bias=False), GCNConv(4, 3, bias=False)
    with torch.no_grad():
        first.lin.weight.copy_(network.first[0][0].T)
        second.lin.weight.copy_(network.second[0].T)
        expected = second(first(task.x, task.edge_index).relu(), task.edge_index)
        torch.testing.assert_close(network([task.x])[..., 0], expected, atol=1e-5, rtol=1e-5)


def test_without_augmentation_it_is_a_plain_gcn_bit_for_bit():
    task, _ = make_task()
    epochs, lr = 12, 0.05
    network = backbone("gcn", task, concat=0)
    w1, w2 = (w.detach()[0].clone().requires_grad_() for w in (network.first[0], network.second))
    fit = lagnn_training.fit_augmented(
        network,
        task.x,
        None,
        stack(task),
        samples=1,
        consistency=0.0,
        lr=lr,
        epochs=epochs,
        generator=torch_generator(9),
    )
    operator, best, best_probs = network.operator, float("inf"), None

    def forward(is_training: bool) -> torch.Tensor:
        h = (operator @ (lagnn_products.dropped(task.x, 0.5, is_training) @ w1)).relu()
        return operator @ (lagnn_products.dropped(h, 0.5, is_training) @ w2)

    def loss_on(logits: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits[nodes].T[None], task.y[nodes][None])

    optimizer = torch.optim.Adam([w1, w2], lr=lr, weight_decay=5e-4, fused=True)
    with seeded(torch_generator(9)):
        for _ in range(epochs):
            optimizer.zero_grad()
            loss_on(forward(True), task.train).backward()
            optimizer.step()
            with torch.no_grad():
                outputs = forward(False)
            loss = float(loss_on(outputs, task.val))
            if loss < best:
                best, best_probs = loss, outputs[..., None].softmax(1)[..., 0]
    assert torch.equal(fit.probs[..., 0], best_probs)
    assert float(fit.val_loss) == best
    assert float(fit.test) == float((best_probs[task.test].argmax(1) == task.y[task.test]).double().mean())


def test_first_layers_are_separate_and_concatenated():
    task, _ = make_task()
    network = backbone("gcn", task, concat=2).eval()
    inputs = [task.x, task.x.flip(0), task.x.roll(1, 0)]
    with torch.no_grad():
        parts = [(network.operator @ (x @ w[0])).relu() for x, w in zip(inputs, network.first, strict=True)]
        expected = network.operator @ (torch.cat(parts, 1) @ network.second[0])
        torch.testing.assert_close(network(inputs)[..., 0], expected)
        assert len({float(w.sum()) for w in network.first}) == 3


def test_gcnii_equals_pyg():
    data_class()
    from torch_geometric.nn import GCN2Conv

    task, _ = make_task()
    network = backbone("gcnii", task, concat=1).eval()
    inputs = [task.x, task.x.flip(0)]
    with torch.no_grad():
        first = h = torch.cat([(x @ w[0]).relu() for x, w in zip(inputs, network.first, strict=True)], 1)
        for depth in range(3):
            layer = GCN2Conv(8, alpha=0.1, theta=0.5, layer=depth + 1, shared_weights=True)
            layer.weight1.copy_(network.layers[depth][0])
            h = layer(h, first, task.edge_index).relu()
        torch.testing.assert_close(network(inputs)[..., 0], h @ network.second[0], atol=1e-5, rtol=1e-5)


def single_gat(layer, run: int, heads: int, weight: torch.Tensor):
    """One run's share of a stacked attention layer as PyG's own layer."""
    from torch_geometric.nn import GATConv

    k, inside = layer.out_channels, slice(run * heads, (run + 1) * heads)
    single = GATConv(weight.shape[1], k, heads, add_self_loops=False).eval()
    single.lin.weight.copy_(weight)
    single.att_src.copy_(layer.att_src[:, inside])
    single.att_dst.copy_(layer.att_dst[:, inside])
    single.bias.copy_(layer.bias[inside.start * k : inside.stop * k])
    return single


def test_gat_runs_side_by_side_are_layers_of_pyg():
    data_class()
    task, _ = make_task()
    inputs = [task.x, task.x.flip(0)]
    gat = lagnn_backbones.build_backbone(
        "gat", task, n_hidden=4, concat=1, runs=3, dropout=0.5, heads=2, generator=torch_generator(0)
    ).eval()
    with torch.no_grad():
        for layer in (*gat.first, gat.second):
            layer.bias.normal_()
        for run in range(3):
            rows = slice(run * 8, (run + 1) * 8)
            parts = [
                single_gat(layer, run, 2, layer.lin.weight[rows])(x, gat.edges)
                for layer, x in zip(gat.first, inputs, strict=True)
            ]
            last = single_gat(gat.second, run, 1, gat.second.lin.weight[run].T)
            by_hand = last(F.elu(torch.cat(parts, 1)), gat.edges)
            torch.testing.assert_close(gat(inputs)[..., run], by_hand)
    twin = gat.twin()
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1.0)
    before, after = gat(inputs), twin(inputs)
    gat.copy_runs(torch.tensor([False, True, False]), twin)
    torch.testing.assert_close(gat(inputs)[..., 1], after[..., 1])
    torch.testing.assert_close(gat(inputs)[..., [0, 2]], before[..., [0, 2]])


@pytest.mark.parametrize("name", lagnn_backbones.BACKBONES)
def test_runs_side_by_side_do_not_influence_each_other(name):
    task, raw = make_task()
    source = lagnn_baselines.RealNeighbors(raw, task.edge_index)
    other = make_task(seed=1)[0]
    other = NodeTask(task.x, task.edge_index, task.y, other.train, other.val, other.test, 3)
    probs = []
    for second in (task, other):
        network = backbone(name, task, runs=2, dropout=0.0)
        fit = lagnn_training.fit_augmented(
            network, task.x, source, stack(task, second), samples=2, epochs=4, generator=torch_generator(3)
        )
        probs.append(fit.probs)
    torch.testing.assert_close(probs[0][..., 0], probs[1][..., 0])
    assert not torch.allclose(probs[0][..., 1], probs[1][..., 1])


# --- training ----------------------------------------------------------------------------------------------------


def test_no_gradient_reaches_the_generator_and_features_stay():
    task, raw = make_task()
    before = raw.clone()
    model = lagnn.NeighborVAE(20, n_hidden=8, generator=torch_generator(0))
    network = backbone("gcn", task)
    x = task.x.clone()
    lagnn_training.fit_augmented(
        network, x, lagnn.NeighborSampler(model, raw), stack(task), samples=2, epochs=3, generator=torch_generator(1)
    )
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(raw, before)
    assert torch.equal(x, task.x)


@pytest.mark.parametrize("name", lagnn_backbones.BACKBONES)
def test_result_is_that_of_the_stored_weights_and_draw(name):
    task, raw = make_task()
    inner, draws = lagnn_baselines.RealNeighbors(raw, task.edge_index), []

    def source(generator: torch.Generator) -> torch.Tensor:
        draws.append(inner(generator))
        return draws[-1]

    network = backbone(name, task, runs=2)
    other = make_task(seed=2)[0]
    fit = lagnn_training.fit_augmented(
        network, task.x, source, stack(task, other), samples=3, epochs=30, lr=0.3, generator=torch_generator(4)
    )
    assert int(fit.epoch.min()) < 30  # otherwise the last epoch would do
    assert len(draws) == 30 * (3 + 1)  # new samples for every pass and for every validation
    assert not torch.equal(draws[0], draws[1])
    for run, epoch in enumerate(fit.epoch.tolist()):
        with torch.no_grad():
            again = fit.model.eval()([task.x, draws[4 * epoch - 1]])[..., run].softmax(-1)
        torch.testing.assert_close(again, fit.probs[..., run])
    assert torch.equal(fit.test, fit.fresh)


def test_training_learns_and_fresh_draws_are_averaged():
    task, raw = make_task()
    source = lagnn_baselines.RealNeighbors(raw, task.edge_index)
    fit = lagnn_training.fit_augmented(
        backbone("gcn", task),
        task.x,
        source,
        stack(task),
        samples=2,
        epochs=40,
        lr=0.1,
        fresh_draws=3,
        generator=torch_generator(0),
    )
    assert float(fit.test) > 0.6
    assert float(fit.fresh) > 0.6


def test_labels_outside_training_and_validation_are_not_used():
    task, raw = make_task()
    source = lagnn_baselines.FeatureCopies(raw)
    wrong = task.y.clone()
    wrong[task.test] = (wrong[task.test] + 1) % 3
    fits = []
    for y in (task.y, wrong):
        some = stack(task)
        some = Parts(y, some.train, some.val, some.test)
        fits.append(
            lagnn_training.fit_augmented(
                backbone("gcn", task), task.x, source, some, epochs=4, generator=torch_generator(0)
            )
        )
    assert torch.equal(fits[0].probs, fits[1].probs)


def test_messages():
    task, _ = make_task()
    with pytest.raises(ValueError, match="backbone must be one of gcn, gcnii, gat, grand, got 'sage'"):
        backbone("sage", task)
    with pytest.raises(ValueError, match="concat must be at least 0, got -1"):
        backbone("gcn", task, concat=-1)
    with pytest.raises(ValueError, match="source must be given for 1 generated inputs, got None"):
        lagnn_training.fit_augmented(backbone("gcn", task), task.x, None, stack(task), generator=torch_generator(0))
    with pytest.raises(ValueError, match="samples, epochs and eval_every must be at least 1, got 0, 1, 1"):
        lagnn_training.fit_augmented(
            backbone("gcn", task, concat=0),
            task.x,
            None,
            stack(task),
            samples=0,
            epochs=1,
            generator=torch_generator(0),
        )


# --- controls ----------------------------------------------------------------------------------------------------


def test_controls_draw_what_they_say():
    task, raw = make_task()
    copies, real = lagnn_baselines.FeatureCopies(raw), lagnn_baselines.RealNeighbors(raw, task.edge_index)
    g = torch_generator(0)
    assert torch.equal(copies(g), row_normalized(raw))
    is_edge = torch.zeros(60, 60, dtype=torch.bool)
    is_edge[task.edge_index[0], task.edge_index[1]] = True
    drawn = torch.stack([real.indices(g) for _ in range(200)])
    assert bool(is_edge[torch.arange(60).expand(200, -1), drawn].all())
    share = (drawn == (torch.arange(60) + 1) % 60).float().mean()  # each of two neighbours half of the time
    assert float(share) == pytest.approx(0.5, abs=0.03)
    lonely = lagnn_baselines.RealNeighbors(raw, torch.tensor([[0, 1], [1, 0]])).indices(g)
    assert lonely[:4].tolist() == [1, 0, 2, 3]
    dropped = lagnn_baselines.DroppedFeatures(raw, 0.5)(g)
    assert float((dropped > 0).sum() / (raw > 0).sum()) == pytest.approx(0.5, abs=0.08)
    assert bool((dropped[raw == 0] == 0).all())
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got 1"):
        lagnn_baselines.DroppedFeatures(raw, 1.0)


def test_neighbor_regression_limits():
    _, raw = make_task()
    raw[:, 0] = 1  # no empty rows
    pairs = torch.tensor([[0, 5], [7, 9]])
    cold = lagnn_baselines.neighbor_regression(raw, pairs, raw[[0, 5]], temperature=1e-4)
    torch.testing.assert_close(cold, raw[[7, 9]])
    hot = lagnn_baselines.neighbor_regression(raw, pairs, raw[[0, 5]], temperature=1e6)
    torch.testing.assert_close(hot, raw[[7, 9]].mean(0).expand(2, -1), atol=1e-4, rtol=0)
