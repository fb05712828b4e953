"""UltraGCN: weights and losses against hand computations, limits and well-kept libraries."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import ndcg_score
from torch_geometric.nn import LGConv

from glocal.graphs.ranking import (
    Interactions,
    full_ranking,
    k_core,
    ranks_of,
    recall_ndcg,
    split_per_user,
    top_items,
)
from glocal.graphs.ultragcn import (
    MatrixFactorization,
    UltraGCNLoss,
    candidate_logits,
    constraint_factors,
    neighbor_loss,
    propagate_with_self_loops,
    top_neighbors,
)
from glocal.graphs.ultragcn_baselines import (
    BPRLoss,
    LightGCN,
    ease,
    item_knn,
    normalized_adjacency,
    popularity,
)
from glocal.graphs.ultragcn_training import Adam, Fit, Recipe, common_target, fit, tune
from glocal.seeding import torch_generator


def interactions(rows: list[list[int]]) -> Interactions:
    """Interactions from a dense 0/1 matrix."""
    matrix = torch.tensor(rows)
    return Interactions.from_pairs(torch.nonzero(matrix), *matrix.shape)


def random_interactions(n_users: int = 30, n_items: int = 40, density: float = 0.2) -> Interactions:
    matrix = torch.rand(n_users, n_items, generator=torch_generator(0, "random graph")) < density
    return Interactions.from_pairs(torch.nonzero(matrix), n_users, n_items)


def dense(graph: Interactions) -> torch.Tensor:
    return torch.from_numpy(graph.to_scipy().toarray())


HAND = interactions([[1, 1], [0, 1]])


# Check 1: beta


def test_beta_of_the_hand_example():
    user, item = constraint_factors(HAND)
    beta = user[:, None] * item
    for (u, i), value in {(0, 0): 0.6124, (0, 1): 0.5, (1, 1): 0.8165}.items():
        assert beta[u, i].item() == pytest.approx(value, abs=1e-4)


def test_beta_vanishes_for_users_without_items_and_stays_finite_for_items_without_users():
    user, item = constraint_factors(interactions([[1, 0], [0, 0]]))
    assert user[1] == 0
    assert item[1] == 1
    assert torch.isfinite(user).all()


# Checks 2 and 8: omega and the neighbour lists


def test_omega_of_the_hand_example():
    neighbors = top_neighbors(HAND, 2)
    omega = torch.zeros(2, 2).scatter(1, neighbors.index, neighbors.weight)
    assert omega[0, 1].item() == pytest.approx(0.4330, abs=1e-4)
    assert omega[1, 0].item() == pytest.approx(0.3849, abs=1e-4)
    assert omega[0, 0].item() == pytest.approx(math.sqrt(3) / 2 / math.sqrt(3), abs=1e-4)


def brute_force_omega(graph: Interactions, form: str, diagonal: bool) -> np.ndarray:
    """Omega entry by entry, straight from the formulas."""
    a = graph.to_scipy().toarray().astype(float)
    g = a.T @ a
    total = g.sum(1)
    omega = np.zeros_like(g)
    for i in range(len(g)):
        for j in range(len(g)):
            if g[i, j] == 0 or (i == j and (form == "paper" or not diagonal)):
                continue
            if form == "code":
                omega[i, j] = g[i, j] * math.sqrt(total[i] + 1) / total[i] / math.sqrt(total[j] + 1)
            else:
                omega[i, j] = g[i, j] / (total[i] - g[i, i]) * math.sqrt(total[i] / total[j])
    return omega


@pytest.mark.parametrize(("form", "diagonal"), [("code", True), ("code", False), ("paper", False)])
def test_neighbor_lists_equal_a_brute_force_sort(form, diagonal):
    graph = random_interactions()
    omega = brute_force_omega(graph, form, diagonal)
    neighbors = top_neighbors(graph, 5, form=form, diagonal=diagonal, chunk=7)
    np.testing.assert_allclose(neighbors.weight, -np.sort(-omega, axis=1)[:, :5], rtol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(omega, neighbors.index.numpy(), axis=1), neighbors.weight, rtol=1e-5)


def test_neighbor_lists_ignore_items_that_never_co_occur():
    graph = interactions([[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 0]])
    neighbors = top_neighbors(graph, 4)
    assert set(neighbors.index[0, :2].tolist()) == {0, 1}
    assert (neighbors.weight[0, 2:] == 0).all()
    assert (neighbors.index[0, 2:] == 0).all()  # padded with the item itself, at weight 0


def test_items_without_users_have_no_neighbors():
    neighbors = top_neighbors(interactions([[1, 0], [1, 0]]), 2)
    assert (neighbors.weight[1] == 0).all()


def test_without_filtering_all_weights_are_kept_in_place():
    graph = random_interactions()
    everything = top_neighbors(graph, None)
    assert everything.index is None
    np.testing.assert_allclose(everything.weight, brute_force_omega(graph, "code", True), rtol=1e-5)
    listed = top_neighbors(graph, graph.n_items)
    anchors = torch.randn(5, 3, generator=torch_generator(0, "anchors"))
    table = torch.randn(graph.n_items, 3, generator=torch_generator(0, "table"))
    values = [neighbor_loss(anchors, table, lists, torch.arange(5)) for lists in (everything, listed)]
    torch.testing.assert_close(*values)
    halves = [
        neighbor_loss(anchors, table, everything, torch.arange(5), sample=half)
        for half in torch.arange(graph.n_items).chunk(2)
    ]
    torch.testing.assert_close(torch.stack(halves).mean(), values[0])  # uniform draws estimate the sum


def test_user_neighbors_are_those_of_the_transpose():
    graph = random_interactions()
    omega = brute_force_omega(graph.swapped(), "code", True)
    neighbors = top_neighbors(graph.swapped(), 3)
    np.testing.assert_allclose(neighbors.weight, -np.sort(-omega, axis=1)[:, :3], rtol=1e-5)


def test_neighbor_arguments_are_checked():
    with pytest.raises(ValueError, match="form must be one of code, paper, got 'cosine'"):
        top_neighbors(HAND, form="cosine")
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        top_neighbors(HAND, 0)


# Check 3: the limit


def test_leading_eigenvector_satisfies_the_fixed_point():
    graph = random_interactions()
    du, di = graph.user_degrees.double(), graph.item_degrees.double()
    users, items = (du + 1).sqrt()[:, None], (di + 1).sqrt()[:, None]
    moved = propagate_with_self_loops(graph, users, items, 1)
    torch.testing.assert_close(moved[0], users, rtol=0, atol=1e-8)  # eigenvalue 1
    torch.testing.assert_close(moved[1], items, rtol=0, atol=1e-8)
    user, item = constraint_factors(graph)
    beta = user[:, None] * item
    torch.testing.assert_close((dense(graph) * beta).double() @ items, users, rtol=1e-6, atol=0)


def test_many_layers_reach_the_fixed_point_and_collapse_to_one_direction():
    graph = random_interactions()
    generator = torch_generator(0, "start")
    users = torch.randn(graph.n_users, 8, generator=generator, dtype=torch.float64)
    items = torch.randn(graph.n_items, 8, generator=generator, dtype=torch.float64)
    users, items = propagate_with_self_loops(graph, users, items, 200)
    user, item = constraint_factors(graph)
    combined = (dense(graph) * user[:, None] * item).double() @ items
    assert (1 - F.cosine_similarity(users, combined)).abs().max() < 1e-10
    singular = torch.linalg.svdvals(torch.cat([users, items]))
    assert singular[1] / singular[0] < 1e-10


# Check 4: the loss without weights is plain cross-entropy


@pytest.mark.parametrize("neg_mode", ["pair", "shared"])
def test_uniform_weights_give_binary_cross_entropy(neg_mode):
    graph = random_interactions()
    model = MatrixFactorization(graph.n_users, graph.n_items, 8, 1.0, generator=torch_generator(0, "init"))
    loss = UltraGCNLoss(graph, (1.0, 0.0, 1.0, 0.0), 7, 7.0, item_weight=0.0, reg_weight=0.0, neg_mode=neg_mode)
    users, items = graph.pairs[:16].T
    ours = loss(model, users, items, generator=torch_generator(0, "negatives"))
    negatives = loss.sample_negatives(users, torch_generator(0, "negatives")).expand(16, 7)
    user_table, item_table = model()
    positive_logits = (user_table[users] * item_table[items]).sum(1)
    negative_logits = (user_table[users][:, None] * item_table[negatives]).sum(2)
    logits = torch.cat([positive_logits, negative_logits.flatten()])
    labels = torch.cat([torch.ones(16), torch.zeros(16 * 7)])
    expected = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0)


def reference_objective(loss: UltraGCNLoss, model, users, items, negatives) -> float:
    """The objective, pair by pair and negative by negative."""
    w1, w2, w3, w4 = loss.w
    graph = loss.interactions
    du, di = graph.user_degrees.tolist(), graph.item_degrees.tolist()
    user_table, item_table = (table.detach().double() for table in model())
    total = loss.reg_weight / 2 * float(model.table.detach().double().square().sum())
    for row, (u, i) in enumerate(zip(users.tolist(), items.tolist(), strict=True)):

        def nll(u, i, sign):
            return math.log1p(math.exp(-sign * float(user_table[u] @ item_table[i])))

        def beta(u, i):
            return math.sqrt((du[u] + 1) / (di[i] + 1)) / du[u]

        total += (w1 + w2 * beta(u, i)) * nll(u, i, 1)
        drawn = negatives[row].tolist()
        total += loss.negative_weight / len(drawn) * sum((w3 + w4 * beta(u, j)) * nll(u, j, -1) for j in drawn)
        near = loss.item_neighbors
        for j, weight in zip(near.index[i].tolist(), near.weight[i].tolist(), strict=True):
            total += loss.item_weight * weight * nll(u, j, 1)
        near = loss.user_neighbors
        for v, weight in zip(near.index[u].tolist(), near.weight[u].tolist(), strict=True):
            total += loss.user_weight * weight * nll(v, i, 1)
    return total


def whole_loss(graph: Interactions, **changes) -> UltraGCNLoss:
    settings = {
        "w": (0.3, 1.0, 0.2, 0.7),
        "n_negatives": 6,
        "negative_weight": 5.0,
        "item_neighbors": top_neighbors(graph, 4),
        "item_weight": 0.8,
        "user_neighbors": top_neighbors(graph.swapped(), 3),
        "user_weight": 0.6,
        "reg_weight": 0.05,
    }
    return UltraGCNLoss(graph, **(settings | changes))


def test_whole_objective_equals_a_slow_loop():
    graph = random_interactions()
    loss = whole_loss(graph)
    model = MatrixFactorization(graph.n_users, graph.n_items, 5, 0.7, generator=torch_generator(0, "init"))
    users, items = graph.pairs[::9].T
    ours = loss(model, users, items, generator=torch_generator(1, "negatives"))
    negatives = loss.sample_negatives(users, torch_generator(1, "negatives"))
    expected = reference_objective(loss, model, users, items, negatives)
    assert ours.item() == pytest.approx(expected, rel=1e-5)


def test_shared_and_pair_negatives_agree_in_expectation():
    graph = random_interactions()
    model = MatrixFactorization(graph.n_users, graph.n_items, 5, 0.7, generator=torch_generator(0, "init"))
    users, items = graph.pairs[::9].T
    draws = {}
    for mode in ("pair", "shared"):
        loss, generator = whole_loss(graph, neg_mode=mode), torch_generator(0, "draws", mode)
        with torch.no_grad():
            draws[mode] = torch.stack([loss(model, users, items, generator=generator) for _ in range(200)])
    gap = draws["pair"].mean() - draws["shared"].mean()
    error = (draws["pair"].var() / 200 + draws["shared"].var() / 200).sqrt()
    assert abs(gap) < 3 * error
    assert error < 0.01 * draws["pair"].mean()  # the comparison is sharp enough to see a wrong factor


# Check 5: gradients


def test_gradient_equals_finite_differences_and_absent_users_are_only_shrunk():
    graph = random_interactions(8, 9, 0.4)
    loss = whole_loss(graph, user_weight=0.0)
    model = MatrixFactorization(8, 9, 3, 0.7, generator=torch_generator(0, "init")).double()
    inside = graph.pairs[:, 0] < 4
    users, items = graph.pairs[inside].T

    def objective(table):
        with torch.no_grad():
            model.table.copy_(table)
        return loss(model, users, items, generator=torch_generator(0, "negatives"))

    start = model.table.detach().clone()
    objective(start).backward()
    gradient = model.table.grad.clone()
    step = 1e-5
    numeric = torch.zeros_like(start)
    for index in np.ndindex(*start.shape):
        shift = torch.zeros_like(start)
        shift[index] = step
        with torch.no_grad():
            numeric[index] = (objective(start + shift) - objective(start - shift)) / (2 * step)
    torch.testing.assert_close(gradient, numeric, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient[4:8], loss.reg_weight * start[4:8])


def test_both_routes_to_candidate_logits_agree_with_their_gradients():
    generator = torch_generator(0, "routes")
    index = torch.randint(40, (6, 2), generator=generator)  # 40 > 16 * 2: gathered first
    wide = torch.cat([index, index.new_zeros(6, 8)], 1)  # 40 <= 16 * 10: whole table first
    results = []
    for candidates in (index, wide):
        anchors = torch.randn(6, 3, generator=torch_generator(0, "anchors")).requires_grad_()
        table = torch.randn(40, 3, generator=torch_generator(0, "table")).requires_grad_()
        logits = candidate_logits(anchors, table, candidates)[:, :2]
        logits.square().sum().backward()
        results.append((logits, anchors.grad, table.grad))
    for gathered, whole in zip(*results, strict=True):
        torch.testing.assert_close(gathered, whole)
    expected = (anchors[:, None] * table[index]).sum(2)
    torch.testing.assert_close(results[0][0], expected)


def test_neighbor_loss_does_not_underflow():
    neighbors = top_neighbors(HAND, 1)
    anchors, table = torch.tensor([[200.0]]), torch.tensor([[-1.0], [-1.0]])
    value = neighbor_loss(anchors, table, neighbors, torch.tensor([0]))
    assert value.item() == pytest.approx(200 * float(neighbors.weight[0, 0]), rel=1e-6)


def test_excluded_positives_are_never_drawn():
    graph = random_interactions(density=0.6)
    loss = whole_loss(graph, exclude_positives=True, n_negatives=50)
    users = torch.arange(graph.n_users)
    drawn = loss.sample_negatives(users, torch_generator(0, "sifted"))
    assert not dense(graph).bool().gather(1, drawn).any()
    plain = whole_loss(graph, n_negatives=50).sample_negatives(users, torch_generator(0, "sifted"))
    assert dense(graph).bool().gather(1, plain).any()


def test_loss_arguments_are_checked():
    with pytest.raises(ValueError, match="neg_mode must be one of pair, shared, got 'all'"):
        UltraGCNLoss(HAND, neg_mode="all")
    with pytest.raises(ValueError, match="exclude_positives needs neg_mode='pair'"):
        UltraGCNLoss(HAND, neg_mode="shared", exclude_positives=True)
    with pytest.raises(ValueError, match="n_negatives must be at least 1, got 0"):
        UltraGCNLoss(HAND, n_negatives=0)
    with pytest.raises(ValueError, match="a user of the batch has all items"):
        UltraGCNLoss(HAND, exclude_positives=True).sample_negatives(torch.tensor([0]), torch_generator(0, "none"))


# Check 6: metrics


def test_recall_and_ndcg_of_the_hand_case():
    recall, ndcg = recall_ndcg(torch.tensor([1, 4, 30]), torch.tensor([0, 0, 0]), 1, 20)
    assert recall.item() == pytest.approx(2 / 3, abs=1e-4)
    assert ndcg.item() == pytest.approx(0.6713, abs=1e-3)


def test_ndcg_agrees_with_scikit_learn_on_full_lists():
    generator = torch_generator(0, "scores")
    scores, relevant = torch.randn(6, 12, generator=generator), random_interactions(6, 12, 0.4)
    assert (relevant.user_degrees > 0).all()
    nothing = Interactions.from_pairs(torch.zeros(0, 2, dtype=torch.long), 6, 12)
    ours = full_ranking(lambda users: scores[users], nothing, relevant, k=12, chunk=4)
    assert ours.ndcg.mean().item() == pytest.approx(ndcg_score(dense(relevant).numpy(), scores.numpy()), abs=1e-6)
    assert (ours.recall == 1).all()


def test_ideal_list_is_capped_at_k():
    recall, ndcg = recall_ndcg(torch.tensor([1, 2, 3]), torch.tensor([0, 0, 0]), 1, 2)
    assert recall.item() == pytest.approx(2 / 3)
    assert ndcg.item() == pytest.approx(1.0)


def test_ties_take_the_last_rank():
    none = torch.zeros(0, 2, dtype=torch.long)
    assert ranks_of(torch.zeros(1, 5), none, torch.tensor([[0, 2]])).tolist() == [5]


# Check 7: train items are out; LightGCN's layer


def test_known_items_never_appear_and_ranks_agree_with_the_top_list():
    graph = random_interactions()
    train, test = split_per_user(graph, (0.2,), generator=torch_generator(0, "split"))
    users = torch.arange(graph.n_users)
    scores = torch.randn(graph.n_users, graph.n_items, generator=torch_generator(0, "scores"))
    top = top_items(scores + 9 * dense(train), train.rows(users), 20)
    assert not dense(train).bool().gather(1, top).any()
    hits = dense(test).bool().gather(1, top).sum(1) / test.user_degrees
    ours = full_ranking(lambda u: scores[u] + 9 * dense(train)[u], train, test, k=20, chunk=7)
    torch.testing.assert_close(ours.recall, hits[ours.users])


def test_lightgcn_equals_pyg_layers_with_gradients():
    graph = random_interactions()
    model = LightGCN(graph, 6, 1.0, 3, generator=torch_generator(0, "init"))
    users, items = model()
    weights = torch.randn(graph.n_users + graph.n_items, 6, generator=torch_generator(0, "weights"))
    (torch.cat([users, items]) * weights).sum().backward()
    table = model.table.detach().clone().requires_grad_()
    edges = graph.pairs.T + torch.tensor([[0], [graph.n_users]])
    edge_index = torch.cat([edges, edges.flip(0)], 1)
    layers = [table]
    for _ in range(3):
        layers.append(LGConv()(layers[-1], edge_index))
    expected = torch.stack(layers).mean(0)
    (expected * weights).sum().backward()
    torch.testing.assert_close(torch.cat([users, items]), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.table.grad, table.grad, rtol=0, atol=1e-6)


def test_isolated_nodes_do_not_break_the_adjacency():
    adjacency = normalized_adjacency(interactions([[1, 0], [0, 0]])).to_dense()
    assert torch.isfinite(adjacency).all()
    assert adjacency[0, 2] == adjacency[2, 0] == 1
    assert adjacency.sum() == 2


def test_lightgcn_without_layers_is_matrix_factorization():
    graph = random_interactions()
    plain = MatrixFactorization(graph.n_users, graph.n_items, 4, generator=torch_generator(0, "init"))
    light = LightGCN(graph, 4, 1e-4, 0, generator=torch_generator(0, "init"))
    for one, other in zip(plain(), light(), strict=True):
        torch.testing.assert_close(one, other)


def test_bpr_is_log_two_for_equal_scores_plus_its_penalty():
    graph = random_interactions()
    model = MatrixFactorization(graph.n_users, graph.n_items, 4, 1.0, generator=torch_generator(0, "init"))
    with torch.no_grad():
        model.table[graph.n_users :] = 0.5  # all items alike
    users, items = graph.pairs[:10].T
    value = BPRLoss(graph.n_items, 0.1)(model, users, items, generator=torch_generator(0, "negatives"))
    penalty = model.table[users].square().sum(1).mean() / 2 + 0.25 * 4  # two items of norm 4 * 0.25, halved
    assert value.item() == pytest.approx(math.log(2) + 0.1 * penalty.item(), rel=1e-5)


# Closed-form baselines


def test_ease_solves_its_constrained_regression():
    graph = random_interactions()
    a = dense(graph).double()
    identity = torch.eye(graph.n_items, dtype=torch.float64)
    everyone = Interactions.from_pairs(torch.arange(graph.n_items)[:, None].expand(-1, 2), 40, 40)
    weight = ease(graph, 3.0)(torch.arange(graph.n_users))  # a @ W
    assert weight.shape == (30, 40)
    for j in (0, 17):  # column j of W is a ridge regression on all other columns
        others = [i for i in range(graph.n_items) if i != j]
        x = a[:, others]
        solution = torch.linalg.solve(x.T @ x + 3 * identity[1:, 1:], x.T @ a[:, j])
        torch.testing.assert_close(weight[:, j].double(), x @ solution, rtol=1e-4, atol=1e-5)
    assert len(everyone) == 40


def test_item_knn_scores_the_hand_example():
    scores = item_knn(HAND, 1)(torch.arange(2))
    cosine = 1 / math.sqrt(2)
    torch.testing.assert_close(scores, torch.tensor([[cosine, cosine], [cosine, 0.0]]))


def test_popularity_counts_users():
    assert popularity(HAND)(torch.arange(2)).tolist() == [[1, 2], [1, 2]]


# Interactions and splits


def test_split_covers_every_pair_once_and_leaves_everyone_something():
    graph = k_core(random_interactions(60, 50, 0.2).pairs, 5)
    parts = split_per_user(graph, (0.1, 0.1), generator=torch_generator(0, "split"))
    keys = torch.cat([part.pairs[:, 0] * graph.n_items + part.pairs[:, 1] for part in parts])
    assert sorted(keys.tolist()) == (graph.pairs[:, 0] * graph.n_items + graph.pairs[:, 1]).tolist()
    assert all((part.user_degrees > 0).all() for part in parts)
    sizes = (graph.user_degrees * 0.1).round().clamp_min(1)
    assert parts[1].user_degrees.tolist() == sizes.tolist()


def test_k_core_drops_weak_nodes_repeatedly_and_relabels():
    # user 2 has one item; without it item 2 has one user, whose loss leaves user 0 with two items
    core = k_core(torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [1, 2], [2, 2]]), 2)
    assert (core.n_users, core.n_items, len(core)) == (2, 2, 4)
    with pytest.raises(ValueError, match="the 9-core is empty"):
        k_core(torch.tensor([[0, 0]]), 9)


def test_interactions_are_checked():
    with pytest.raises(ValueError, match=r"item indices must lie in \[0, 2\), got 0 to 5"):
        Interactions.from_pairs(torch.tensor([[0, 0], [0, 5]]), 1, 2)
    with pytest.raises(ValueError, match=r"fractions must lie in \(0, 1\), got \(1.5,\)"):
        split_per_user(HAND, (1.5,), generator=torch_generator(0))
    with pytest.raises(ValueError, match="leave users without training items"):
        split_per_user(HAND, (0.5,), generator=torch_generator(0))
    nothing = Interactions.from_pairs(torch.zeros(0, 2, dtype=torch.long), 2, 2)
    with pytest.raises(ValueError, match="at least one user with relevant items"):
        full_ranking(popularity(HAND), nothing, nothing)


# Training


def small_recipe(**changes) -> Recipe:
    settings = {
        "dim": 8,
        "std": 0.1,
        "lr": 0.05,
        "batch_size": 64,
        "n_negatives": 16,
        "negative_weight": 1.0,
        "item_weight": 0.1,
        "max_epochs": 6,
        "patience": 2,
    }
    return Recipe(**(settings | changes))


def test_fit_keeps_the_best_epoch_is_reproducible_and_stops_early():
    train, val = split_per_user(random_interactions(60, 40), (0.2,), generator=torch_generator(0, "split"))
    one, again = (fit(small_recipe(), train, val, seed=3, k=5) for _ in range(2))
    assert torch.equal(one.users, again.users)
    other = fit(small_recipe(), train, val, seed=4, k=5)
    assert not torch.equal(one.users, other.users)
    kept = full_ranking(one.scorer, train, val, k=5)
    assert float(kept.recall.mean()) == pytest.approx(one.recall.max())
    assert (np.diff(one.seconds) > 0).all()
    stopped = fit(small_recipe(lr=1e-9, max_epochs=50), train, val, seed=3, k=5)
    assert len(stopped.recall) == 3  # the first epoch is best, two more without improvement


def test_adam_equals_torch():
    start = torch.randn(6, 3, generator=torch_generator(0, "start"))
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    own, reference = Adam(ours, 0.03), torch.optim.Adam([theirs], lr=0.03)
    for power in (2, 3, 4, 2):
        own.step(ours.pow(power).sum())
        reference.zero_grad()
        theirs.pow(power).sum().backward()
        reference.step()
    torch.testing.assert_close(ours, theirs)


def test_planted_groups_are_found_by_every_trained_model():
    groups = torch.arange(40)[:, None] % 4 == torch.arange(48) % 4
    graph = Interactions.from_pairs(torch.nonzero(groups), 40, 48)
    train, val = split_per_user(graph, (0.2,), generator=torch_generator(0, "split"))
    chance = full_ranking(popularity(train), train, val, k=5).recall.mean()
    for changes in (
        {},
        {"neg_mode": "shared", "user_weight": 0.1},
        {"n_layers": 2, "item_weight": 0.0},
        {"loss": "bpr", "n_layers": 2, "item_weight": 0.0},
    ):
        found = fit(small_recipe(max_epochs=20, patience=20, **changes), train, val, seed=0, k=5).recall.max()
        assert found > 0.9 > chance, changes


def test_tune_sorts_by_validation_recall():
    train, val = split_per_user(random_interactions(60, 40), (0.2,), generator=torch_generator(0, "split"))
    recipes = {"frozen": small_recipe(lr=1e-9), "trained": small_recipe()}
    scores = tune(recipes, train, val, seed=0, k=5)
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert scores["frozen"] == fit(recipes["frozen"], train, val, seed=0, k=5).recall.max()


def test_common_target_is_reached_by_both():
    def history(ndcg):
        empty = torch.zeros(1, 1)
        steps = np.arange(1.0, len(ndcg) + 1)
        return Fit(empty, empty, np.array(ndcg), np.array(ndcg), steps, steps)

    fast, slow = history([0.1, 0.2]), history([0.05, 0.1, 0.16])
    target = common_target(fast, slow, 0.5)
    assert target == pytest.approx(0.08)
    assert (fast.first(target), slow.first(target)) == (0, 1)
    with pytest.raises(ValueError, match=r"at most the best validation NDCG 0\.2000, got 0\.5000"):
        fast.first(0.5)


def test_recipe_arguments_are_checked():
    with pytest.raises(ValueError, match="loss must be one of bce, bpr, got 'mse'"):
        Recipe(loss="mse")
    with pytest.raises(ValueError, match="item_weight and user_weight must be 0 with loss='bpr'"):
        Recipe(loss="bpr")
