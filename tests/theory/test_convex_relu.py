"""Properties of convex training and its baselines; check numbers are those of the brief."""

import itertools
import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from sklearn.linear_model import Lasso

from glocal.data import load
from glocal.data.types import ImageData, TableData
from glocal.seeding import numpy_generator, torch_generator
from glocal.theory.convex_relu import (
    LeastSquaresStep,
    Network,
    admm,
    convex_objective,
    enumerate_patterns,
    group_prox,
    n_patterns,
    network_objective,
    predict,
    predict_adjoint,
    recover_network,
    sample_patterns,
)
from glocal.theory.convex_relu_backprop import (
    Attack,
    accuracy,
    hinge_loss,
    objective_gradient,
    random_network,
    train_network,
)
from glocal.theory.convex_relu_data import binary_problems, box_noise
from glocal.theory.convex_relu_programs import (
    convex_program,
    largest_useful_beta,
    pattern_gain,
    sampled_lasso,
    violation_bound,
)
from glocal.theory.convex_relu_robust import is_usable, robust_first_order, robust_hinge_objective, usable_patterns


def generator(*names):
    return torch_generator(0, *names)


def draw(runs=2, n=12, d=4, p=10, name="data"):
    g = generator(name)
    x = torch.randn(runs, n, d, generator=g, dtype=torch.float64)
    x[..., -1] = 1
    y = torch.randn(runs, n, generator=g, dtype=torch.float64).sign()
    return x, y, sample_patterns(x, p, generator=g)


def solve(x, y, patterns, **options):
    return [convex_program(a.numpy(), b.numpy(), c.numpy(), **options) for a, b, c in zip(x, y, patterns, strict=True)]


def stacked(solutions):
    return torch.as_tensor(np.stack([s.weights for s in solutions]))


# Check 1


def test_admm_reaches_the_value_of_cvxpy():
    x, y, patterns = draw()
    reference = np.array([s.objective for s in solve(x, y, patterns, beta=0.1)])
    trace = admm(x, y, patterns, beta=0.1, rho=0.3, steps=3000, record=(10,))
    values = convex_objective(x, y, patterns, trace.final, 0.1).numpy()
    np.testing.assert_allclose(values, reference, rtol=1e-3)
    assert (trace.residuals[-1] < 1e-2 * trace.residuals[0]).all()
    network = network_objective(x, y, recover_network(trace.final), 0.1).numpy()  # feasible up to the residual
    np.testing.assert_allclose(network, reference, rtol=0.02)
    assert trace.steps == (10, 3000)


def test_admm_forgets_its_start():
    x, y, patterns = draw()
    init = torch.randn(2, 2, 10, 4, generator=generator("init"), dtype=torch.float64)
    runs = [admm(x, y, patterns, beta=0.1, rho=0.3, steps=1500, init=start).final for start in (None, init)]
    fits = [predict(x, patterns, w) for w in runs]
    assert (fits[0] - fits[1]).abs().max() < 0.03
    assert predict(x, patterns, init).abs().max() > 1


def test_both_linear_solvers_invert_the_system_and_give_the_same_iterates():
    x, y, patterns = draw()
    right = torch.randn(2, 2, 10, 4, generator=generator("right"), dtype=torch.float64)
    rho = 0.3
    for solver in ("cholesky", "woodbury"):
        u = LeastSquaresStep(x, patterns, rho, solver)(right)
        # M u with the operators: u + F'F u / rho + G'G u, where G'G u = X'X u for every group
        product = u + predict_adjoint(x, patterns, predict(x, patterns, u)) / rho + u @ (x.mT @ x)[:, None]
        assert (product - right).abs().max() < 1e-9
    ends = [admm(x, y, patterns, beta=0.1, steps=50, solver=solver).final for solver in ("cholesky", "woodbury")]
    assert (ends[0] - ends[1]).abs().max() < 1e-8
    prepared = LeastSquaresStep(x, patterns, 0.1, "cholesky")
    assert torch.equal(admm(x, y, patterns, beta=0.1, steps=50, solver=prepared).final, ends[0])


