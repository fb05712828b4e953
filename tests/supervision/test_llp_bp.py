"""Properties of label proportions by belief propagation: energy, exactness on trees, symmetries, losses, loaders."""

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.gaussian_process.kernels import Matern
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from glocal.data.errors import DataError
from glocal.data.types import TableData
from glocal.nn.networks import build
from glocal.nn.stack import NetworkStack, predict
from glocal.nn.training import Recipe
from glocal.seeding import torch_generator
from glocal.supervision import llp_bp as bp
from glocal.supervision import llp_bp_data as data
from glocal.supervision import llp_bp_graph as graphs
from glocal.supervision import llp_bp_networks as networks
from glocal.supervision import llp_bp_rounds as procedure


def random_problem(n_bags: int, size: int, n_edges: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Edges, each once, similarities and bag sums, in double precision."""
    generator = torch_generator(seed, "problem")
    n = n_bags * size
    pairs = torch.combinations(torch.arange(n))
    edges = pairs[torch.randperm(len(pairs), generator=generator)[:n_edges]].T
    similarities = 0.1 + 0.9 * torch.rand(n_edges, generator=generator, dtype=torch.float64)
    sums = torch.randint(size + 1, (n_bags,), generator=generator).double()
    return edges, similarities, sums


def chain_model(n: int) -> bp.PairwiseModel:
    """A chain with random fields and couplings of both signs: bags of one instance, neighbours in line."""
    generator = torch_generator(3, "chain")
    unary, couplings = (2 * torch.randn(k, generator=generator, dtype=torch.float64) for k in (n, n - 1))
    edges = torch.stack([torch.arange(n - 1), torch.arange(1, n)])
    return bp.PairwiseModel(unary[:, None], torch.zeros(n, 1, 1, dtype=torch.float64), edges, couplings)


# ---- the law


def test_energy_identity_on_all_states() -> None:
    """Check 1."""
    edges, kappa, sums = random_problem(2, 5, 14)
    lam_s, lam_b = 1.7, 0.6
    model = bp.pairwise_model(edges, kappa, sums, 5, lam_s=lam_s, lam_b=lam_b)
    states = torch.tensor(list(product((0.0, 1.0), repeat=10)), dtype=torch.float64)
    misfit = (states.reshape(-1, 2, 5).sum(2) - sums).square().sum(1)
    rough = ((states[:, edges[0]] - states[:, edges[1]]).square() * kappa).sum(1)
    left = model.log_weight(states) - lam_b * sums.square().sum()
    torch.testing.assert_close(left, -(lam_b * misfit + lam_s * rough), atol=1e-9, rtol=0)


def test_model_by_hand_with_an_edge_inside_a_bag() -> None:
    edges, kappa = torch.tensor([[0, 1], [1, 2]]), torch.tensor([0.5, 0.25], dtype=torch.float64)
    model = bp.pairwise_model(edges, kappa, torch.tensor([1.0, 2.0]).double(), 2, lam_s=3.0, lam_b=0.5)
    assert model.unary.tolist() == [[0.5 - 1.5, 0.5 - 2.25], [1.5 - 0.75, 1.5]]
    assert model.bag_couplings.tolist() == [[[0, 3.0 - 1.0], [3.0 - 1.0, 0]], [[0, -1.0], [-1.0, 0]]]
    assert model.edges.tolist() == [[1], [2]]
    assert model.edge_couplings.tolist() == [1.5]
    assert model.n_messages == 2 * 2 + 2


def test_bag_sums_out_of_range() -> None:
    edges, kappa, _ = random_problem(2, 3, 2)
    with pytest.raises(ValueError, match="between 0 and bag_size = 3"):
        bp.pairwise_model(edges, kappa, torch.tensor([1.0, 4.0]).double(), 3, lam_s=1.0, lam_b=1.0)


# ---- belief propagation


def test_exact_on_a_chain() -> None:
    """Check 2."""
    model = chain_model(12)
    for init in bp.INITS:
        found = bp.belief_propagation(model, n_iters=12, damping=0.0, tolerance=0.0, init=init)
        torch.testing.assert_close(found.probs, bp.exact_marginals(model), atol=1e-8, rtol=0)


def test_one_bag_without_neighbours() -> None:
    """Check 3: symmetry, and the closed forms for two instances."""
    none = torch.zeros(2, 0, dtype=torch.long), torch.zeros(0, dtype=torch.float64)
    model = bp.pairwise_model(*none, torch.tensor([2.0]).double(), 5, lam_s=0.0, lam_b=0.7)
    probs, exact = bp.belief_propagation(model).probs, bp.exact_marginals(model)
    assert float(probs.max() - probs.min()) < 1e-12
    weights = [math.comb(5, k) * math.exp(-0.7 * (k - 2) ** 2) for k in range(6)]
    mean = sum(k * w for k, w in enumerate(weights)) / sum(weights)
    torch.testing.assert_close(exact, torch.full((1, 5), mean / 5, dtype=torch.float64))
    for lam in (0.3, 2.0):
        for s, expected in (
            (1.0, 0.5),
            (0.0, (math.exp(-lam) + math.exp(-4 * lam)) / (1 + 2 * math.exp(-lam) + math.exp(-4 * lam))),
        ):
            model = bp.pairwise_model(*none, torch.tensor([s]).double(), 2, lam_s=0.0, lam_b=lam)
            found = bp.belief_propagation(model, n_iters=200, tolerance=1e-13).probs
            torch.testing.assert_close(found, torch.full((1, 2), expected, dtype=torch.float64), atol=1e-10, rtol=0)


def test_flip_symmetry_at_every_iteration() -> None:
    """Check 4; started at zero it fails in between and holds at the unique fixed point."""
    edges, kappa, sums = random_problem(3, 4, 12, seed=4)
    one, other = (bp.pairwise_model(edges, kappa, s, 4, lam_s=0.4, lam_b=0.15) for s in (sums, 4 - sums))

    def asymmetry(n_iters: int, init: str) -> float:
        runs = [bp.belief_propagation(m, n_iters=n_iters, tolerance=0.0, init=init).probs for m in (one, other)]
        return float((runs[0] + runs[1] - 1).abs().max())

    assert max(asymmetry(t, "half") for t in range(12)) < 1e-9
    assert asymmetry(1, "zero") > 0.02
    assert asymmetry(200, "zero") < 1e-9


def test_without_bags_half_is_neutral_and_zero_collapses() -> None:
    """Check 5."""
    edges, kappa, sums = random_problem(3, 4, 20, seed=5)
    model = bp.pairwise_model(edges, torch.ones_like(kappa), sums, 4, lam_s=10.0, lam_b=0.0)
    assert bp.belief_propagation(model, n_iters=1).change < 1e-12  # a fixed point
    neutral = bp.belief_propagation(model, n_iters=20, tolerance=-1.0)
    torch.testing.assert_close(neutral.probs, torch.full((3, 4), 0.5, dtype=torch.float64), atol=1e-9, rtol=0)
    assert float(bp.belief_propagation(model, init="zero").probs.max()) < 1e-3


def test_permutation_of_instances_and_bags() -> None:
    """Check 6."""
    edges, kappa, sums = random_problem(4, 5, 30, seed=6)
    generator = torch_generator(6, "order")
    bags = torch.randperm(4, generator=generator)
    places = torch.stack([torch.randperm(5, generator=generator) for _ in range(4)])
    old = (bags[:, None] * 5 + places[bags]).flatten()  # new position -> old instance
    moved = old.argsort()[edges]
    first = bp.pairwise_model(edges, kappa, sums, 5, lam_s=1.0, lam_b=0.2)
    second = bp.pairwise_model(moved, kappa, sums[bags], 5, lam_s=1.0, lam_b=0.2)
    for t in (1, 7, 40):
        runs = [bp.belief_propagation(m, n_iters=t, tolerance=0.0).probs.flatten() for m in (first, second)]
        torch.testing.assert_close(runs[0][old], runs[1], atol=1e-12, rtol=0)


def test_near_enumeration_on_a_loopy_graph() -> None:
    """Check 7, first half."""
    edges, kappa, sums = random_problem(3, 4, 14, seed=7)
    model = bp.pairwise_model(edges, kappa, sums, 4, lam_s=0.3, lam_b=0.3)
    found = bp.belief_propagation(model, tolerance=1e-10, n_iters=300)
    assert found.change < 1e-10
    assert float((found.probs - bp.exact_marginals(model)).abs().max()) < 0.05


def test_messages_are_the_two_state_sum_product() -> None:
    """Check 7, second half: the update against explicit 2 x 2 tables, on dense and listed messages alike."""
    edges, kappa, sums = random_problem(2, 3, 7, seed=8)
    model = bp.pairwise_model(edges, kappa, sums, 3, lam_s=1.3, lam_b=0.8)
    n, unary = 6, model.unary.flatten().numpy()
    w = np.zeros((n, n))
    for bag in range(2):
        w[3 * bag : 3 * bag + 3, 3 * bag : 3 * bag + 3] = model.bag_couplings[bag].numpy()
    for (i, j), value in zip(model.edges.T.tolist(), model.edge_couplings.tolist(), strict=True):
        w[i, j] = w[j, i] = value
    links = [(i, j) for i in range(n) for j in range(n) if w[i, j] != 0]
    tables = {link: np.array([1.0, math.exp(w[link] / 2)]) for link in links}
    for t in range(6):
        got = bp.belief_propagation(model, n_iters=t, tolerance=0.0).probs.flatten().numpy()
        belief = [
            np.array([1.0, math.exp(unary[i])]) * np.prod([tables[a] for a in links if a[1] == i], axis=0)
            for i in range(n)
        ]
        assert got == pytest.approx([b[1] / b.sum() for b in belief], abs=1e-10)
        new = {}
        for i, j in links:
            local = np.array([1.0, math.exp(unary[i])])
            local = local * np.prod([tables[a] for a in links if a[1] == i and a[0] != j], axis=0)
            message = np.array([local @ np.exp([0.0, w[i, j] * y]) for y in (0, 1)])
            new[i, j] = message / message[0]
        tables = {a: np.sqrt(tables[a] * new[a]) for a in links}  # damping 0.5 of logarithms


def test_early_stop_and_message_limits() -> None:
    edges, kappa, sums = random_problem(3, 4, 10, seed=9)
    model = bp.pairwise_model(edges, kappa, sums, 4, lam_s=0.3, lam_b=0.2)
    loose, tight = (bp.belief_propagation(model, tolerance=tol, n_iters=500) for tol in (1e-4, 1e-12))
    assert loose.n_iters < tight.n_iters < 500
    assert loose.change < 1e-4
    assert float((loose.probs - tight.probs).abs().max()) < 1e-3
    field = torch.tensor([-500.0, 0.0, 500.0])
    for w in (-20.0, 3.0):
        extreme = bp.new_messages(field, torch.full((3,), w).exp())
        assert extreme.tolist() == pytest.approx([0.0, math.log((1 + math.exp(w)) / 2), w], abs=1e-4)


def test_options_are_checked() -> None:
    model = chain_model(3)
    with pytest.raises(ValueError, match="half, zero"):
        bp.belief_propagation(model, init="ones")
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        bp.belief_propagation(model, damping=1.0)
    with pytest.raises(ValueError, match="up to 20 instances, got 21"):
        bp.exact_marginals(chain_model(21))
    with pytest.raises(ValueError, match="at least one pair"):
        bp.choose_pair(*random_problem(2, 3, 2), 3, [])


def test_the_residual_chooses_without_labels() -> None:
    edges, kappa, sums = random_problem(4, 8, 40, seed=10)
    pairs = [(1.0, 0.0), (1.0, 0.1), (10.0, 10.0)]
    choice = bp.choose_pair(edges, kappa, sums, 8, pairs)
    by_hand = []
    for lam_s, lam_b in pairs:
        model = bp.pairwise_model(edges, kappa, sums, 8, lam_s=lam_s, lam_b=lam_b)
        probs = bp.belief_propagation(model).probs
        by_hand.append(sum((float(p.sum()) - float(s)) ** 2 for p, s in zip(probs, sums, strict=True)))
    assert choice.residuals == pytest.approx(by_hand)
    assert choice.pair == pairs[int(np.argmin(by_hand))]


def test_hard_labels() -> None:
    probs, sums = torch.tensor([[0.1, 0.5, 0.7, 0.2], [0.9, 0.8, 0.6, 0.7]]), torch.tensor([1.0, 2.0])
    assert bp.hard_labels(probs, sums, 0.5).tolist() == [[0, 1, 1, 0], [1, 1, 1, 1]]
    by_bag = bp.hard_labels(probs, sums, None)
    assert by_bag.tolist() == [[0, 0, 1, 0], [1, 1, 0, 0]]


# ---- the graph


def test_neighbours_and_weights_against_scikit_learn() -> None:
    z = torch.randn(60, 5, generator=torch_generator(0, "z"), dtype=torch.float64)
    index, distance = graphs.cosine_neighbours(z, 4, chunk=17)
    reference = NearestNeighbors(n_neighbors=5, metric="cosine").fit(z.numpy()).kneighbors(z.numpy())
    assert index.tolist() == reference[1][:, 1:].tolist()
    torch.testing.assert_close(distance, torch.tensor(reference[0][:, 1:]))
    edges, weights = graphs.neighbour_edges(z, graphs.GraphSettings(k=4, kernel="matern"))
    wanted = {tuple(sorted((i, int(j)))) for i, row in enumerate(reference[1]) for j in row[1:]}
    assert len(wanted) == edges.shape[1]
    assert set(map(tuple, edges.T.tolist())) == wanted
    kernel = Matern(nu=0.5)(z.numpy())
    assert weights.numpy() == pytest.approx(kernel[edges[0].numpy(), edges[1].numpy()])
    scaled = graphs.neighbour_edges(z, graphs.GraphSettings(k=4))[1]
    assert float(scaled.median()) == pytest.approx(math.exp(-1), abs=0.02)


def test_edges_can_be_left_out() -> None:
    z = torch.randn(40, 3, generator=torch_generator(1, "z"))
    every = graphs.neighbour_edges(z, graphs.GraphSettings(kernel="matern"))[0]
    near = graphs.neighbour_edges(z, graphs.GraphSettings(kernel="matern", delta=0.05))[0]
    assert 0 < near.shape[1] < every.shape[1]
    assert float((1 - F.cosine_similarity(z[near[0]], z[near[1]])).max()) < 0.05
    sums = torch.tensor([0.0, 1.0, 2.0, 3.0])
    few = graphs.neighbour_edges(z, graphs.GraphSettings(edge_rule="few_positives"), sums)[0]
    assert 0 < few.shape[1] < every.shape[1]
    assert bool((few < 20).any(0).all())  # every edge starts in one of the first two bags
    with pytest.raises(ValueError, match="needs bag_sums"):
        graphs.neighbour_edges(z, graphs.GraphSettings(edge_rule="few_positives"))
    with pytest.raises(ValueError, match="number of other instances 39"):
        graphs.cosine_neighbours(z, 40)
    with pytest.raises(ValueError, match="matern, scaled"):
        graphs.GraphSettings(kernel="gauss")
    with pytest.raises(ValueError, match="all, few_positives"):
        graphs.GraphSettings(edge_rule="none")


# ---- losses and networks


def test_easyllp_is_unbiased() -> None:
    """Check 8: its risk over many random bags equals the supervised risk, with any loss of the instances."""
    generator, n_bags, size = torch_generator(2), 40_000, 8
    logits = 1 + 2 * torch.randn(n_bags, size, generator=generator)
    y = (torch.rand(n_bags, size, generator=generator) < torch.sigmoid(logits - 2)).float()
    targets = networks.easyllp_targets(y.mean(1)[None], size)[0]
    estimate, truth = (F.binary_cross_entropy_with_logits(logits, t, reduction="none").mean(1) for t in (targets, y))
    error = estimate - truth
    assert abs(float(error.mean())) < 2 * float(error.std()) / n_bags**0.5
    flat = F.binary_cross_entropy_with_logits(logits, y.mean(1, keepdim=True).expand_as(y))
    assert float(flat - truth.mean()) > 20 * float(error.std()) / n_bags**0.5  # bag means as labels are biased


def test_targets_by_hand() -> None:
    means = torch.tensor([[0.5, 0.0]])
    assert networks.easyllp_targets(means, 4)[0, :, 0].tolist() == [4 * 0.25 + 0.25, -4 * 0.25 + 0.25]
    neighbours = torch.tensor([[1, 2], [3, 2], [0, 1], [0, 2]])
    assert networks.smoothed_targets(neighbours, means[0], 2).tolist() == [[0.25, 0.0], [0.5, 0.25]]


def test_proportion_loss_is_least_at_the_mean() -> None:
    means = torch.tensor([0.25])
    at = [float(networks.proportion_loss(torch.full((1, 4), float(v)), means)) for v in (-2.0, math.log(1 / 3), 1.0)]
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert at[1] == pytest.approx(entropy, abs=1e-6)
    assert at[1] < min(at[0], at[2])
    split = torch.tensor([[20.0, -20.0, -20.0, -20.0]])  # sure instances, the same mean
    assert float(networks.proportion_loss(split, means)) == pytest.approx(entropy, abs=1e-5)


def test_bag_network() -> None:
    network = build(lambda: networks.BagNetwork(5, [8, 6, 4]), generator=torch_generator(0))
    bags = torch.randn(3, 7, 5, generator=torch_generator(1))
    joint, embedded = network.joint(bags), network.embed(bags.reshape(21, 5))
    assert embedded.shape == (21, 6)
    torch.testing.assert_close(joint[:, :-1].flatten(), network(bags.reshape(21, 5))[:, 0])
    torch.testing.assert_close(joint[:, -1], network.bag_head(embedded.reshape(3, 7, 6).mean(1))[:, 0])
    with pytest.raises(ValueError, match="at least two"):
        networks.BagNetwork(5, [8])


@pytest.mark.parametrize("hidden", [[8, 6], [8, 6, 4]])
def test_stacked_bag_networks(hidden: list[int]) -> None:
    """The batched products against the mapped networks, values and gradients."""
    stack = NetworkStack.build(lambda: networks.BagNetwork(5, hidden), [torch_generator(0, run) for run in range(3)])
    bags = torch.randn(3, 4, 7, 5, generator=torch_generator(1))
    batched, mapped = networks.stacked_joint(stack.weights, bags), stack(bags, method="joint")
    torch.testing.assert_close(batched, mapped)
    gradients = [torch.autograd.grad(out.square().sum(), stack.parameters()) for out in (batched, mapped)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def blobs(n: int = 600, noise: float = 0.6) -> TableData:
    generator = torch_generator(0, "blobs")
    y = torch.arange(n) % 2
    x = noise * torch.randn(n, 4, generator=generator)
    x[:, :2] += (2 * y - 1)[:, None]
    return TableData(x, y, ("0", "1"))


def blob_task(size: int = 8, draws: int = 2) -> data.BaggedTask:
    generators = [torch_generator(0, "draw", run) for run in range(draws)]
    return data.bagged_task(blobs(), size, 256, 128, 200, generators=generators)


def fit(objectives: list[networks.Objective], task: data.BaggedTask, n_steps: int = 40) -> networks.Fitted:
    return networks.fit(
        objectives,
        task.train,
        task.val,
        Recipe(n_steps, 1e-2, optimizer="adamw", schedule="constant"),
        [8, 6],
        generators=[torch_generator(0, "w", run) for run in range(len(task.y_test))],
        bags_per_step=8,
        val_every=4,
    )


def test_methods_do_not_disturb_each_other() -> None:
    task = blob_task()
    one, two = networks.Objective(task.train.y), networks.Objective(torch.zeros_like(task.train.y), 0.0, 1.0)
    together, alone = fit([one, two], task, 12), fit([two], task, 12)
    torch.testing.assert_close(
        predict(together.stack, task.x_test.repeat(2, 1, 1))[2:], predict(alone.stack, task.x_test)
    )
    with pytest.raises(ValueError, match="one generator per draw"):
        networks.fit([one], task.train, task.val, Recipe(2, 1e-2), [8, 6], generators=[], bags_per_step=1, val_every=1)


def test_validation_reads_labels_only_where_it_says_so() -> None:
    """Relabelling validation instances within their bags changes the choice by instances only."""
    task = blob_task()
    shuffled = data.BaggedTask(
        task.train, networks.Bags(task.val.x, task.val.y.roll(1, dims=2)), task.x_test, task.y_test
    )
    first, second = (fit([networks.Objective(task.train.y)], t) for t in (task, shuffled))
    torch.testing.assert_close(first.val_loss, second.val_loss)
    assert all(torch.equal(first.stack.weights[name], second.stack.weights[name]) for name in first.stack.weights)
    assert any(not torch.equal(first.by_instances[name], second.by_instances[name]) for name in first.by_instances)


def test_pooled_loss_trains_the_second_head() -> None:
    task = blob_task()
    plain, pooled = (fit([networks.Objective(task.train.y, pooled=w)], task) for w in (0.0, 1.0))
    means = task.train.means

    def bag_loss(fitted: networks.Fitted) -> float:
        logits = fitted.stack(task.train.x, method="joint")[..., -1]
        return float(F.binary_cross_entropy_with_logits(logits.detach(), means))

    assert bag_loss(pooled) < bag_loss(plain) - 0.02


# ---- data and procedure


def test_auc_against_scikit_learn() -> None:
    generator = torch_generator(0, "auc")
    scores = torch.randint(6, (200,), generator=generator).float()  # many ties
    labels = (torch.rand(200, generator=generator) < 0.3).float()
    assert data.auc(scores, labels) == pytest.approx(roc_auc_score(labels.numpy(), scores.numpy()), abs=1e-12)
    with pytest.raises(ValueError, match="both classes"):
        data.auc(scores, torch.ones(200))


def test_bagged_task() -> None:
    small, large = blob_task(8), blob_task(64)
    assert small.train.x.shape == (2, 32, 8, 4)
    assert large.val.y.shape == (2, 2, 64)
    assert torch.equal(small.x_test, large.x_test)
    for task in (small, large):
        flat = task.train.x.flatten(1, 2)
        torch.testing.assert_close(flat.mean(1), torch.zeros(2, 4), atol=1e-5, rtol=0)
        torch.testing.assert_close(flat.std(1), torch.ones(2, 4))
    spread = small.train.means.std()  # random bags: binomial spread
    assert float(spread) == pytest.approx((0.25 / 8) ** 0.5, rel=0.3)
    with pytest.raises(ValueError, match="need 700 rows"):
        data.bagged_task(blobs(), 8, 400, 100, 200, generators=[torch_generator(0)])


def test_two_rounds_learn_from_sums_alone() -> None:
    """The whole procedure on separable data; hidden labels reach it through sums only."""
    task = blob_task(16)
    settings = procedure.BpSettings()
    pairs = [(10.0, 10.0), (1.0, 0.1)]
    choice = procedure.tuned_pair(task.train.x[0].flatten(0, 1), task.train, pairs, settings)
    assert (choice.pair, min(choice.residuals)) == ((1.0, 0.1), choice.residuals[1])
    assert [data.auc(c.probs, task.train.y[0]) > 0.9 for c in choice.candidates] == [False, True]
    pair = choice.pair
    first = procedure.pseudo_labels(task.train.x.flatten(1, 2), task.train, pair, settings)
    blind = networks.Bags(task.train.x, task.train.y.sort(dim=2).values)
    again = procedure.pseudo_labels(task.train.x.flatten(1, 2), blind, pair, settings)
    assert torch.equal(first.probs, again.probs)
    methods = procedure.objectives(task.train, first.labels, 5, 0.1)
    recipe = Recipe(40, 1e-2, batch_size=64, optimizer="adamw", schedule="constant")
    recipes = dict.fromkeys(methods, recipe) | {"DLLP": Recipe(40, 3e-2, batch_size=64, optimizer="adamw")}

    def streams() -> list[torch.Generator]:
        return [torch_generator(0, "w", run) for run in range(2)]

    trained = procedure.train_methods(methods, task, recipes, [8, 6], streams=streams, val_every=4)
    assert set(trained) == set(methods)
    second = procedure.pseudo_labels(
        procedure.embeddings(trained["BP, first network"].stack, task.train), task.train, pair, settings
    )
    final = procedure.train_methods(
        {"BP": networks.Objective(second.labels)}, task, {"BP": recipe}, [8, 6], streams=streams, val_every=4
    )
    assert min(data.aucs(first.probs, task.train.y)) > 90
    assert min(final["BP"].auc) > 95
    assert np.mean(final["BP"].auc) > np.mean(trained["bag means"].auc) - 1
    assert trained["oracle"].auc.shape == trained["oracle"].auc_by_instances.shape == (2,)


def test_embedded_tables() -> None:
    table = data.binary_table("penbased", fake=True)
    assert set(table.labels.tolist()) == {0, 1}
    real = data.binary_table("magic")
    assert real.x.shape == (19020, 10)
    assert float(real.labels.float().mean()) == pytest.approx(12332 / 19020)
    with pytest.raises(ValueError, match="binary tables are penbased"):
        data.binary_table("iris")
    for name in data.UCI:
        assert data.binary_table(name, fake=True).x.shape == (data.FAKE_ROWS, data.FAKE_FEATURES[name])


ADULT = """39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, 2174, 0, 40, United-States, <=50K
50, ?, 83311, Bachelors, 13, Married-civ-spouse, Exec-managerial, Husband, White, Male, 0, 0, 13, United-States, >50K

"""  # noqa: E501
ADULT_TEST = """|1x3 Cross validator
25, Private, 226802, 11th, 7, Never-married, Machine-op-inspct, Own-child, Black, Male, 0, 0, 40, United-States, <=50K.
"""
BANK = """"age";"job";"marital";"education";"default";"balance";"housing";"loan";"contact";"day";"month";"duration";"campaign";"pdays";"previous";"poutcome";"y"
58;"management";"married";"tertiary";"no";2143;"yes";"no";"unknown";5;"may";261;1;-1;0;"unknown";"no"
44;"technician";"single";"secondary";"no";29;"yes";"no";"unknown";5;"may";151;1;-1;0;"unknown";"yes"
"""  # noqa: E501


def test_adult_files(tmp_path: Path) -> None:
    folder = tmp_path / "adult"
    folder.mkdir()
    (folder / "adult.data").write_text(ADULT)
    with pytest.raises(DataError, match=r"adult\.test.*does not exist"):
        data.binary_table("adult", root=tmp_path)
    (folder / "adult.test").write_text(ADULT_TEST)
    table = data.binary_table("adult", root=tmp_path)
    assert table.labels.tolist() == [0, 1, 0]
    assert table.x[:, table.feature_names.index("x0")].tolist() == [39, 50, 25]
    assert table.x[:, table.feature_names.index("x1=?")].tolist() == [0, 1, 0]
    assert table.x.shape[1] == len(table.feature_names) == 6 + 3 + 2 + 2 + 3 + 3 + 2 + 1 + 1


def test_bank_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        data.binary_table("bank", root=tmp_path)
    (tmp_path / "bank").mkdir()
    file = tmp_path / "bank" / "bank-full.csv"
    file.write_text(BANK)
    table = data.binary_table("bank", root=tmp_path)
    assert table.labels.tolist() == [0, 1]
    assert table.x[:, table.feature_names.index("x5")].tolist() == [2143, 29]
    assert table.x[:, table.feature_names.index("x1=technician")].tolist() == [0, 1]
    file.write_text(BANK.replace('"yes"\n', '"maybe"\n'))
    with pytest.raises(DataError, match="17 columns ending in no or yes"):
        data.binary_table("bank", root=tmp_path)
