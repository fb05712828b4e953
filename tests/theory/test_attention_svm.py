"""Properties of the attention layer, its training and its convex programs; check numbers are those of the brief."""

import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sklearn.svm import SVC

from glocal.data.types import ImageData
from glocal.seeding import torch_generator
from glocal.theory.attention_svm import (
    LinearHead,
    ReLUHead,
    attention_loss,
    attention_probs,
    correlation,
    is_clear_cut,
    loss_gradient,
    selected_tokens,
    token_scores,
    train_attention,
    uniform_init,
)
from glocal.theory.attention_svm_data import (
    TokenData,
    patch_problems,
    random_directions,
    random_hidden_weights,
    random_problems,
)
from glocal.theory.attention_svm_path import balanced_factors, regularization_path
from glocal.theory.attention_svm_solvers import (
    SVMSolution,
    attention_svm,
    constraint_matrices,
    is_locally_optimal,
    is_separable,
    minimum_norm_svm,
    multi_token_svm,
    numerical_rank,
    separable_runs,
    svm_directions,
)


def generator(*names):
    return torch_generator(0, *names)


def draw(runs=3, n=4, n_tokens=5, d=6, name="data", **options):
    data = random_problems(runs, n, n_tokens, d, generator=generator(name), **options)
    return data, LinearHead(random_directions(runs, d, generator=generator(name, "head")))


def constraints(data, run, selection):
    return constraint_matrices(data.tokens[run].numpy(), data.queries[run].numpy(), selection.numpy())


def nuclear_norm(matrix):
    return float(np.linalg.svd(matrix, compute_uv=False).sum())


# Check 1


@pytest.mark.parametrize("kind", ["linear", "relu"])
def test_closed_form_gradient_equals_autograd(kind):
    data, head = draw()
    if kind == "relu":
        head = ReLUHead(random_hidden_weights(3, 6, generator=generator("hidden")))
    weights = 3 * uniform_init(3, 6, generator=generator("w"))
    variable = weights.clone().requires_grad_()
    (automatic,) = torch.autograd.grad(attention_loss(data, head, variable).sum(), variable)
    closed = loss_gradient(data, head, weights)
    assert automatic.norm() > 0
    assert ((closed - automatic).norm() / automatic.norm()) < 1e-10