def test_adjoint():
    x, _, patterns = draw()
    u = torch.randn(2, 2, 10, 4, generator=generator("u"), dtype=torch.float64)
    r = torch.randn(2, 12, generator=generator("r"), dtype=torch.float64)
    left = (predict(x, patterns, u) * r).sum()
    assert (left - (u * predict_adjoint(x, patterns, r)).sum()).abs() < 1e-10


def test_exact_program_converges_far_below_the_sublinear_rate():
    x = torch.randn(6, 8, 2, generator=generator("plane"), dtype=torch.float64)
    y = torch.randn(6, 8, generator=generator("plane", "y"), dtype=torch.float64).sign()
    patterns = torch.stack([enumerate_patterns(part) for part in x])
    trace = admm(x, y, patterns, beta=0.1, steps=4000, record=(2000,))
    fits = torch.stack([predict(x, patterns, w) for w in trace.weights])
    distance = ((fits[0] - fits[1]).norm(dim=-1) / fits[1].norm(dim=-1)).clamp_min(1e-16)
    assert distance.log10().mean() < -math.log10(2000) - 1


# Checks 2 and 3


def test_recovery_preserves_the_objective_and_balances_the_neurons():
    x, y, patterns = draw()
    solutions = solve(x, y, patterns, beta=0.1)
    network = recover_network(stacked(solutions))
    values = network_objective(x, y, network, 0.1)
    for r, solution in enumerate(solutions):
        assert values[r].item() == pytest.approx(solution.objective, rel=1e-6)
        assert solution.loss + 0.1 * np.linalg.norm(solution.weights, axis=-1).sum() == pytest.approx(
            solution.objective, rel=1e-9
        )
    product = network.hidden.norm(dim=1) * network.output.abs()
    assert network.penalty.numpy() == pytest.approx(product.sum(1).numpy(), rel=1e-12)
    unbalanced = Network(2 * network.hidden, network.output / 2)
    assert (unbalanced(x) - network(x)).abs().max() < 1e-12
    assert (unbalanced.penalty > 1.5 * network.penalty).all()


def test_recovered_signs_and_width():
    weights = torch.zeros(1, 2, 2, 3, dtype=torch.float64)
    weights[0, 0, 1] = torch.tensor([4.0, 0.0, 0.0])
    weights[0, 1, 0] = torch.tensor([0.0, 9.0, 0.0])
    network = recover_network(weights)
    assert network.output[0].tolist() == [0, 2, -3, 0]
    assert network.hidden[0, :, 1].tolist() == [2, 0, 0]
    assert network.hidden[0, :, 2].tolist() == [0, 3, 0]
    assert network.width.tolist() == [2]


# Check 4


def test_number_of_patterns():
    for n in (3, 8, 13):
        x = torch.randn(n, 2, generator=generator("count", n), dtype=torch.float64)
        patterns = enumerate_patterns(x)
        assert len(torch.unique(patterns, dim=0)) == len(patterns) == n_patterns(n, 2) == 2 * n
        sampled = sample_patterns(x[None], 2 * n, generator=generator("all", n))[0]
        assert {tuple(row) for row in sampled.tolist()} == {tuple(row) for row in patterns.tolist()}
    assert n_patterns(4, 3) == 14  # Cover: 2 (1 + 3 + 3)


def test_samples_are_distinct_and_realised_and_too_many_are_refused():
    x, _, patterns = draw(p=30)
    for r in range(2):
        assert len(torch.unique(patterns[r], dim=0)) == 30
        assert all(is_usable(x[r].numpy(), row.numpy(), 0.0, n_fixed=0) for row in patterns[r, :5])
    with pytest.raises(ValueError, match="count must be at most the number of patterns"):
        sample_patterns(x[:, :2, :], 5, generator=generator("few"), max_draws=1000)


# Check 5


