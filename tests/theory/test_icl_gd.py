"""Properties of the linear attention layer, its closed forms and its relaxation; check numbers are the brief's."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group, wishart
from sklearn.linear_model import Ridge

from glocal.seeding import torch_generator
from glocal.theory.icl_gd import (
    LayerWeights,
    family_step_size,
    fit_gradient_steps,
    gradient_step_predictions,
    init_layer,
    layer_predictions,
    layer_products,
    optimal_loss,
    optimal_step_size,
    readout,
    ridge_predictions,
    squared_error,
    train,
)
from glocal.theory.icl_gd_data import FAMILIES, Tasks, linear_tasks, nonlinear_tasks, table_rows, table_tasks
from glocal.theory.icl_gd_lifted import (
    StackWeights,
    coefficient_matrix,
    fourth_moment_matrix,
    init_stack,
    lift,
    lifted_features,
    lifted_loss,
    matrix_coefficients,
    stack_losses,
    stack_predictions,
    token_pairs,
)


def generator(*names):
    return torch_generator(0, *names)


def draw(runs=2, tasks=4, n=6, d=3, noise=0.5, name="tasks", **options):
    return linear_tasks(runs, tasks, n, d, noise=noise, generator=generator(name), **options)


def gradient_step_layer(matrix):
    """The construction of Theorem 1: u = e_{d+1} and A = diag(M, 0)."""
    d = matrix.shape[-1]
    e = torch.eye(d + 1, dtype=torch.float64)
    a = torch.zeros(d + 1, d + 1, dtype=torch.float64)
    a[:d, :d] = matrix
    return LayerWeights(e[None], a[None], e[None], e[None, -1])


# Check 1


@pytest.mark.parametrize("is_softmax", [False, True])
def test_layer_equals_a_loop_over_tokens(is_softmax):
    tasks = draw()
    weights = init_layer(2, 3, generator=generator("w"), std=1.0)
    predictions = layer_predictions(weights, tasks, is_softmax=is_softmax)
    for r in range(2):
        w_k, w_q, w_v, h = (array[r] for array in weights)
        for t in range(4):
            query = torch.cat([tasks.query[r, t], torch.zeros(1, dtype=torch.float64)])
            terms, scores = [], []
            for i in range(6):
                token = torch.cat([tasks.x[r, t, i], tasks.y[r, t, i : i + 1]])
                terms.append(h @ w_v @ token)
                scores.append((w_k @ token) @ (w_q @ query))
            mixing = torch.stack(scores).softmax(0) if is_softmax else torch.stack(scores) / 6
            expected = mixing @ torch.stack(terms)
            assert abs(predictions[r, t] - expected) < 1e-12 * max(1, abs(expected))


def test_the_last_column_of_a_meets_the_empty_slot():
    tasks, weights = draw(runs=1), init_layer(1, 3, generator=generator("w"), std=1.0)
    changed = weights.query.clone()
    changed[..., -1] += 5
    same = layer_predictions(weights._replace(query=changed), tasks)
    torch.testing.assert_close(same, layer_predictions(weights, tasks))


def test_readout_ignores_the_sign_and_scale_that_move_between_arrays():
    weights = init_layer(2, 3, generator=generator("w"))
    moved = weights._replace(value=-2 * weights.value, key=-4 * weights.key, query=weights.query / 8)
    for a, b in zip(readout(*layer_products(weights), 5), readout(*layer_products(moved), 5), strict=True):
        torch.testing.assert_close(a, b)
        assert a.abs().max() > 0


# Check 2


def test_the_construction_is_one_autograd_step_on_least_squares():
    tasks, eta = draw(runs=1), 0.07
    layer = gradient_step_layer(eta * 6 * torch.eye(3, dtype=torch.float64))  # times n: the layer divides by it
    predictions = layer_predictions(layer, tasks)[0]
    for t in range(4):
        w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        loss = 0.5 * (tasks.x[0, t] @ w - tasks.y[0, t]).square().sum()
        (gradient,) = torch.autograd.grad(loss, w)
        assert abs(predictions[t] - tasks.query[0, t] @ (-eta * gradient)) < 1e-12
    torch.testing.assert_close(predictions, gradient_step_predictions(tasks, torch.full((1, 1), eta).double())[0])
    read = readout(*layer_products(layer), 6)
    torch.testing.assert_close(read.matrix[0], eta * torch.eye(3, dtype=torch.float64))
    assert read.label.abs().max() == 0
    assert read.inputs.abs().max() == 0


def test_two_steps_are_the_second_krylov_polynomial():
    tasks, eta = draw(runs=1), (0.05, 0.02)
    w = torch.zeros(1, 4, 3, 1, dtype=torch.float64)
    for size in eta:
        w = w - size * tasks.x.mT @ (tasks.x @ w - tasks.y[..., None])
    coefficients = torch.tensor([[eta[0] + eta[1], -eta[0] * eta[1]]], dtype=torch.float64)
    expected = (tasks.query * w.squeeze(-1)).sum(-1)
    torch.testing.assert_close(gradient_step_predictions(tasks, coefficients), expected)


# Check 3


def test_second_moment_of_a_wishart_matrix():
    n, d = 7, 3
    sample = wishart(df=n, scale=np.eye(d), seed=0).rvs(200_000)
    second = (sample @ sample).mean(0)
    np.testing.assert_allclose(np.diag(second), n * (n + d + 1), rtol=0.01)
    assert np.abs(second - np.diag(np.diag(second))).max() < 0.01 * n * (n + d + 1)


# Check 4


@pytest.mark.parametrize(("n", "d", "noise"), [(20, 5, 0.5), (6, 3, 0.0), (10, 3, 1.5)])
def test_step_size_and_loss_are_vertex_and_value_of_the_sampled_parabola(n, d, noise):
    tasks = draw(runs=1, tasks=200_000, n=n, d=d, noise=noise, name="parabola")
    eta = fit_gradient_steps(tasks, 1)
    assert eta.item() == pytest.approx(optimal_step_size(n, d, noise), rel=0.01)
    at_theory = torch.full((1, 1), optimal_step_size(n, d, noise), dtype=torch.float64)
    loss = squared_error(gradient_step_predictions(tasks, at_theory), tasks)
    assert loss.item() == pytest.approx(optimal_loss(n, d, noise), rel=0.015)


# Check 5


def test_the_certificate_finds_the_gradient_step_and_nothing_else():
    n, d, noise = 10, 3, 0.5
    stream = generator("certificate")
    tasks = linear_tasks(1, 200_000, n, d, noise=noise, generator=stream)
    loss = lifted_loss(lambda count: tasks, 200_000)
    solution = loss.minimiser()
    assert loss.second.shape == (1, 30, 30)
    matrix = coefficient_matrix(solution, n)[0]
    eta = optimal_step_size(n, d, noise)
    assert eta == pytest.approx(1 / 14.25)
    np.testing.assert_allclose(matrix.diagonal(), eta, rtol=0.03)
    step = matrix_coefficients(eta * torch.eye(d, dtype=torch.float64), n)[None]
    # errors in units of their own standard deviation, which the sandwich estimator takes from the residuals
    phi = lifted_features(tasks)[0].flatten(1)
    residual = tasks.target[0] - phi @ solution.flatten()
    inverse = torch.linalg.inv(loss.second[0])
    spread = (inverse @ (phi.mT * residual.square() @ phi) @ inverse).diagonal().sqrt() / 200_000
    errors = (solution - step).flatten() / spread
    assert errors.abs().max() < 4
    assert errors.square().mean().sqrt() < 1.5
    standardised = solution.flatten() * phi.square().mean(0).sqrt()
    assert standardised[step.flatten() == 0].abs().max() < 0.02 * standardised.max()
    gain = (loss(step) - loss(solution)) / loss(step)
    assert 0 < gain.item() < 1e-3


def test_lifted_coefficients_reproduce_the_layer_and_its_loss():
    tasks, weights = draw(tasks=50), init_layer(2, 3, generator=generator("w"), std=1.0)
    coefficients = lift(*layer_products(weights))
    lifted = (lifted_features(tasks) * coefficients[:, None]).sum((2, 3))
    torch.testing.assert_close(lifted, layer_predictions(weights, tasks))
    loss = lifted_loss(lambda count: tasks, 50)
    torch.testing.assert_close(loss.of_layer(weights), squared_error(layer_predictions(weights, tasks), tasks))


def test_minimiser_equals_numpy_least_squares_and_bounds_every_layer():
    tasks = draw(runs=1, tasks=300)
    loss = lifted_loss(lambda count: tasks, 300)
    features = lifted_features(tasks)[0].flatten(1).numpy()
    expected, *_ = np.linalg.lstsq(features, tasks.target[0].numpy())
    np.testing.assert_allclose(loss.minimiser().flatten(), expected, rtol=1e-5, atol=1e-8)
    lowest = loss(loss.minimiser()).item()
    for k in range(5):
        assert loss.of_layer(init_layer(1, 3, generator=generator("w", k))).item() > lowest


def test_moments_do_not_depend_on_the_chunks_and_stack_as_runs():
    whole = draw(runs=1, tasks=30)
    parts = iter(
        [Tasks(*(getattr(whole, k)[:, i : i + 10] for k in ("x", "y", "query", "target"))) for i in (0, 10, 20)]
    )
    one = lifted_loss(lambda count: whole, 30, chunk=30)
    three = lifted_loss(lambda count: next(parts), 30, chunk=10)
    torch.testing.assert_close(one.second, three.second)
    torch.testing.assert_close(one.cross, three.cross)
    stacked = stack_losses([one, three])
    coefficients = torch.randn(2, 10, 3, generator=generator("beta"), dtype=torch.float64)
    torch.testing.assert_close(stacked(coefficients)[1:], three(coefficients[1:]))


def test_best_multiple_is_the_fitted_step():
    tasks = draw(runs=1, tasks=300)
    loss = lifted_loss(lambda count: tasks, 300)
    eta = loss.best_multiple(torch.eye(3, dtype=torch.float64), 6)
    torch.testing.assert_close(eta, fit_gradient_steps(tasks, 1)[:, 0])


def test_matrices_survive_the_round_trip_through_lifted_coefficients():
    matrix = torch.randn(2, 3, 3, generator=generator("m"), dtype=torch.float64)
    coefficients = matrix_coefficients(matrix, 7)
    torch.testing.assert_close(coefficient_matrix(coefficients, 7), matrix)
    assert int((coefficients != 0).sum()) == 18
    assert token_pairs(4).shape == (2, 10)


# Check 6


def covariance(d=3):
    q = torch.from_numpy(ortho_group(d, seed=0).rvs())
    return q @ torch.diag(torch.tensor([0.25, 1.0, 4.0], dtype=torch.float64)) @ q.mT


def test_change_of_variables_gives_the_same_loss_on_the_same_draws():
    sigma, eta = covariance(), 0.04
    isotropic, coloured = draw(tasks=50), draw(tasks=50, covariance=sigma)
    torch.testing.assert_close(isotropic.y, coloured.y)
    plain = layer_predictions(gradient_step_layer(eta * torch.eye(3, dtype=torch.float64)), replace_runs(isotropic))
    preconditioned = layer_predictions(gradient_step_layer(eta * torch.linalg.inv(sigma)), replace_runs(coloured))
    torch.testing.assert_close(plain, preconditioned, rtol=0, atol=1e-12)


def replace_runs(tasks):
    """The first run only."""
    return replace(tasks, **{k: getattr(tasks, k)[:1] for k in ("x", "y", "query", "target")})


def test_unmatched_weights_have_the_preconditioner_of_the_exercise():
    n, noise, sigma = 8, 0.5, covariance()
    stream = generator("unmatched")
    loss = lifted_loss(
        lambda count: linear_tasks(
            1, count, n, 3, noise=noise, generator=stream, covariance=sigma, is_matched=False, dtype=torch.float32
        ),
        200_000,
    )
    formula = torch.linalg.inv((n + 1) * sigma + (sigma.trace() + noise**2) * torch.eye(3, dtype=torch.float64))
    found = coefficient_matrix(loss.minimiser(), n)[0]
    assert (found - formula).norm() < 0.04 * formula.norm()
    other = optimal_step_size(n, 3, noise) * torch.linalg.inv(sigma)
    assert (found - other).norm() > 0.3 * formula.norm()


# Check 7


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_ridge_equals_sklearn(noise):
    tasks = draw(noise=noise)
    predictions = ridge_predictions(tasks, noise**2)
    for r, t in np.ndindex(2, 4):
        model = Ridge(alpha=noise**2, fit_intercept=False).fit(tasks.x[r, t], tasks.y[r, t])
        assert predictions[r, t].item() == pytest.approx(model.predict(tasks.query[r, t : t + 1])[0], abs=1e-10)


@pytest.mark.parametrize("n", [2, 6])
def test_no_penalty_gives_the_minimum_norm_solution(n):
    tasks = draw(n=n)
    predictions = ridge_predictions(tasks, 0.0)
    for r, t in np.ndindex(2, 4):
        w, *_ = np.linalg.lstsq(tasks.x[r, t].numpy(), tasks.y[r, t].numpy())
        assert predictions[r, t].item() == pytest.approx(w @ tasks.query[r, t].numpy(), abs=1e-6)


def test_ridge_with_the_noise_variance_beats_other_penalties_and_the_bound_on_all_layers():
    tasks = draw(runs=1, tasks=40_000, n=10, d=3, noise=1.0, name="bayes")
    bayes, *others = (squared_error(ridge_predictions(tasks, p), tasks).item() for p in (1.0, 0.2, 5.0))
    assert bayes < min(others)
    loss = lifted_loss(lambda count: tasks, 40_000)
    assert bayes < 0.9 * loss(loss.minimiser()).item()


# Check 8


def test_limits_of_the_closed_forms():
    assert optimal_loss(10**9, 5, 0.5) == pytest.approx(0.25, abs=1e-6)
    assert optimal_loss(0, 5, 0.5) == 5.25
    assert optimal_step_size(1, 1, 0.0) == pytest.approx(1 / 3)
    assert optimal_loss(1, 1, 0.0) == pytest.approx(2 / 3)
    assert optimal_loss(20, 5, 0.5) == pytest.approx(5.25 - 100 / 26.25)


# nonlinear families


def test_step_sizes_of_the_worked_families():
    assert family_step_size(20, 5, 0.0, "cubic") == pytest.approx(9 / (171 + 165))
    assert family_step_size(20, 5, 0.5, "sign") == pytest.approx((2 / math.pi) / (38 / math.pi + 5 * 1.25))
    assert family_step_size(20, 5, 0.0, "signed_relu") == pytest.approx(0.25 / (19 / 4 + 3.5))


@pytest.mark.parametrize("family", list(FAMILIES))
def test_family_moments_and_step_size_by_sampling(family):
    n, d, noise = 6, 3, 0.5
    tasks = nonlinear_tasks(1, 150_000, n, d, family=family, noise=noise, generator=generator(family))
    moment = torch.einsum("tid,ti->td", tasks.x[0], tasks.y[0]) / n  # E<m_1, m_2> over disjoint halves is E|a_f|^2
    halves = [torch.einsum("tid,ti->td", tasks.x[0, :, k::2], tasks.y[0, :, k::2]) / 3 for k in (0, 1)]
    assert moment.shape == (150_000, d)
    assert (halves[0] * halves[1]).sum(1).mean().item() == pytest.approx(FAMILIES[family].first_moment, rel=0.05)
    energy = (tasks.y.square() * tasks.x.square().sum(-1)).mean().item()
    assert energy == pytest.approx(FAMILIES[family].energy(d) + noise**2 * d, rel=0.03)
    eta = fit_gradient_steps(tasks, 1).item()
    assert eta == pytest.approx(family_step_size(n, d, noise, family), rel=0.05)


def test_without_the_random_sign_the_step_survives_but_not_without_rotations():
    gains = {}
    for name in ("relu", "shifted"):
        stream = generator(name)

        def sample(count, name=name, stream=stream):
            if name == "relu":
                return nonlinear_tasks(1, count, 8, 3, family="relu", generator=stream)
            return linear_tasks(1, count, 8, 3, noise=0.5, generator=stream, w_mean=torch.tensor([1.0, 0.0, 0.0]))

        loss = lifted_loss(sample, 60_000)
        eta = loss.best_multiple(torch.eye(3, dtype=torch.float64), 8)
        step = matrix_coefficients(eta[:, None, None] * torch.eye(3, dtype=torch.float64), 8)
        gains[name] = 1 - (loss(loss.minimiser()) / loss(step)).item()
    assert gains["relu"] < 0.005
    assert gains["shifted"] > 0.05


# training


def test_training_all_four_arrays_finds_the_closed_form():
    stream, n, d, noise = generator("train"), 20, 3, 0.5

    def objective(weights):
        tasks = linear_tasks(2, 256, n, d, noise=noise, generator=stream, dtype=torch.float32)
        return squared_error(layer_predictions(weights, tasks), tasks)

    start = init_layer(2, d, generator=generator("init"), dtype=torch.float32)
    weights, history = train(objective, start, steps=600, lr=0.02, record_every=100)
    eta = optimal_step_size(n, d, noise)
    read = readout(*layer_products(weights), n)
    assert (read.matrix / eta - torch.eye(d)).abs().max() < 0.1
    assert read.label.abs().max() < 0.05 * eta
    assert history.steps == (0, 100, 200, 300, 400, 500, 599)
    assert history.loss.shape == (2, 7)
    assert torch.equal(history.weights[0].key, start.key)


def test_training_on_moments_reaches_the_relaxation_and_the_preconditioner():
    sigma, n, noise, stream = covariance(), 12, 0.5, generator("moments")
    loss = lifted_loss(
        lambda count: linear_tasks(3, count, n, 3, noise=noise, generator=stream, covariance=sigma), 20_000
    )
    weights, _ = train(loss.of_layer, init_layer(3, 3, generator=generator("init")), steps=400, lr=0.04)
    assert (loss.of_layer(weights) / loss(loss.minimiser()) < 1.005).all()
    target = optimal_step_size(n, 3, noise) * torch.linalg.inv(sigma)
    found = readout(*layer_products(weights), n).matrix
    assert ((found - target).norm(dim=(1, 2)) < 0.05 * target.norm()).all()


def test_clipping_acts_on_each_run_alone():
    steep = torch.tensor([1e6, 1.0], dtype=torch.float64)
    init = (torch.ones(2, 1, dtype=torch.float64),)
    (both,), _ = train(lambda w: steep * w[0].square().squeeze(-1), init, steps=5, lr=0.1)
    (alone,), _ = train(lambda w: w[0].square().squeeze(-1), (init[0][:1],), steps=5, lr=0.1)
    torch.testing.assert_close(both[1], alone[0])


# deeper stacks


def test_a_stack_of_one_layer_is_the_layer():
    tasks, weights = draw(), init_layer(2, 3, generator=generator("w"), std=1.0)
    u, a = layer_products(weights)
    mix = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    mix[:, 0, -1] = u
    torch.testing.assert_close(
        stack_predictions(StackWeights(mix, a[:, None]), tasks), layer_predictions(weights, tasks)
    )


def test_two_stacked_layers_can_take_two_gradient_steps():
    tasks, eta, n, d = draw(), (0.05, 0.02), 6, 3
    mix = torch.zeros(2, 2, d + 1, d + 1, dtype=torch.float64)
    attend = torch.zeros_like(mix)
    mix[:, :, -1, -1] = 1
    for layer, size in enumerate(eta):  # labels become residuals y - Xw, the query's slot holds -w'x_q
        attend[:, layer, :d, :d] = -size * n * torch.eye(d)
    coefficients = torch.tensor([[eta[0] + eta[1], -eta[0] * eta[1]]] * 2, dtype=torch.float64)
    expected = gradient_step_predictions(tasks, coefficients)
    torch.testing.assert_close(stack_predictions(StackWeights(mix, attend), tasks), -expected)
    assert init_stack(2, d, 3, generator=generator("s")).mix.shape == (2, 3, 4, 4)


# real covariates


def test_rows_are_whitened_and_queries_never_in_their_context():
    rows, labels = table_rows("diabetes")
    assert rows.shape == (442, 10)
    torch.testing.assert_close(rows.mT @ rows / 442, torch.eye(10, dtype=torch.float64))
    assert abs(labels.mean()) < 1e-12
    tasks = table_tasks(rows[:3], 1, 500, 5, generator=generator("rows"), labels=labels[:3])
    assert (tasks.x[0] - tasks.query[0, :, None]).abs().amax(-1).min() > 1e-6
    index = (tasks.x[0, :, :, None] == rows[:3]).all(-1).double().argmax(-1)
    assert torch.equal(tasks.y[0], labels[index])
    fake, _ = table_rows("diabetes", fake=True)
    assert fake.shape == rows.shape


def test_fourth_moments_predict_the_layer_on_real_and_on_gaussian_rows():
    gaussian = torch.randn(200_000, 4, generator=generator("g"), dtype=torch.float64)
    expected = optimal_step_size(20, 4, 0.0) * torch.eye(4, dtype=torch.float64)
    assert (fourth_moment_matrix(gaussian, 20) - expected).norm() < 0.01 * expected.norm()
    rows, _ = table_rows("diabetes")
    tasks = table_tasks(rows, 1, 40_000, 20, generator=generator("real"))
    gram = tasks.x.mT @ tasks.x
    sampled = 20 * torch.linalg.inv((gram @ gram).mean((0, 1)))  # normal equations of M, query averaged out
    formula = fourth_moment_matrix(rows, 20)
    assert (sampled - formula).norm() < 0.02 * formula.norm()
    scalar = formula.trace() / 10 * torch.eye(10, dtype=torch.float64)
    assert (sampled - scalar).norm() > 0.05 * formula.norm()


def test_noise_per_run():
    tasks = draw(runs=2, tasks=4000, noise=torch.tensor([0.0, 2.0]))
    same = draw(runs=2, tasks=4000, noise=0.0)
    residual = (tasks.y - same.y).std(dim=(1, 2))
    assert residual[0] == 0
    assert residual[1].item() == pytest.approx(2.0, rel=0.05)


# errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: nonlinear_tasks(1, 1, 2, 2, family="cube", generator=generator("e")),
            "family must be one of cubic, sign, signed_relu, network, relu, got 'cube'",
        ),
        (
            lambda: draw(covariance=torch.diag(torch.tensor([1.0, 1.0, 0.0]))),
            "covariance must be positive definite, got smallest eigenvalue 0: add a ridge to it",
        ),
        (lambda: table_rows("wine"), "the table of covariates must be 'diabetes', got 'wine'"),
        (lambda: ridge_predictions(draw(), -1.0), "penalty must not be negative, got -1.0"),
        (lambda: lifted_loss(lambda count: draw(), 0), "n_tasks must be positive, got 0"),
        (
            lambda: train(lambda w: w[0].sum(1), (torch.ones(1, 1),), steps=0),
            "steps must be positive, got 0",
        ),
        (
            lambda: table_tasks(torch.ones(1, 2), 1, 1, 2, generator=generator("e")),
            "rows must hold at least 2 examples, a query and a context, got 1",
        ),
    ],
)
def test_errors_name_what_is_allowed_and_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
