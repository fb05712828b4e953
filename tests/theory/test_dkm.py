"""Properties of deep kernel machines; check numbers are those of the brief."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import minimize

from glocal.data.errors import DataError
from glocal.seeding import torch_generator
from glocal.theory import dkm_sparse as sparse
from glocal.theory.dkm import (
    Problem,
    dkm_objective,
    fit,
    gram_kl,
    linear_solution,
    objective_and_gradient,
    output_log_likelihood,
)
from glocal.theory.dkm_baselines import ard_predictions, mlp_predictions
from glocal.theory.dkm_data import multi_index, regression_split, sine_bands, standardised, table_classes
from glocal.theory.dkm_kernels import KERNELS, alignment, deep_kernel, input_gram, kernel_named
from glocal.theory.dkm_lbfgs import minimise
from glocal.theory.dkm_network import finite_network, limiting_network
from glocal.theory.dkm_predict import Blocks, input_blocks, predict, propagate
from glocal.theory.dkm_uci import UCI_TABLES, load_uci, table_split
from glocal.theory.dkm_width import (
    WidePosterior,
    controlled_mean,
    excess_kurtosis,
    hamiltonian,
    scalar_posterior_mean,
)


def generator(*names):
    return torch_generator(0, *names)


def normal(*size, name="data"):
    return torch.randn(size, generator=generator(name), dtype=torch.float64)


def full(runs, *values):
    return torch.tensor([values] * runs, dtype=torch.float64)


def spd(runs, n, name="spd", freedom=None):
    x = normal(runs, n, freedom or 2 * n, name=name)
    return x @ x.mT / x.shape[2]


def problem(kernel="rbf", runs=2, n=6, k=2, nus=(1.0, 2.0), sigma2=0.1, jitter=1e-8):
    x = normal(runs, n, n + 3, name="inputs")
    nu, noise = full(runs, *nus), torch.full((runs,), sigma2, dtype=torch.float64)
    return Problem(input_gram(x), normal(runs, n, k, name="targets"), kernel, nu, noise, jitter)


# Check 1


def test_kl_equals_torch_distributions_and_has_the_stated_gradient():
    gram, kernel = spd(3, 5, "g").requires_grad_(), spd(3, 5, "k")
    zero = torch.zeros(3, 5, dtype=torch.float64)
    left, right = (torch.distributions.MultivariateNormal(zero, covariance_matrix=c) for c in (gram, kernel))
    ours = gram_kl(gram, kernel)
    torch.testing.assert_close(ours, torch.distributions.kl_divergence(left, right), atol=1e-10, rtol=0)
    (slope,) = torch.autograd.grad(ours.sum(), gram)
    inverse = torch.linalg.inv(gram.detach())
    torch.testing.assert_close(slope + slope.mT, torch.linalg.inv(kernel) - inverse, atol=1e-9, rtol=0)


@pytest.mark.parametrize("kernel", list(KERNELS))
def test_closed_form_gradient_equals_autograd(kernel):
    given = problem(kernel)
    bases = [torch.linalg.cholesky(g) for g in deep_kernel(given.gram, kernel, 2, given.jitter)]
    factors = (torch.eye(6) + 0.2 * normal(2, 2, 6, 6)).tril().requires_grad_()
    roots = [base @ w for base, w in zip(bases, factors.unbind(1), strict=True)]
    value = -dkm_objective(given, [root @ root.mT for root in roots])
    (expected,) = torch.autograd.grad(value.sum(), factors)
    ours, gradient = objective_and_gradient(given, bases, factors.detach())
    torch.testing.assert_close(ours, value.detach())
    torch.testing.assert_close(gradient, expected.tril(), atol=1e-10, rtol=1e-10)


def test_output_likelihood_equals_scipy():
    given = problem(runs=1)
    kernel = KERNELS["rbf"](given.gram)
    covariance = kernel[0].numpy() + 0.1 * np.eye(6)
    expected = sum(stats.multivariate_normal.logpdf(y, np.zeros(6), covariance) for y in given.targets[0].T.numpy())
    assert output_log_likelihood(kernel, given.targets, given.sigma2)[0].item() == pytest.approx(expected, rel=1e-12)


# Check 2


def test_wishart_log_density_per_unit_of_width_is_the_kl():
    width, kernel = 100_000, spd(1, 4, "k")[0]
    first, second = spd(2, 4, "g")
    densities = [stats.wishart.logpdf(g.numpy(), width, kernel.numpy() / width) / width for g in (first, second)]
    expected = -(gram_kl(first[None], kernel[None]) - gram_kl(second[None], kernel[None])).item()
    assert abs(expected) > 0.1
    assert densities[0] - densities[1] == pytest.approx(expected, abs=1e-3)


# Check 3


@pytest.mark.parametrize("kernel", list(KERNELS))
def test_large_nu_is_the_nngp_and_infinite_nu_exactly(kernel):
    for nu, tolerance in ((1e8, 1e-6), (math.inf, 1e-15)):
        given = problem(kernel, nus=(nu, nu))
        for ours, nngp in zip(fit(given).grams, deep_kernel(given.gram, kernel, 2, 1e-8), strict=True):
            assert ((ours - nngp).norm() / nngp.norm()).item() < tolerance


def test_distance_to_the_nngp_falls_like_one_over_nu():
    nus = torch.logspace(3, 6, 4, dtype=torch.float64)
    one = problem(runs=1)
    given = Problem(
        one.gram.expand(4, -1, -1),
        one.targets.expand(4, -1, -1),
        "rbf",
        nus[:, None].expand(-1, 2),
        one.sigma2.expand(4),
        one.jitter,
    )
    nngp = deep_kernel(one.gram, "rbf", 2, one.jitter)[-1]
    distance = (fit(given).grams[-1] - nngp).norm(dim=(1, 2))
    slope = np.polyfit(np.log(nus.numpy()), distance.log().numpy(), 1)[0]
    assert slope == pytest.approx(-1, abs=0.01)


# Check 4


def test_linear_machine_equals_the_closed_form():
    gram, targets = spd(4, 5, "g0"), normal(4, 5, 9)
    fitted = fit(Problem(gram, targets, "linear", full(4, 9.0, 9.0, 9.0), torch.zeros(4).double(), 0.0), steps=500)
    top = targets @ targets.mT / 9
    for ours, exact in zip(fitted.grams, linear_solution(gram, top, 3), strict=True):
        assert (ours - exact).abs().max().item() < 1e-5
        torch.testing.assert_close(exact, exact.mT)
        assert torch.linalg.eigvalsh(exact).min() > 0
    assert (fitted.gradient_norms < 1e-6).all()


def test_linear_closed_form_is_the_matrix_power_of_scipy():
    from scipy.linalg import fractional_matrix_power

    gram, top = spd(1, 4, "a"), spd(1, 4, "b")
    for layer, ours in enumerate(linear_solution(gram, top, 2), start=1):
        ratio = fractional_matrix_power(np.linalg.solve(gram[0].numpy(), top[0].numpy()), layer / 3)
        np.testing.assert_allclose(ours[0].numpy(), gram[0].numpy() @ ratio, atol=1e-10)


def test_scalar_linear_machine_is_a_geometric_mean():
    given = Problem(
        full(1, 2.0)[:, :, None], full(1, 3.0)[:, :, None], "linear", full(1, 1.0), torch.zeros(1).double(), 0.0
    )
    assert fit(given).grams[0].item() == pytest.approx(math.sqrt(2.0 * 9.0), rel=1e-8)


def test_unequal_weights_satisfy_the_stationarity_conditions():
    gram, targets, nus = spd(1, 4, "g0"), normal(1, 4, 8), (2.0, 5.0)
    fitted = fit(Problem(gram, targets, "linear", full(1, *nus), torch.zeros(1).double(), 0.0), steps=500)
    path = [gram[0], *(g[0] for g in fitted.grams), targets[0] @ targets[0].T / 8]
    steps = [torch.linalg.solve(a, b) - torch.eye(4) for a, b in itertools.pairwise(path)]
    for nu, step, other_nu, other in zip((2.0, 5.0), steps, (5.0, 8.0), steps[1:], strict=False):
        torch.testing.assert_close(nu * step, other_nu * other, atol=1e-6, rtol=1e-6)


# Check 5


def test_one_point_and_a_constant_kernel_learn_nothing():
    for y in (0.1, 10.0):
        given = Problem(full(1, 2.0)[:, :, None], full(1, y)[:, :, None], "rbf", full(1, 1.0), full(1, 0.1)[0], 0.0)
        assert fit(given).grams[0].item() == pytest.approx(1.0, abs=1e-12)


# Check 6


@pytest.mark.parametrize("kernel", list(KERNELS))
def test_predicting_at_the_training_inputs_returns_the_learned_matrices(kernel):
    x = normal(2, 6, 9, name="inputs")
    given = problem(kernel, jitter=0.0)
    fitted = fit(given)
    blocks = propagate(KERNELS[kernel], [given.gram, *fitted.grams], input_blocks(x, x), 0.0)
    torch.testing.assert_close(blocks.cross, fitted.grams[-1], atol=1e-6, rtol=0)
    torch.testing.assert_close(blocks.diagonal, fitted.grams[-1].diagonal(dim1=1, dim2=2), atol=1e-6, rtol=0)


def test_predictions_without_hidden_layers_are_those_of_scikit_learn():
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF

    x, x_test, y = normal(1, 20, 3), normal(1, 7, 3, name="test"), normal(1, 20, 2, name="y")
    given = Problem(input_gram(x), y, "rbf", torch.ones(1, 0).double(), full(1, 0.2)[0], 0.0)
    mean, variance = predict(fit(given), input_blocks(x, x_test))
    model = GaussianProcessRegressor(RBF(math.sqrt(3)), alpha=0.2, optimizer=None).fit(x[0].numpy(), y[0].numpy())
    expected, deviation = model.predict(x_test[0].numpy(), return_std=True)
    np.testing.assert_allclose(mean[0].numpy(), expected, atol=1e-10)
    np.testing.assert_allclose(variance[0].numpy(), deviation[:, 0] ** 2 + 0.2, atol=1e-10)


def test_infinite_nu_predicts_like_a_gaussian_process_with_the_composed_kernel():
    x, x_test, y = normal(1, 8, 4), normal(1, 5, 4, name="test"), normal(1, 8, 1, name="y")
    given = Problem(input_gram(x), y, "relu", full(1, math.inf, math.inf), full(1, 0.1)[0], 0.0)
    mean, variance = predict(fit(given), input_blocks(x, x_test))
    joint = deep_kernel(input_gram(torch.cat([x, x_test], 1)), "relu", 3)[-1][0]
    kernel, cross = joint[:8, :8] + 0.1 * torch.eye(8), joint[8:, :8]
    torch.testing.assert_close(mean[0], cross @ torch.linalg.solve(kernel, y[0]))
    expected = joint[8:, 8:] - cross @ torch.linalg.solve(kernel, cross.T)
    torch.testing.assert_close(variance[0], expected.diagonal() + 0.1)


# Check 7


def test_sparse_machine_on_all_points_is_the_full_machine():
    split = regression_split("multi_index", (25, 5, 15), seeds=[0, 1])
    given = Problem(input_gram(split.x), split.y, "rbf", full(2, 1.0, 3.0), full(2, 0.1)[:, 0], 0.0)
    fitted = fit(given, steps=300)
    machine = sparse.machine_of_fit(fitted, split.x)
    outputs = sparse.forward(machine, split.x_test, "rbf", 0.0)
    mean, variance = predict(fitted, input_blocks(split.x, split.x_test))
    torch.testing.assert_close(outputs.mean, mean, atol=1e-9, rtol=0)
    torch.testing.assert_close(outputs.variance + 0.1, variance, atol=1e-9, rtol=0)
    for ours, theirs in zip(outputs.grams, fitted.grams, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)
    trained = sparse.forward(machine, split.x, "rbf", 0.0)
    expected = sparse.gaussian_expectation(trained, split.y, machine.log_sigma2).sum(1)
    bound = expected - trained.output_kl - (given.nu * trained.gram_kl).sum(1)
    torch.testing.assert_close(bound, fitted.objective, atol=1e-8, rtol=0)


def test_sparse_propagation_is_that_of_test_points():
    split = regression_split("multi_index", (30, 5, 5), seeds=[0])
    inducing, points = split.x[:, :10], split.x[:, 10:]
    machine = sparse.initial_machine(inducing, split.y[:, :10], 2, "relu", jitter=1e-8)
    factors = machine.factors + 0.2 * normal(1, 2, 10, 10).tril()
    machine = sparse.SparseMachine(machine.inducing, factors, *machine.tensors()[2:])
    outputs = sparse.forward(machine, points, "relu", 1e-8)
    rule, grams = KERNELS["relu"], [input_gram(inducing), *outputs.grams]
    blocks = propagate(rule, grams, input_blocks(inducing, points), 1e-8)
    cross = rule.cross(blocks.cross, blocks.diagonal, grams[-1].diagonal(dim1=1, dim2=2))
    factor = torch.linalg.cholesky(rule(grams[-1], 1e-8))
    whitened = torch.linalg.solve_triangular(factor, cross.mT, upper=False).mT
    torch.testing.assert_close(outputs.mean, whitened @ machine.mean, atol=1e-8, rtol=0)
    for layer, (below, gram) in enumerate(itertools.pairwise(grams)):
        torch.testing.assert_close(outputs.gram_kl[:, layer], gram_kl(gram, rule(below, 1e-8)), atol=1e-7, rtol=1e-7)


def test_sparse_machine_without_layers_is_the_variational_gp_of_gpytorch():
    import gpytorch

    x, y, inducing = normal(1, 30, 3), normal(1, 30, 1, name="y"), normal(1, 6, 3, name="z")
    machine = sparse.initial_machine(inducing, normal(1, 6, 1, name="u"), 0, "rbf", sigma2=0.3)
    outputs = sparse.forward(machine, x, "rbf", 1e-6)
    ours = (sparse.gaussian_expectation(outputs, y, machine.log_sigma2).sum() - outputs.output_kl).item() / 30

    class Model(gpytorch.models.ApproximateGP):
        def __init__(self):
            distribution = gpytorch.variational.CholeskyVariationalDistribution(6)
            strategy = gpytorch.variational.VariationalStrategy(
                self, inducing[0], distribution, learn_inducing_locations=False, jitter_val=1e-6
            )
            super().__init__(strategy)
            self.mean_module = gpytorch.means.ZeroMean()
            self.covar_module = gpytorch.kernels.RBFKernel()

        def forward(self, inputs):
            return gpytorch.distributions.MultivariateNormal(self.mean_module(inputs), self.covar_module(inputs))

    model, likelihood = Model().double(), gpytorch.likelihoods.GaussianLikelihood().double()
    model.covar_module.lengthscale, likelihood.noise = math.sqrt(3), 0.3
    model.variational_strategy.variational_params_initialized.fill_(1)
    distribution = model.variational_strategy._variational_distribution
    distribution.variational_mean.data.copy_(machine.mean[0, :, 0])
    distribution.chol_variational_covar.data.copy_(machine.root[0])
    bound = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=30)
    with torch.no_grad():
        theirs = bound(model(x[0]), y[0, :, 0]).item()
    assert ours == pytest.approx(theirs, rel=1e-4)


# Check 8


def test_rbf_kernel_comes_from_distances():
    gram = spd(2, 5)
    left = gram.diagonal(dim1=1, dim2=2)
    half_distance = 0.5 * left[:, :, None] + 0.5 * left[:, None] - gram
    kernel = KERNELS["rbf"](gram)
    torch.testing.assert_close(kernel, (-half_distance).exp())
    assert (kernel.diagonal(dim1=1, dim2=2) == 1).all()
    x = normal(1, 5, 3)
    torch.testing.assert_close(KERNELS["rbf"](input_gram(x)), (-0.5 * torch.cdist(x, x).square() / 3).exp())


def test_relu_kernel_equals_a_wide_layer():
    gram = spd(1, 4, freedom=5)[0]
    features = torch.linalg.cholesky(gram) @ normal(4, 1_000_000, name="weights")
    active = features.relu()
    sampled = 2 * active @ active.T / active.shape[1]
    assert ((sampled - KERNELS["relu"](gram[None])[0]).abs() / gram.diagonal().mean()).max() < 0.01
    torch.testing.assert_close(KERNELS["relu"](gram[None])[0].diagonal(), gram.diagonal())


@pytest.mark.parametrize("kernel", ["rbf", "relu"])
def test_nngp_is_the_limit_of_sampled_deep_gaussian_processes(kernel):
    gram, width = spd(1, 4, freedom=5)[0], 20_000
    limit = deep_kernel(gram[None], kernel, 2)[-1][0]
    for layer in range(2):  # a deep Gaussian process, one layer of features after the other
        covariance = KERNELS[kernel](gram[None])[0]
        features = torch.linalg.cholesky(covariance) @ normal(4, width, name=f"layer{layer}")
        gram = features @ features.T / width
    assert ((gram - limit).norm() / limit.norm()).item() < 0.03  # two layers of 1 / sqrt(N) fluctuations


@pytest.mark.parametrize("kernel", ["rbf", "relu"])
def test_pullback_equals_autograd(kernel):
    gram, slope = spd(2, 5).requires_grad_(), normal(2, 5, 5, name="slope")
    slope = slope + slope.mT
    left = gram.diagonal(dim1=1, dim2=2)
    rule = KERNELS[kernel]
    if kernel == "relu":  # autograd of arccos is infinite on the diagonal: overwrite it
        value = rule.cross(gram, left, left).diagonal_scatter(left, dim1=1, dim2=2)
        keep = ~torch.eye(5, dtype=torch.bool)
        cosine = torch.where(keep, gram / (left[:, :, None] * left[:, None]).sqrt(), torch.zeros(()).double())
        theta, scale = cosine.arccos(), (left[:, :, None] * left[:, None]).sqrt()
        value = torch.where(keep, scale / math.pi * (theta.sin() + (math.pi - theta) * cosine), torch.diag_embed(left))
    else:
        value = rule.cross(gram, left, left)
    (expected,) = torch.autograd.grad((value * slope).sum(), gram)
    ours = rule.pullback(gram.detach(), slope)
    torch.testing.assert_close(ours, 0.5 * (expected + expected.mT), atol=1e-9, rtol=1e-9)


def test_optimum_is_permutation_equivariant():
    given = problem("relu")
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    turned = Problem(
        given.gram[:, order][:, :, order], given.targets[:, order], "relu", given.nu, given.sigma2, given.jitter
    )
    for plain, permuted in zip(fit(given, steps=300).grams, fit(turned, steps=300).grams, strict=True):
        torch.testing.assert_close(plain[:, order][:, :, order], permuted, atol=1e-5, rtol=0)
        assert (plain - deep_kernel(given.gram, "relu", 1)[0]).norm() > 0.1  # something was learned


# the optimum


def test_optimum_equals_scipy_on_the_plain_parametrisation():
    given = problem(runs=1, n=4, nus=(1.5, 0.7))
    rows, columns = torch.tril_indices(4, 4)
    start = [torch.linalg.cholesky(g)[0] for g in deep_kernel(given.gram, "rbf", 2, given.jitter)]

    def function(v):
        flat = torch.tensor(v, requires_grad=True)
        roots = torch.zeros(2, 4, 4, dtype=torch.float64).index_put(
            (torch.arange(2).repeat_interleave(10), rows.repeat(2), columns.repeat(2)), flat
        )
        value = -dkm_objective(given, [(v @ v.T)[None] for v in roots])[0]
        (slope,) = torch.autograd.grad(value, flat)
        return value.item(), slope.numpy()

    begin = torch.stack(start)[:, rows, columns].flatten().numpy()
    found = minimize(
        function, begin, jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 2000}
    )
    ours = fit(given, steps=500)
    assert ours.objective.item() == pytest.approx(-found.fun, abs=1e-8)
    best = torch.zeros(2, 4, 4, dtype=torch.float64)
    best[:, rows, columns] = torch.from_numpy(found.x).view(2, -1)
    for gram, root in zip(ours.grams, best, strict=True):
        torch.testing.assert_close(gram[0], root @ root.T, atol=1e-5, rtol=0)


def test_learned_matrices_beat_the_nngp_and_align_with_the_targets():
    given = problem(nus=(1.0, 1.0))
    nngp = deep_kernel(given.gram, "rbf", 2, given.jitter)
    fitted = fit(given)
    assert (fitted.objective > dkm_objective(given, nngp) + 0.1).all()
    outer = given.targets @ given.targets.mT
    assert (alignment(fitted.top_kernel, outer) > alignment(KERNELS["rbf"](nngp[-1]), outer)).all()


def test_a_perturbed_start_ends_at_the_same_optimum():
    given = problem(n=4)
    shifted = fit(given, steps=500, perturbation=0.2 * normal(2, 2, 4, 4, name="start"))
    torch.testing.assert_close(shifted.objective, fit(given, steps=500).objective, atol=1e-7, rtol=0)


def test_chunks_and_infinite_runs_do_not_disturb_each_other():
    given = problem(runs=3, nus=(1.0, 2.0))
    mixed = Problem(
        given.gram,
        given.targets,
        "rbf",
        torch.tensor([[1.0, 2.0], [math.inf] * 2, [1.0, 2.0]]).double(),
        given.sigma2,
        given.jitter,
    )
    together, apart, plain = fit(mixed), fit(mixed, chunk=1), fit(given)
    for a, b, c in zip(together.grams, apart.grams, plain.grams, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
        torch.testing.assert_close(a[[0, 2]], c[[0, 2]], atol=1e-6, rtol=0)
    torch.testing.assert_close(together.grams[-1][1], deep_kernel(given.gram, "rbf", 2, given.jitter)[-1][1])


def test_lbfgs_solves_quadratics_and_rosenbrock_side_by_side():
    matrices = spd(3, 8)
    vectors = normal(3, 8, name="b")

    def quadratic(x):
        product = (matrices @ x[..., None]).squeeze(-1)
        return (0.5 * x * product - vectors * x).sum(1), product - vectors

    found = minimise(quadratic, torch.zeros(3, 8).double(), steps=200)
    torch.testing.assert_close(found.x, torch.linalg.solve(matrices, vectors), atol=1e-7, rtol=0)
    assert (found.history.diff(dim=1) <= 0).all()

    def rosenbrock(x):
        a, b = x.unbind(1)
        slope = torch.stack([-400 * a * (b - a**2) - 2 * (1 - a), 200 * (b - a**2)], 1)
        return 100 * (b - a**2) ** 2 + (1 - a) ** 2, slope

    found = minimise(rosenbrock, torch.tensor([[-1.2, 1.0], [0.0, 0.0]]).double(), steps=200)
    torch.testing.assert_close(found.x, torch.ones(2, 2).double(), atol=1e-6, rtol=0)


# finite width


def test_log_density_of_the_bartlett_factor_is_wishart_times_likelihood():
    given = problem(runs=1, n=3)
    width = 7
    posterior = WidePosterior(given.gram, given.targets, torch.tensor([width]), "rbf", given.sigma2, given.jitter)
    factors = posterior.prior_factors(generator=generator("a")).expand(1, 3, 3)
    other = factors + 0.3 * normal(1, 3, 3).tril()
    density = posterior.log_density()
    kernel = KERNELS["rbf"](given.gram, given.jitter)

    def direct(a):
        gram = posterior.grams(a)
        likelihood = output_log_likelihood(KERNELS["rbf"](gram, given.jitter), given.targets, given.sigma2)[0].item()
        wishart = stats.wishart.logpdf(gram[0].numpy(), width, kernel[0].numpy() / width)
        jacobian = sum((3 - j) * math.log(abs(a[0, j, j].item())) for j in range(3))  # of A -> A A^T
        return wishart + width * likelihood + jacobian

    difference = (density(factors)[0] - density(other)[0]).item()
    assert difference == pytest.approx(direct(factors) - direct(other), abs=1e-8)


def test_log_density_gradient_equals_finite_differences():
    given = problem("relu", runs=2, n=4)
    posterior = WidePosterior(given.gram, given.targets, torch.tensor([2, 9]), "relu", given.sigma2, given.jitter)
    factors, density = posterior.prior_factors(generator=generator("a")), posterior.log_density()
    gradient = density(factors)[1]
    assert not gradient[0, :, 2:].any()  # a layer of width two has two columns
    for i, j in ((0, 0), (3, 1), (2, 1)):
        shift = torch.zeros_like(factors)
        shift[:, i, j] = 1e-6
        slope = (density(factors + shift)[0] - density(factors - shift)[0]) / 2e-6
        torch.testing.assert_close(slope, gradient[:, i, j], atol=1e-4, rtol=1e-5)


def test_hamiltonian_monte_carlo_samples_a_gaussian_and_the_score_removes_noise():
    precision = spd(1, 3)[0] + torch.eye(3)

    def density(x):
        slope = -x @ precision
        return 0.5 * (x * slope).sum(1), slope

    start = normal(200, 3, name="start")
    samples = hamiltonian(density, start, generator=generator("hmc"), groups=torch.zeros(200).long(), draws=150)
    flat = samples.states.flatten(0, 1)
    assert 0.7 < samples.acceptance.mean() < 0.9
    torch.testing.assert_close(flat.T @ flat / len(flat), torch.linalg.inv(precision), atol=0.02, rtol=0)
    controlled = controlled_mean(flat[None] + 5, density(flat)[1][None])
    torch.testing.assert_close(controlled, torch.full((1, 3), 5.0).double(), atol=1e-10, rtol=0)


@pytest.mark.parametrize("width", [2, 40])
def test_sampled_posterior_mean_equals_quadrature_at_one_point(width):
    runs = 300
    posterior = WidePosterior(
        torch.full((runs, 1, 1), 1.5).double(),
        torch.full((runs, 1, 1), 2.0).double(),
        torch.full((runs,), width),
        "linear",
        torch.full((runs,), 0.1).double(),
        0.0,
    )
    samples = posterior.sample(
        generator=generator("s"), groups=torch.zeros(runs).long(), warmup=60, draws=60, leapfrog=6
    )
    exact = scalar_posterior_mean(1.5, 4.0, width, 0.1)
    assert posterior.grams(samples.states).mean().item() == pytest.approx(exact, rel=0.03)


def test_finite_width_mean_approaches_the_optimum_like_one_over_the_width():
    given = Problem(full(1, 1.5)[:, :, None], full(1, 2.0)[:, :, None], "linear", full(1, 1.0), full(1, 0.1)[0], 0.0)
    star = fit(given).grams[0].item()
    gaps = [abs(scalar_posterior_mean(1.5, 4.0, width, 0.1) - star) for width in (200, 400)]
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.02)
    assert gaps[1] < 0.01 * star


def test_features_have_the_gram_matrix_as_covariance_and_the_predicted_kurtosis():
    draws, width = 150_000, 5
    posterior = WidePosterior(spd(1, 2), normal(1, 2, 1), torch.tensor([width]), "linear", full(1, 0.1)[0], 0.0)
    factor = torch.tensor([[1.5, 0.0], [0.7, 2.0]]).double()
    features = posterior.features(factor.expand(draws, 1, 2, 2), generator=generator("f"))[:, 0]
    gram = posterior.grams(factor[None])[0]
    torch.testing.assert_close(features.T @ features / draws, gram, atol=0.02, rtol=0.02)
    exact = excess_kurtosis(gram[None, None], gram[None], torch.tensor([width])).item()
    assert exact == pytest.approx(3 * width / (width + 2) - 3)
    assert stats.kurtosis(features[:, 0].numpy()) == pytest.approx(exact, abs=0.05)


def test_network_limit_equals_the_exact_posterior_of_a_wide_layer():
    for square in (0.2, 4.0):
        limit = limiting_network(1.0, square, 0.1)
        gaps = [abs(finite_network(width, 1.0, square, 0.1).skewness - limit.skewness) for width in (128, 256)]
        assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.15)
        assert gaps[1] < 0.05 * abs(limit.skewness)
        assert (limit.positive > 0.5) == (square > 1.1)  # a large target wants active units


def test_network_posterior_equals_importance_sampling():
    width, square, sigma2 = 4, 3.0, 0.5
    units = normal(400_000, width, name="units")
    gram = 2 * units.relu().square().mean(1)
    weight = (-0.5 * width * ((gram + sigma2).log() + square / (gram + sigma2))).exp()
    weight = weight / weight.sum()
    exact = finite_network(width, 1.0, square, sigma2)
    assert (weight @ gram).item() == pytest.approx(exact.gram, rel=0.02)
    assert (weight @ (units > 0).double().mean(1)).item() == pytest.approx(exact.positive, abs=0.01)
    mean = (weight @ units).mean()
    second, third = ((weight @ (units - mean) ** q).mean() for q in (2, 3))
    assert (third / second**1.5).item() == pytest.approx(exact.skewness, abs=0.03)


# sparse training


def test_sparse_training_improves_the_bound_and_infinite_nu_keeps_the_nngp():
    classes = sine_bands(60, 40, seeds=[0, 0])
    onehot = torch.nn.functional.one_hot(classes.labels[:, :12], 2).double()
    machine = sparse.initial_machine(classes.x[:, :12], onehot, 1, "rbf")
    noise = normal(8, 2, 60, 2, name="noise")
    nu = torch.tensor([1.0, math.inf], dtype=torch.float64)
    trained, history = sparse.train_sparse(
        machine,
        "rbf",
        nu,
        lambda: (classes.x, classes.labels),
        lambda outputs, labels, _: sparse.categorical_expectation(outputs, labels, noise),
        60,
        steps=40,
    )
    assert (history[-1] > history[0] + 0.05).all()
    assert torch.equal(trained.factors[1], machine.factors[1])
    assert not torch.equal(trained.factors[0], machine.factors[0])
    assert not torch.equal(trained.inducing[1], machine.inducing[1])


def test_sparse_training_takes_the_steps_of_adam_on_the_bound():
    classes = sine_bands(30, 5, seeds=[0])
    onehot = torch.nn.functional.one_hot(classes.labels[:, :6], 2).double()
    start = sparse.initial_machine(classes.x[:, :6], onehot, 1, "rbf")
    noise = normal(4, 1, 30, 2, name="noise")

    def likelihood(outputs, labels, _):
        return sparse.categorical_expectation(outputs, labels, noise)

    trained, _ = sparse.train_sparse(
        start, "rbf", full(1, 2.0)[0], lambda: (classes.x, classes.labels), likelihood, 30, steps=3, milestones=()
    )
    tensors = [tensor.clone().requires_grad_() for tensor in start.tensors()]
    optimizer = torch.optim.Adam(tensors[:-1], lr=1e-2, betas=(0.8, 0.9))
    for _ in range(3):
        outputs = sparse.forward(sparse.SparseMachine(*tensors), classes.x, "rbf")
        loss = 30 * likelihood(outputs, classes.labels, None).mean() - outputs.output_kl - 2 * outputs.gram_kl.sum(1)
        optimizer.zero_grad()
        (-loss.sum() / 30).backward()
        optimizer.step()
    for ours, theirs in zip(trained.tensors(), tensors, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), atol=1e-7, rtol=0)


def test_categorical_expectation_and_probabilities_against_quadrature():
    mean, variance = torch.tensor([[[0.3, -0.4]]]).double(), torch.tensor([[0.5]]).double()
    outputs = sparse.Outputs(mean, variance, torch.zeros(1, 0), torch.zeros(1), [])
    noise = normal(200_000, 1, 1, 2, name="noise")
    # the difference of the two logits is Gaussian with variance 2 * 0.5
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    margin = 0.7 + nodes * 1.0
    weights = weights / weights.sum()
    expected = float(weights @ -np.log1p(np.exp(-margin)))
    prob = float(weights @ (1 / (1 + np.exp(-margin))))
    ours = sparse.categorical_expectation(outputs, torch.zeros(1, 1).long(), noise).item()
    assert ours == pytest.approx(expected, abs=0.005)
    assert sparse.class_log_probs(outputs, noise).exp()[0, 0, 0].item() == pytest.approx(prob, abs=0.005)


# data and baselines


def test_splits_are_standardised_by_the_training_part():
    split = regression_split("diabetes", (50, 20, 30), seeds=[0, 1])
    assert split.x.shape == (2, 50, 10)
    assert split.y_val.shape == (2, 20, 1)
    torch.testing.assert_close(split.x.mean(1), torch.zeros(2, 10).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(split.y.square().mean((1, 2)), torch.ones(2).double())
    assert not torch.equal(split.x[0], split.x[1])
    constant = torch.cat([torch.ones(9, 1), normal(9, 1).float()], 1).double()
    parts = standardised(constant, constant[:, 1:], (5, 2, 2))
    assert torch.equal(parts[0][:, 0], torch.zeros(5).double())
    assert [len(part) for part in parts] == [5, 5, 2, 2, 2, 2]


def test_multi_index_has_two_relevant_inputs():
    x, y = multi_index(4000, seed=0, noise=0.0)
    torch.testing.assert_close(y[:, 0], (2 * x[:, 0]).sin() + x[:, 0] * x[:, 1])
    assert x.shape == (4000, 12)


def test_classes_are_split_without_overlap():
    table = torch.arange(20.0)[:, None].repeat(1, 2)
    classes = table_classes(table, torch.arange(20) % 2, 12, 8, seeds=[0])
    joint = torch.cat([classes.x, classes.x_test], 1)[0, :, 0]
    assert len(joint.unique()) == 20


def test_baselines_learn_a_simple_function():
    split = regression_split("multi_index", (200, 50, 50), seeds=[0])
    error = [(p - split.y_test).square().mean() for p in (ard_predictions(split), mlp_predictions(split, 1))]
    assert error[0] < 0.2  # ARD finds the two inputs
    assert error[1] < 0.7


@pytest.mark.parametrize("name", list(UCI_TABLES))
def test_uci_files_are_read_in_their_own_format(name, tmp_path, monkeypatch):
    table = UCI_TABLES[name]
    columns = table.d + 1 + len(table.drop)
    small = type(table)(
        table.file, 3, table.d, table.target, table.drop, table.delimiter, table.header, table.how_to_get
    )
    monkeypatch.setitem(UCI_TABLES, name, small)
    numbers = np.arange(3 * columns, dtype=float).reshape(3, columns)
    separator = table.delimiter or "   "
    lines = ['"some";"header"'] * table.header + [f" {separator.join(f'{v:.3f}' for v in row)}" for row in numbers]
    folder = tmp_path / "uci" / name
    folder.mkdir(parents=True)
    (folder / table.file).write_text("\n".join([*lines, "", " "]), encoding="utf-8")
    x, y = load_uci(name, root=tmp_path)
    assert x.shape == (3, table.d)
    np.testing.assert_array_equal(y.numpy(), numbers[:, table.target])
    assert not set(y.tolist()) & set(x.flatten().tolist())
    assert load_uci(name, fake=True)[0].shape == (64, table.d)


def test_uci_errors_name_the_file_and_the_repair(tmp_path):
    with pytest.raises(DataError, match=r"'yacht' is not there. To repair: get the file yacht_hydrodynamics.data"):
        load_uci("yacht", root=tmp_path)
    folder = tmp_path / "uci" / "yacht"
    folder.mkdir(parents=True)
    (folder / "yacht_hydrodynamics.data").write_text("1 2 3 4 5 6 7\n", encoding="utf-8")
    with pytest.raises(DataError, match="expected 308 rows and 6 features, read 1 and 6"):
        load_uci("yacht", root=tmp_path)
    (folder / "yacht_hydrodynamics.data").write_text("<html>\n", encoding="utf-8")
    with pytest.raises(DataError, match="not a table of numbers"):
        load_uci("yacht", root=tmp_path)


def test_table_split_undoes_the_scale():
    x, y = load_uci("diabetes")
    split = table_split(x, y, 0.9, generator=generator("split"))
    assert (len(split.x), len(split.x_test)) == (397, 45)
    assert split.y.std(correction=0).item() == pytest.approx(1)
    assert split.y_scale == pytest.approx(y.std().item(), rel=0.1)


# errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernel_named("sinus"), "kernel must be one of rbf, relu, linear, got 'sinus'"),
        (lambda: problem(nus=(0.0, 1.0)), "nu must be positive .* got 0: only the sparse machine"),
        (lambda: problem(sigma2=-0.1), "sigma2 must not be negative, got -0.1"),
        (lambda: fit(problem("linear", n=6, nus=(1.0,)), steps=0), "steps must be positive, got 0"),
        (lambda: regression_split("boston", (5, 5, 5), seeds=[0]), "the data set must be one of multi_index"),
        (lambda: regression_split("diabetes", (400, 50, 50), seeds=[0]), "diabetes has 442 rows, 500 were asked for"),
        (lambda: load_uci("iris"), "the table must be 'diabetes' or one of boston"),
        (lambda: table_split(normal(5, 2), normal(5), 1.0, generator=generator("t")), "share must lie between 0 and 1"),
        (lambda: finite_network(4, 1.0, 1.0, 0.0), "sigma2 must be positive"),
    ],
)
def test_errors_name_what_is_allowed_and_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_repeated_points_ask_for_jitter():
    gram = torch.ones(1, 3, 3).double()
    given = Problem(gram, normal(1, 3, 1), "rbf", full(1, 1.0), full(1, 0.1)[0], 0.0)
    with pytest.raises(ValueError, match="must be positive definite, 1 of 1 are not: remove repeated points"):
        fit(given)


def test_blocks_stay_positive():
    x = normal(1, 5, 3)
    given = Problem(input_gram(x), normal(1, 5, 1), "rbf", full(1, 0.01, 0.01), full(1, 0.01)[0], 1e-8)
    fitted = fit(given)
    blocks = propagate(
        KERNELS["rbf"], [given.gram, *fitted.grams], Blocks(input_gram(x), given.gram.diagonal(dim1=1, dim2=2))
    )
    assert (blocks.diagonal > 0).all()