def test_group_prox_equals_cvxpy_and_vanishes_below_the_threshold():
    t = torch.tensor([[0.3, -0.7, 0.4], [0.1, 0.05, -0.1]], dtype=torch.float64)
    ours = group_prox(t, 0.25)
    for row, point in zip(ours, t.numpy(), strict=True):
        variable = cp.Variable(3)
        cp.Problem(cp.Minimize(0.25 * cp.norm(variable) + 0.5 * cp.sum_squares(variable - point))).solve(
            solver="CLARABEL"
        )
        np.testing.assert_allclose(row.numpy(), variable.value, atol=1e-5)
    assert (ours[1] == 0).all()
    assert ours[0].norm().item() == pytest.approx(t[0].norm().item() - 0.25)


# Check 6


def test_zero_network_from_the_largest_useful_beta_on():
    x, y, patterns = (part[0].numpy() for part in draw())
    largest = largest_useful_beta(x, y, patterns)
    above, below = (convex_program(x, y, patterns, beta=factor * largest) for factor in (1.01, 0.95))
    assert np.abs(above.weights).max() < 1e-4
    assert above.objective == pytest.approx(0.5 * len(y), rel=1e-5)
    assert np.abs(below.weights).max() > 1e-3


def test_pattern_gain_equals_cvxpy_and_decides_improvement():
    x, y, patterns = (part[0].numpy() for part in draw(p=24))
    for row in patterns[:4]:
        u = cp.Variable(4)
        cone = [cp.multiply(2.0 * row - 1, x @ u) >= 0, cp.norm(u) <= 1]
        values = []
        for sign in (1, -1):
            problem = cp.Problem(cp.Maximize(sign * (row * y) @ x @ u), cone)
            values.append(problem.solve(solver="CLARABEL"))
        assert pattern_gain(x, y, row) == pytest.approx(max(values), rel=1e-5)
    known, beta = patterns[:6], 0.1
    solution = convex_program(x, y, known, beta=beta)
    residual = y - ((solution.weights[0] - solution.weights[1]) @ x.T * known).sum(0)
    assert max(pattern_gain(x, residual, row) for row in known) < beta * (1 + 1e-4)  # dual feasible
    improves = []
    for row in patterns[6:]:
        larger = convex_program(x, y, np.vstack([known, row]), beta=beta)
        improves.append(larger.objective < solution.objective * (1 - 1e-6))
        assert improves[-1] == (pattern_gain(x, residual, row) > beta * (1 + 1e-3))
    assert any(improves)
    assert not all(improves)


# Check 7


@pytest.mark.parametrize("beta", [0.05, 1.0])
def test_sampled_lasso_equals_coordinate_descent_and_cvxpy(beta):
    x, y, _ = (part[0].numpy() for part in draw(n=20))
    u = numpy_generator(0, "u").standard_normal((60, 4))
    features = np.maximum(x @ u.T, 0)

    def objective(a):
        return 0.5 * np.square(features @ a - y).sum() + beta * np.abs(a).sum()

    ours = sampled_lasso(x, y, u, beta=beta)
    theirs = Lasso(alpha=beta / 20, fit_intercept=False, tol=1e-8, max_iter=200_000).fit(features, y).coef_
    assert objective(ours) == pytest.approx(objective(theirs), rel=1e-5)
    a = cp.Variable(60)
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(features @ a - y) + beta * cp.norm1(a)))
    assert objective(ours) == pytest.approx(problem.solve(solver="CLARABEL"), rel=1e-5)
    # its neurons are those of a network with the same objective
    network = Network(torch.as_tensor((u * np.sqrt(np.abs(ours))[:, None]).T)[None], torch.zeros(1, 60).double())
    network = Network(network.hidden, torch.as_tensor(np.sign(ours) * np.sqrt(np.abs(ours)))[None])
    assert (network(torch.as_tensor(x)[None])[0].numpy() - features @ ours) == pytest.approx(np.zeros(20), abs=1e-10)


# Check 8