def test_gradient_keeps_its_digits_when_the_softmax_is_saturated():
    # n = 1, T = 2, unit differences: W z has margin 100, so s_2 = e^-100 and everything is known in closed form
    tokens = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]], dtype=torch.float64)
    queries = torch.tensor([[[0.0, 1.0]]], dtype=torch.float64)
    data = TokenData(tokens, queries, torch.ones(1, 1, dtype=torch.float64))
    head = LinearHead(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    weights = torch.tensor([[[0.0, 100.0], [0.0, 0.0]]], dtype=torch.float64)
    expected = -math.exp(-100) / (1 + math.e)  # l'(f) (gamma_1 - gamma_2) s_1 s_2 with f = 1
    gradient = loss_gradient(data, head, weights)[0]
    assert gradient[0, 1].item() == pytest.approx(expected, rel=1e-12, abs=0)
    assert gradient.abs().sum().item() == pytest.approx(-expected, rel=1e-12, abs=0)


# Check 2


@pytest.mark.parametrize("norm", ["fro", "nuc"])
def test_one_constraint_has_the_rank_one_solution(norm):
    data, _ = draw(runs=1, n=1, n_tokens=2, d=5)
    x, z = data.tokens[0, 0].numpy(), data.queries[0, 0].numpy()
    difference = x[1] - x[0]
    expected = np.outer(difference, z) / (difference @ difference) / (z @ z)
    solution = attention_svm(data, 0, torch.tensor([1]), norm)
    assert np.abs(solution.weights - expected).max() < 1e-5
    assert int(numerical_rank(torch.as_tensor(solution.weights))) == 1


def test_the_two_norms_disagree_on_the_example_by_hand():
    queries = np.array([[1.0, 0.0], [0.5, math.sqrt(0.75)]])
    matrices = np.stack([np.outer(e, z) for e, z in zip(np.eye(2), queries, strict=True)])
    frobenius, nuclear = (minimum_norm_svm(matrices, norm).weights for norm in ("fro", "nuc"))
    halfway = np.array([math.cos(math.pi / 6), math.sin(math.pi / 6)])
    np.testing.assert_allclose(frobenius, matrices.sum(0), atol=1e-6)
    np.testing.assert_allclose(nuclear, np.outer([1, 1], halfway) / math.cos(math.pi / 6), atol=1e-6)


# Check 3


def test_frobenius_svm_equals_linear_svc_on_signed_copies_and_nnls_of_the_dual():
    data, head = draw(runs=3, n=6, n_tokens=8, d=10)
    best = token_scores(data, head).argmax(-1)
    for r in range(3):
        features = constraints(data, r, best[r]).reshape(42, 100)
        ours = attention_svm(data, r, best[r], "fro").weights.reshape(-1)
        svc = SVC(kernel="linear", C=1e6, tol=1e-6).fit(np.concatenate([features, -features]), [1] * 42 + [-1] * 42)
        assert abs(svc.intercept_[0]) < 1e-4
        theirs = svc.coef_[0]
        assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > 0.999
        # the point of least norm of the convex hull of the features, by NNLS, has the direction of the solution
        weights, _ = nnls(np.vstack([features.T, np.ones(42)]), np.append(np.zeros(100), 1.0))
        hull_point = features.T @ weights
        np.testing.assert_allclose(ours, hull_point / (features @ hull_point).min(), atol=1e-5)


def test_nuclear_svm_equals_the_primal_program_of_cvxpy():
    data, head = draw(runs=2, n=4, n_tokens=5, d=6)
    best = token_scores(data, head).argmax(-1)
    for r in range(2):
        matrices = constraints(data, r, best[r])
        variable = cp.Variable((6, 6))
        problem = cp.Problem(cp.Minimize(cp.normNuc(variable)), [cp.vdot(a, variable) >= 1 for a in matrices])
        problem.solve(solver="CLARABEL")
        ours = minimum_norm_svm(matrices, "nuc")
        assert nuclear_norm(ours.weights) == pytest.approx(problem.value, rel=1e-6)
        np.testing.assert_allclose(ours.weights, variable.value, atol=1e-3)
        assert ours.margins.min() > 1 - 1e-6


# Checks 4 and 5


def test_kkt_conditions_and_rank_bound():
    data, head = draw(runs=5, n=4, n_tokens=6, d=8)
    best = token_scores(data, head).argmax(-1)
    for r in range(5):
        matrices = constraints(data, r, best[r])
        frobenius, nuclear = (minimum_norm_svm(matrices, norm) for norm in ("fro", "nuc"))
        combination = np.einsum("j,jpq->pq", frobenius.multipliers, matrices)
        np.testing.assert_allclose(frobenius.weights, combination, atol=1e-6)
        for solution in (frobenius, nuclear):
            assert solution.multipliers.min() > -1e-8
            assert np.abs(solution.multipliers * (solution.margins - 1)).max() < 1e-4
            assert int(numerical_rank(torch.as_tensor(solution.weights))) <= 4
        # stationarity of the nuclear program: sum lambda A is a subgradient, <G, W> = ||W||_* with ||G||_2 <= 1
        subgradient = np.einsum("j,jpq->pq", nuclear.multipliers, matrices)
        assert np.linalg.norm(subgradient, 2) < 1 + 1e-6
        assert np.vdot(subgradient, nuclear.weights) == pytest.approx(nuclear_norm(nuclear.weights), rel=1e-5)


def test_each_solution_is_best_in_its_own_norm():
    data, head = draw(runs=20, n=5, n_tokens=5, d=6)
    best = token_scores(data, head).argmax(-1)
    frobenius, nuclear = (svm_directions(data, best, norm) for norm in ("fro", "nuc"))
    lengths = [w.norm(dim=(1, 2)) for w in (frobenius, nuclear)]
    sums = [torch.linalg.svdvals(w).sum(-1) for w in (frobenius, nuclear)]
    assert (lengths[0] < lengths[1] + 1e-6).all()
    assert (sums[1] < sums[0] + 1e-6).all()
    assert (sums[0] - sums[1]).mean() > 0.01


# Check 6


def test_gradient_descent_on_w_commutes_with_rotations():
    data, head = draw(d=6)
    rotations = torch.linalg.qr(torch.randn(2, 6, 6, generator=generator("rotations"), dtype=torch.float64)).Q
    o, p = rotations
    turned = TokenData(data.tokens @ o.mT, data.queries @ p.mT, data.labels)
    start = uniform_init(3, 6, generator=generator("w"))
    plain = train_attention(data, head, start, steps=100).final
    rotated = train_attention(turned, LinearHead(head.v @ o.mT), o @ start @ p.mT, steps=100).final
    assert (rotated - o @ plain @ p.mT).abs().max() < 1e-8
    assert plain.norm() > 5  # it moved


# Check 7


def test_every_selection_is_feasible_once_the_width_suffices():
    data, _ = draw(runs=50, n=4, n_tokens=6, d=5, name="wide")
    selections = torch.randint(6, (50, 4), generator=generator("selections"))
    assert is_separable(data, selections).all()
    assert not svm_directions(data.subset(torch.arange(5)), selections[:5], "fro").isnan().any()


def test_contradictory_constraints_are_recognised_by_all_programs():
    data, _ = draw(runs=1, n=2, n_tokens=3, d=4)
    data.tokens[0, 0, 1] = data.tokens[0, 0, 0]  # equal tokens cannot be told apart
    selection = torch.tensor([[0, 0]])
    assert not is_separable(data, selection).any()
    for norm in ("fro", "nuc"):
        assert not attention_svm(data, 0, selection[0], norm).is_feasible
        assert svm_directions(data, selection, norm).isnan().all()


def test_separable_runs_stops_at_the_limit():
    data, _ = draw(runs=6, n=2, n_tokens=3, d=4)
    data.tokens[1, 0, 1] = data.tokens[1, 0, 0]
    selections = torch.zeros(6, 2, dtype=torch.int64)
    assert separable_runs(data, selections, 3).tolist() == [0, 2, 3]
    assert separable_runs(data, selections, 9).tolist() == [0, 2, 3, 4, 5]


def test_translating_the_tokens_of_an_example_leaves_its_attention():
    data, _ = draw()
    weights = uniform_init(3, 6, generator=generator("w"))
    shift = torch.randn(3, 4, 1, 6, generator=generator("shift"), dtype=torch.float64)
    moved = TokenData(data.tokens + shift, data.queries, data.labels)
    torch.testing.assert_close(attention_probs(moved, weights), attention_probs(data, weights))


# Check 8


def test_factor_norms_bound_the_nuclear_norm_with_equality_when_balanced():
    k, q = (torch.randn(5, 6, 6, generator=generator(name), dtype=torch.float64) for name in "kq")
    product = k @ q.mT
    nuclear = torch.linalg.svdvals(product).sum(-1)
    assert (0.5 * (k.square() + q.square()).sum((1, 2)) > nuclear).all()
    left, right = balanced_factors(product)
    torch.testing.assert_close(left @ right.mT, product)
    torch.testing.assert_close(0.5 * (left.square() + right.square()).sum((1, 2)), nuclear)


# training


def test_training_equals_the_official_procedure_with_autograd():
    data, head = draw(runs=1)
    k0, q0 = (uniform_init(1, 6, generator=generator(name)) for name in "kq")
    eps = torch.finfo(torch.float64).eps
    k, q = (x[0].clone().requires_grad_() for x in (k0, q0))
    for _ in range(20):
        logits = torch.einsum("ntd,de,ne->nt", data.tokens[0], k @ q.T, data.queries[0])
        f = torch.einsum("nt,ntd,d->n", logits.softmax(-1), data.tokens[0], head.v[0])
        loss = torch.log1p(torch.exp(-data.labels[0] * f)).mean() + eps * (k.norm() ** 2 + q.norm() ** 2)
        gradients = torch.autograd.grad(loss, (k, q))
        with torch.no_grad():
            for theta, gradient in zip((k, q), gradients, strict=True):
                theta -= 0.1 * gradient / (gradient.norm() + eps)
    trained = train_attention(data, head, (k0, q0), steps=20, lr=0.1, record_every=7)
    torch.testing.assert_close(trained.final[0], (k @ q.T).detach())
    assert trained.steps == (0, 7, 14, 20)


def test_plain_descent_takes_the_gradient_itself():
    data, head = draw()
    start = uniform_init(3, 6, generator=generator("w"))
    once = train_attention(data, head, start, steps=1, lr=0.3, is_normalized=False).final
    torch.testing.assert_close(once, start - 0.3 * loss_gradient(data, head, start))


def test_each_parametrization_aligns_with_its_own_norm():
    data, head = draw(runs=5, n=4, n_tokens=5, d=6)
    starts = [uniform_init(5, 6, generator=generator(name)) for name in "wkq"]
    for init, own, other in ((starts[0], "fro", "nuc"), (tuple(starts[1:]), "nuc", "fro")):
        trained = train_attention(data, head, init, steps=1500).final
        selection = selected_tokens(data, trained)
        right, wrong = (correlation(trained, svm_directions(data, selection, norm)) for norm in (own, other))
        assert right.min() > 0.95
        assert (right > wrong).all()


def test_training_goes_on_towards_the_svm_with_a_smaller_epsilon():
    data, head = draw(runs=5, n=4, n_tokens=5, d=6)
    start = uniform_init(5, 6, generator=generator("w"))
    gaps = []
    for epsilon in (torch.finfo(torch.float64).eps, 1e-300):
        trained = train_attention(data, head, start, steps=2500, epsilon=epsilon).final
        target = svm_directions(data, selected_tokens(data, trained), "fro")
        gaps.append(1 - correlation(trained, target).median().item())
    assert gaps[1] < 0.5 * gaps[0]


def test_weights_enter_with_token_left_and_query_right():
    data, _ = draw(runs=1, n=1, n_tokens=3, d=2)
    weights = torch.tensor([[[0.0, 2.0], [0.0, 0.0]]], dtype=torch.float64)
    logits = 2 * data.tokens[0, 0, :, 0] * data.queries[0, 0, 1]
    torch.testing.assert_close(attention_probs(data, weights)[0, 0], logits.softmax(-1))


# local optimality, several tokens, regularisation path


def test_local_optimality_looks_at_active_constraints_only():
    scores = torch.tensor([[0.5, 0.9, 0.1], [0.3, 0.2, 0.1]], dtype=torch.float64)
    selection = torch.tensor([0, 0])

    def solution(*margins):
        return SVMSolution(np.eye(2), np.zeros(4), np.array(margins))

    assert is_locally_optimal(scores, selection, solution(1.2, 1.0, 1.0, 1.0))
    assert not is_locally_optimal(scores, selection, solution(1.0, 1.2, 1.0, 1.0))
    assert not is_locally_optimal(scores, selection, SVMSolution(np.full((2, 2), np.nan), np.zeros(4), np.ones(4)))


def test_multi_token_svm_equals_the_program_with_equations():
    data, _ = draw(runs=1, n=3, n_tokens=4, d=5)
    tokens, queries = data.tokens[0].numpy(), data.queries[0].numpy()
    probs = np.array([[0.7, 0.3, 1e-9, 1e-9], [1.0, 1e-9, 1e-9, 1e-9], [0.2, 0.3, 0.5, 1e-9]])
    finite, margin = cp.Variable((5, 5)), cp.Variable((5, 5))
    finite_rules, margin_rules = [], []
    for i in range(3):
        kept = probs[i] >= 1e-3
        for t in np.flatnonzero(kept):
            for other in range(4):
                row = np.outer(tokens[i, t] - tokens[i, other], queries[i])
                if kept[other]:
                    finite_rules.append(cp.vdot(row, finite) == np.log(probs[i, t] / probs[i, other]))
                    margin_rules.append(cp.vdot(row, margin) == 0)
                else:
                    margin_rules.append(cp.vdot(row, margin) >= 1)
    for variable, rules in ((finite, finite_rules), (margin, margin_rules)):
        cp.Problem(cp.Minimize(cp.sum_squares(variable)), rules).solve(solver="CLARABEL")
    trained = finite.value + 7.0 * margin.value
    ours = multi_token_svm(tokens, queries, probs, trained)
    np.testing.assert_allclose(ours.finite, finite.value, atol=1e-5)
    np.testing.assert_allclose(ours.margin, margin.value, atol=1e-5)
    np.testing.assert_allclose(ours.equivalent, trained, atol=1e-4)  # R = 7 is recovered


def test_multi_token_svm_of_single_tokens_is_the_plain_svm():
    data, _ = draw(runs=1, n=3, n_tokens=4, d=5)
    tokens, queries = data.tokens[0].numpy(), data.queries[0].numpy()
    probs = np.full((3, 4), 1e-9)
    probs[:, 2] = 1.0
    ours = multi_token_svm(tokens, queries, probs, np.eye(5))
    assert np.abs(ours.finite).max() == 0
    expected = attention_svm(data, 0, torch.full((3,), 2), "fro").weights
    np.testing.assert_allclose(ours.margin, expected, atol=1e-6)


def test_clear_cut_runs_follow_the_three_rules():
    labels = torch.tensor([[1.0, -1.0]] * 3 + [[1.0, 1.0]], dtype=torch.float64)
    data = TokenData(torch.zeros(4, 2, 2, 3, dtype=torch.float64), torch.zeros(4, 2, 3, dtype=torch.float64), labels)
    clear, between, soft = [1 - 1e-7, 1e-7], [1 - 1e-4, 1e-4], [0.5, 0.5]
    probs = torch.tensor([[clear, soft], [clear, between], [soft, soft], [clear, soft]], dtype=torch.float64)
    assert is_clear_cut(data, probs).tolist() == [True, False, False, False]


@pytest.mark.parametrize("parametrization", ["W", "KQ"])
def test_regularization_path_is_stationary_and_turns_to_the_svm(parametrization):
    data, head = draw(runs=3, n=4, n_tokens=5, d=6)
    best = token_scores(data, head).argmax(-1)
    own = svm_directions(data, best, "fro" if parametrization == "W" else "nuc")
    starts = torch.stack([-loss_gradient(data, head, torch.zeros_like(own)), own])
    radii = [4.0, 32.0, 128.0]
    path = regularization_path(data, head, starts, radii, parametrization=parametrization, steps=500)
    assert correlation(path[:, -1], own).min() > 0.95
    for j, radius in enumerate(radii):
        values = torch.linalg.svdvals(path[:, j])
        length = path[:, j].norm(dim=(1, 2)) if parametrization == "W" else values.sum(-1)
        assert (length < radius * (1 + 1e-9)).all()
        # Frank-Wolfe gap: a first-order minimiser over the ball has <-G, W> = R ||G||_dual
        gradient = loss_gradient(data, head, path[:, j])
        dual = gradient.norm(dim=(1, 2)) if parametrization == "W" else torch.linalg.svdvals(gradient)[:, 0]
        gap = 1 + (gradient * path[:, j]).sum((1, 2)) / (radius * dual)
        assert (gap < (1e-4 if parametrization == "W" else 0.03)).all()


# data


def test_random_problems_are_unit_vectors_with_signs():
    data, head = draw(runs=4, is_cross_attention=False)
    for x in (data.tokens, data.queries, head.v):
        torch.testing.assert_close(x.norm(dim=-1), torch.ones(x.shape[:-1], dtype=torch.float64))
    assert set(data.labels.flatten().tolist()) == {-1.0, 1.0}
    assert torch.equal(data.queries, data.tokens[:, :, 0])


def digits(n=30, size=28):
    images = torch.rand(n, 1, size, size, generator=generator("images"))
    return ImageData(images, torch.arange(n) % 3, ("a", "b", "c"))


def test_patch_problems_have_distinct_unit_tokens_and_mean_queries():
    images = digits()
    images.images[0, :, :12, :] = 0  # the first image of class 0 has equal patches and must never be drawn
    data, v = patch_problems(images, 8, classes=(0, 2), n_per_class=4, d=5, generator=generator("patches"))
    assert data.tokens.shape == (8, 8, 9, 5)
    assert v.shape == (8, 5)
    torch.testing.assert_close(data.tokens.norm(dim=-1), torch.ones(8, 8, 9, dtype=torch.float64))
    torch.testing.assert_close(data.queries, data.tokens.mean(2))
    assert data.labels.sum(1).abs().max() == 0
    distances = torch.cdist(data.tokens, data.tokens) + 2 * torch.eye(9)
    assert distances.min() > 1e-3
    for run in data.queries:
        assert len(run.unique(dim=0)) == 8  # without replacement


# errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d, h: train_attention(d, h, torch.zeros(3, 6, 6).double(), lr=0.0), "lr must be positive, got 0.0"),
        (
            lambda d, h: train_attention(d, h, (torch.zeros(3, 6, 2).double(), torch.zeros(3, 6, 2).double()), steps=0),
            "steps must be positive, got 0",
        ),
        (
            lambda d, h: regularization_path(d, h, torch.ones(1, 3, 6, 6).double(), [2.0, 1.0], parametrization="W"),
            r"radii must be positive and increasing, got \[2.0, 1.0\]",
        ),
        (
            lambda d, h: minimum_norm_svm(np.ones((2, 3, 3)), "nuc", offsets=np.zeros(2)),
            "offsets are only supported with norm='fro', got norm='nuc': leave them out",
        ),
        (
            lambda d, h: patch_problems(digits(), 1, classes=(0, 1), n_per_class=11, d=4, generator=generator("p")),
            "every class needs at least 11 images with distinct patches, got 10: lower n_per_class",
        ),
        (
            lambda d, h: patch_problems(digits(), 1, classes=(0, 1), n_per_class=2, d=200, generator=generator("p")),
            "d must be at most 144, the pixels of a patch, got 200: use larger patches",
        ),
    ],
)
def test_errors_name_what_is_allowed_and_what_came(call, message):
    data, head = draw()
    with pytest.raises(ValueError, match=message):
        call(data, head)