def test_robust_program_without_radius_is_the_standard_one_and_grows_with_it():
    x, y, patterns = draw(n=10)
    values = [
        solve(x, y, patterns, beta=0.01, loss="hinge", epsilon=e)[0].objective for e in (0.0, 1e-7, 0.05, 0.1, 0.3)
    ]
    assert values[0] == pytest.approx(values[1], abs=1e-5)
    assert all(b >= a - 1e-7 for a, b in itertools.pairwise(values))
    assert values[3] > values[0] + 1e-3
    squared = [solve(x, y, patterns, beta=0.01, epsilon=e)[0].objective for e in (0.0, 1e-6, 0.1)]
    assert squared[0] == pytest.approx(squared[1], abs=1e-4)
    assert squared[2] > squared[0] + 1e-3


@pytest.mark.parametrize("epsilon", [0.2, 0.3])
def test_loss_of_the_robust_program_bounds_every_attack(epsilon):
    x, y, patterns = draw(n=10, p=20)
    patterns = torch.cat([torch.ones(2, 1, 10, dtype=torch.bool), patterns], 1)
    solutions = solve(x, y, patterns, beta=0.01, loss="hinge", epsilon=epsilon)
    network, bound = recover_network(stacked(solutions)), np.array([s.loss for s in solutions])
    attacked = Attack(epsilon, 50)(network, x, y)
    losses = hinge_loss(network, attacked, y).numpy()
    assert (losses <= bound + 1e-6).all()
    assert (bound - losses < 0.05).all()  # and it is not an empty bound
    assert (losses > hinge_loss(network, x, y).numpy() + 1e-3).any()
    objective, violation = robust_hinge_objective(x, y, patterns, stacked(solutions), beta=0.01, epsilon=epsilon)
    assert objective.numpy() == pytest.approx([s.objective for s in solutions], rel=1e-6)
    assert (violation < 1e-5).all()


def test_all_active_pattern_alone_is_the_linear_classifier():
    x, y, _ = draw(n=30, d=3)
    ones = np.ones((1, 30), dtype=bool)
    solution = convex_program(x[0].numpy(), y[0].numpy(), ones, beta=1e-7, loss="hinge")
    # with a vanishing penalty it minimises the plain hinge loss over all linear classifiers: a linear program
    signed = x[0].numpy() * y[0].numpy()[:, None]
    bounds = [(None, None)] * 3 + [(0, None)] * 30
    cost = np.append(np.zeros(3), np.full(30, 1 / 30))
    linear = linprog(cost, A_ub=-np.hstack([signed, np.eye(30)]), b_ub=-np.ones(30), bounds=bounds)
    assert linear.fun > 0.1
    assert solution.loss == pytest.approx(linear.fun, abs=1e-4)


def test_usable_patterns():
    x = np.array([[1.0, 1.0], [-1.0, 1.0], [0.2, 1.0]])  # one input, one bias
    right, middle = np.array([True, False, True]), np.array([False, False, True])
    assert is_usable(x, right, 0.5)  # threshold -0.4: distance 0.6 on both sides
    assert not is_usable(x, right, 0.7)
    assert not is_usable(x, middle, 0.0)  # no half-line contains the point in the middle only
    kept = usable_patterns(x, np.stack([middle, right, ~right]), 0.5, 2)
    assert kept.tolist() == [[True] * 3, right.tolist()]
    y = np.array([1.0, -1.0, 1.0])
    unusable = convex_program(x, y, right[None], beta=1e-3, loss="hinge", epsilon=0.7)
    assert np.abs(unusable.weights).max() < 1e-5


def test_first_order_solver_comes_close_to_the_interior_point():
    x, y, patterns = draw(n=10)
    patterns = torch.cat([torch.ones(2, 1, 10, dtype=torch.bool), patterns[:, :4]], 1)
    exact = [s.objective for s in solve(x, y, patterns, beta=0.05, loss="hinge", epsilon=0.1)]
    weights = robust_first_order(x, y, patterns, beta=0.05, epsilon=0.1, steps=1000)
    objective, violation = robust_hinge_objective(x, y, patterns, weights, beta=0.05, epsilon=0.1)
    assert objective.numpy() == pytest.approx(exact, rel=0.02)
    assert (violation < 0.02).all()


# Check 9


@pytest.mark.parametrize("beta", [0.1, 0.4, 1.5])
def test_one_example(beta):
    x = y = torch.ones(1, 1, dtype=torch.float64)
    patterns = torch.ones(1, 1, 1, dtype=torch.bool)
    expected = beta - beta**2 / 2 if beta < 1 else 0.5
    solution = convex_program(np.ones((1, 1)), np.ones(1), np.ones((1, 1), dtype=bool), beta=beta, n_fixed=0)
    assert solution.objective == pytest.approx(expected, rel=1e-6)
    run = admm(x[None], y, patterns, beta=beta, rho=0.5, steps=500).final
    assert run[0, 0, 0, 0].item() == pytest.approx(max(1 - beta, 0), abs=1e-8)
    assert run[0, 1, 0, 0].item() == pytest.approx(0, abs=1e-8)


# The theorem, the sampling bound, and the baselines


def test_wide_backprop_ends_at_the_exact_optimum_and_never_below():
    x = torch.randn(1, 8, 2, generator=generator("plane"), dtype=torch.float64)
    y = torch.randn(1, 8, generator=generator("plane", "y"), dtype=torch.float64).sign()
    patterns = enumerate_patterns(x[0])[None]
    optimum = solve(x, y, patterns, beta=0.1)[0].objective
    start = random_network(10, 2, 50, generator=generator("start"))
    trained = train_network(x.repeat(10, 1, 1), y.repeat(10, 1), start, beta=0.1, lr=0.05, steps=1500)
    excess = network_objective(x.repeat(10, 1, 1), y.repeat(10, 1), trained, 0.1).numpy() / optimum - 1
    assert excess.min() > -1e-6
    assert excess.min() < 0.01


def test_violation_bound():
    assert violation_bound(20, 209) == pytest.approx(0.1)
    assert violation_bound(20, 5) == 1
    count, miss = 5000, 0.05
    expected = min(21 / (miss * 5001), 2 / count * (21 - math.log(miss)))
    assert violation_bound(20, count, 1 - miss) == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 1.5"):
        violation_bound(20, 10, 1.5)


@pytest.mark.parametrize("loss", ["squared", "hinge"])
def test_gradient_equals_autograd(loss):
    x, y, _ = draw()
    network = random_network(2, 4, 6, generator=generator("net"))
    leaves = [part.clone().requires_grad_() for part in (network.hidden, network.output)]
    variable = Network(leaves[0], leaves[1])
    if loss == "squared":
        value = network_objective(x, y, variable, 0.3).sum()
    else:
        value = (hinge_loss(variable, x, y) + 0.3 * variable.penalty).sum()
    for ours, theirs in zip(
        objective_gradient(x, y, network, 0.3, loss), torch.autograd.grad(value, leaves), strict=True
    ):
        assert (ours - theirs).abs().max() < 1e-10
        assert theirs.norm() > 0


def test_adam_equals_torch():
    x, y, _ = draw()
    network = random_network(2, 4, 6, generator=generator("net"))
    ours = train_network(x, y, network, beta=0.1, lr=0.02, steps=30)
    leaves = [part.clone().requires_grad_() for part in (network.hidden, network.output)]
    optimizer = torch.optim.Adam(leaves, lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    for _ in range(30):
        optimizer.zero_grad()
        network_objective(x, y, Network(leaves[0], leaves[1]), 0.1).sum().backward()
        optimizer.step()
        schedule.step()
    assert (ours.hidden - leaves[0]).abs().max() < 1e-8
    assert (ours.hidden - network.hidden).abs().max() > 0.1


def test_attack_stays_in_the_box_and_is_exact_for_a_linear_network():
    x, y, _ = draw()
    direction = torch.tensor([1.0, -2.0, 0.5, 0.3], dtype=torch.float64)
    hidden = torch.stack([direction, -direction], 1).expand(2, 4, 2)
    linear = Network(hidden, torch.tensor([1.0, -1.0], dtype=torch.float64).expand(2, 2))  # f(x) = direction' x
    for steps in (1, 10):
        attacked = Attack(0.1, steps)(linear, x, y)
        assert (attacked - x).abs().max() <= 0.1 + 1e-12
        assert torch.equal(attacked[..., -1], x[..., -1])
        worst = y * linear(x) - 0.1 * direction[:-1].abs().sum()
        assert (y * linear(attacked) - worst).abs().max() < 1e-10
    assert (accuracy(linear, attacked, y) <= accuracy(linear, x, y)).all()


def test_adversarial_training_resists_better():
    images = load("mnist5k")
    data = binary_problems(images, 2, classes=(3, 8), n=50, n_test=200, size=7, generator=generator("images"))
    start = random_network(2, 50, 8, generator=generator("start"))
    options = {"beta": 1e-3, "lr": 0.02, "steps": 100, "loss": "hinge"}
    plain, hard = (train_network(data.x, data.y, start, attack=a, **options) for a in (None, Attack(0.1, 10)))
    robust = [
        accuracy(net, Attack(0.1, 20)(net, data.x_test, data.y_test), data.y_test).mean() for net in (plain, hard)
    ]
    assert robust[1] > robust[0] + 0.1


# Data and messages


def test_table_problems_are_standardised_disjoint_and_end_with_the_bias():
    rows = torch.arange(80, dtype=torch.float32).reshape(20, 4).square()
    table = TableData(rows, torch.arange(20) % 2, ("a", "b"))
    data = binary_problems(table, 3, classes=(0, 1), n=12, n_test=50, size=3, generator=generator("table"))
    assert data.x.shape == (3, 12, 4)
    assert data.x_test.shape == (3, 8, 4)
    assert (data.x[..., -1] == 1 / 3).all()
    assert data.x[..., :-1].mean(1).abs().max() < 1e-9
    assert (data.x[..., :-1].std(1) - 1 / 3).abs().max() < 1e-9
    assert set(data.y.flatten().tolist()) == {-1.0, 1.0}
    with pytest.raises(ValueError, match="n must leave examples for the test, got n=20 of 20: lower n"):
        binary_problems(table, 1, classes=(0, 1), n=20, n_test=1, size=3, generator=generator("table"))


def test_image_problems_average_pixels_and_splits_stay_apart():
    images = ImageData(torch.rand(8, 1, 4, 4, generator=generator("pixels")), torch.arange(8) % 2, ("a", "b"))
    data = binary_problems(images, 1, classes=(1, 0), n=5, n_test=3, size=2, generator=generator("order"))
    assert data.x.shape == (1, 5, 5)
    assert data.x[0, :, :-1].mean(0).abs().max() < 1e-9
    assert data.x[0, :, -1].tolist() == [1] * 5
    fake = load("cifar10", fake=True)
    split = binary_problems(fake, 1, classes=(2, 8), n=6, n_test=4, size=7, generator=generator("cifar"))
    assert split.x.shape == (1, 6, 148)
    assert split.x_test.shape == (1, 4, 148)


def test_box_noise_leaves_the_bias():
    x, _, _ = draw()
    moved = box_noise(x, 0.2, generator=generator("noise"))
    assert torch.equal(moved[..., -1], x[..., -1])
    assert 0.15 < (moved - x).abs().max() <= 0.2


def test_messages():
    x, y, patterns = draw()
    with pytest.raises(ValueError, match=r"beta must be positive, got 0\.0"):
        admm(x, y, patterns, beta=0.0)
    with pytest.raises(ValueError, match="steps must be positive, got 0"):
        admm(x, y, patterns, beta=0.1, steps=0)
    arrays = [part[0].numpy() for part in (x, y, patterns)]
    with pytest.raises(ValueError, match="epsilon must not be negative, got -1"):
        convex_program(*arrays, beta=0.1, epsilon=-1.0)
