"""Properties of RSS training: the closed forms, weak duality, invariances, limits, the inner ascent."""

import math
import sys
import types
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import cvxpy as cp
import numpy as np
import pytest
import torch
from PIL import Image

from glocal.data.errors import DataError
from glocal.nn.networks import MLP
from glocal.nn.stack import NetworkStack, accuracy, predict
from glocal.nn.training import Recipe
from glocal.seeding import torch_generator
from glocal.supervision import ood_unlabeled as rss
from glocal.supervision import ood_unlabeled_baselines as baselines
from glocal.supervision import ood_unlabeled_data as data
from glocal.supervision import ood_unlabeled_networks as networks
from glocal.supervision import ood_unlabeled_slides as slides

SETTINGS = rss.RssSettings(n_steps=60)


def gaussian(n_problems: int = 3, *, d: int = 20, m: int = 10, n: int = 300, alpha: float = 0.0, sigma: float = 1.0):
    return data.gaussian_problem(
        n_problems, d=d, m=m, n=n, alpha=alpha, sigma=sigma, generator=torch_generator(0, d, m, n)
    )


def fit(problem, settings=SETTINGS, **options):
    return rss.fit_rss(problem.x, problem.y, problem.unlabelled, settings, generator=torch_generator(1), **options)


@pytest.mark.parametrize(("cost", "power"), [("l2", 1), ("l2sq", 2)])
@pytest.mark.parametrize("gamma", [0.3, 1.0, 4.0])
def test_robust_loss_is_the_supremum_over_moves_along_theta(cost: str, power: int, gamma: float) -> None:
    margin = torch.linspace(-2, 3, 41, dtype=torch.float64)
    moves = torch.linspace(0, 5, 100_001, dtype=torch.float64)  # towards the boundary
    for s in margin:
        brute = ((s - moves <= 1e-12).double() - gamma * moves**power).max()
        assert rss.robust_loss(s, gamma, cost).item() == pytest.approx(brute.item(), abs=1e-4)


@pytest.mark.parametrize("cost", rss.COSTS)
def test_robust_loss_limits_and_monotonicity(cost: str) -> None:
    margin = torch.linspace(-2, 3, 101)
    losses = [rss.robust_loss(margin, gamma, cost) for gamma in (0.0, 0.5, 2.0, 1e9)]
    assert torch.equal(losses[0], torch.ones(101))
    assert torch.equal(losses[3][margin.abs() > 1e-3], (margin <= 0).float()[margin.abs() > 1e-3])
    for weak, strong in pairwise(losses):
        assert bool((strong <= weak).all())
    assert bool((losses[1][margin <= 0] == 1).all())


def test_unlabelled_loss_is_even() -> None:
    score = torch.randn(50, generator=torch_generator(0))
    assert torch.equal(rss.unlabelled_loss(score, 0.4), rss.unlabelled_loss(-score, 0.4))


def test_weak_duality_and_strong_duality_at_the_best_price() -> None:
    """The worst case over a Wasserstein ball, a linear program on a grid, against the dual bound."""
    grid, atoms, radius = np.linspace(-2, 2, 41), np.array([-1.0, -0.4, 0.3, 0.8, 1.5]), 0.35
    loss, cost = (grid <= 1e-9).astype(float), np.abs(grid[None] - atoms[:, None])
    plan = cp.Variable((5, 41), nonneg=True)
    worst = cp.Problem(
        cp.Maximize(cp.sum(plan @ loss)),
        [cp.sum(plan, axis=1) == np.full(5, 0.2), cp.sum(cp.multiply(plan, cost)) <= radius],
    ).solve()
    dual = [
        gamma * radius + float(rss.robust_loss(torch.tensor(atoms), float(gamma)).mean())
        for gamma in np.linspace(0, 6, 6001)
    ]
    assert min(dual) >= worst - 1e-6
    assert min(dual) == pytest.approx(worst, abs=1e-3)


def test_analytic_accuracies_match_simulation() -> None:
    problem = gaussian(200, d=200, m=20, n=0)
    measured = rss.rule_accuracy(rss.class_mean(problem.x, problem.y), problem.mean).mean().item()
    assert measured == pytest.approx(float(rss.gaussian_cdf(torch.tensor(rss.class_mean_cosine(20, 200)))), abs=0.01)
    problem = gaussian(12, d=200, m=20, n=2000)
    measured = rss.rule_accuracy(baselines.principal_component(problem), problem.mean).mean().item()
    assert measured == pytest.approx(float(rss.gaussian_cdf(torch.tensor(rss.principal_cosine(2000, 200)))), abs=0.01)


def test_yardsticks_take_the_values_of_the_paper_table() -> None:
    values = [float(rss.gaussian_cdf(torch.tensor(rss.class_mean_cosine(m, 200)))) for m in (10, 20, 40, 10_000)]
    assert values == pytest.approx([0.586, 0.618, 0.658, 0.839], abs=1e-3)
    assert rss.principal_cosine(150, 200) == 0.0


def test_objective_gradient_equals_finite_differences() -> None:
    problem = gaussian(1, d=6, m=8, n=30)
    x, u, y = problem.x.double(), problem.unlabelled.double(), problem.y.double()
    for settings in (SETTINGS, replace(SETTINGS, cost="l2sq", gamma=0.7), replace(SETTINGS, labelled="hinge")):

        def risk(theta: torch.Tensor, settings: rss.RssSettings = settings) -> torch.Tensor:
            unit = theta / theta.norm()
            return rss.objective(((x @ unit)[:, None], (u @ unit)[:, None]), y, settings, 2.0).sum()

        theta = torch.randn(6, dtype=torch.float64, generator=torch_generator(2)).requires_grad_()
        assert torch.autograd.gradcheck(risk, (theta,))


def test_estimator_ignores_the_sign_of_unlabelled_points_and_turns_with_the_data() -> None:
    problem = gaussian()
    rule = fit(problem)
    flipped = replace(problem, unlabelled=-problem.unlabelled)
    torch.testing.assert_close(fit(flipped).w, rule.w)
    one = replace(SETTINGS, n_starts=1)  # random starts do not turn with the data
    rotation = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64, generator=torch_generator(3))).Q
    double = data.Problem(*(tensor.double() for tensor in (problem.x, problem.y, problem.unlabelled, problem.mean)))
    turned = replace(double, x=double.x @ rotation, unlabelled=double.unlabelled @ rotation)
    # Adam scales coordinates one by one, so only the minimiser turns, not the path: compare after convergence
    long = replace(one, n_steps=500, gamma=0.3, gamma_u=0.1, lam=3.0)
    cosine = ((fit(double, long).w @ rotation) * fit(turned, long).w).sum(1)
    assert float(cosine.min()) > 0.999


def test_without_unlabelled_weight_it_is_robust_learning_on_labels() -> None:
    problem = gaussian()
    drl = replace(SETTINGS, lam=0.0)
    without = replace(problem, unlabelled=problem.unlabelled[:, :0])
    torch.testing.assert_close(fit(problem, drl).w, fit(without, drl).w)
    torch.testing.assert_close(fit(without).w, fit(problem, drl).w)
    assert not torch.allclose(fit(problem).w, fit(problem, drl).w, atol=1e-2)


def test_unlabelled_points_help_without_shift() -> None:
    problem = gaussian(20, d=50, m=10, n=2000)
    gain = rss.rule_accuracy(fit(problem).w, problem.mean) - rss.rule_accuracy(
        rss.class_mean(problem.x, problem.y), problem.mean
    )
    assert float(gain.mean()) > 0.05


def test_vanishing_noise_needs_one_label_per_class() -> None:
    problem = gaussian(3, d=20, m=2, n=100, sigma=0.01)
    assert float(rss.rule_accuracy(fit(problem).w, problem.mean, 0.01).min()) > 0.9999


def test_robust_accuracy_is_lower_and_exact() -> None:
    mean = torch.tensor([[1.0, 0.0]])
    assert rss.rule_accuracy(mean, mean, radius=1.0).item() == pytest.approx(0.5)
    assert rss.rule_accuracy(mean, mean).item() == pytest.approx(0.8413, abs=1e-4)


def test_offset_finds_an_unbalanced_boundary() -> None:
    generator = torch_generator(5)
    x = torch.randn(1, 40, 3, generator=generator) * 0.2
    y = torch.tensor([1.0, -1.0]).repeat(20)[None]
    x[..., 0] += 1 + 0.5 * y
    problem = data.Problem(x, y, x, torch.zeros(1, 3))
    rule = fit(problem, replace(SETTINGS, gamma=4.0, n_steps=300), has_offset=True)
    assert float((rule.score(x).sign() == y).float().mean()) > 0.95
    assert float(rule.b) < -0.5


def test_cross_validation_returns_a_listed_weight() -> None:
    problem = gaussian(1, d=30, m=20, n=200)
    rule, lam = rss.cross_validated(
        problem.x, problem.y, problem.unlabelled, SETTINGS, [0.3, 3.0], generator=torch_generator(4)
    )
    assert lam in (0.3, 3.0)
    assert rule.w.norm().item() == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(ValueError, match="equal folds"):
        rss.cross_validated(
            problem.x[:, :7], problem.y[:, :7], problem.unlabelled, SETTINGS, [1.0], generator=torch_generator(4)
        )


@pytest.mark.parametrize(
    "method",
    [
        baselines.entropy_minimisation,
        baselines.transductive_svm,
        baselines.logistic_regression,
        baselines.linear_svm,
        baselines.self_training,
        baselines.expectation_maximisation,
    ],
)
def test_baselines_return_unit_rules_that_beat_chance(method) -> None:
    problem = gaussian(10, d=20, m=20, n=200)
    w = method(problem)
    torch.testing.assert_close(w.norm(dim=1), torch.ones(10))
    assert float(rss.rule_accuracy(w, problem.mean).mean()) > 0.65


def test_em_is_the_best_without_shift() -> None:
    problem = gaussian(10, d=50, m=10, n=2000)
    em = rss.rule_accuracy(baselines.expectation_maximisation(problem), problem.mean).mean()
    assert em > rss.rule_accuracy(baselines.self_training(problem), problem.mean).mean()
    assert em.item() == pytest.approx(float(rss.gaussian_cdf(torch.tensor(rss.principal_cosine(2000, 50)))), abs=0.015)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"cost": "l1"}, "l2, l2sq"), ({"labelled": "log"}, "ramp, hinge"), ({"lam": -1.0}, "negative")],
)
def test_settings_refuse_nonsense(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rss.RssSettings(**change)


def test_bad_labels_and_sizes_are_refused() -> None:
    problem = gaussian()
    with pytest.raises(ValueError, match="-1 or 1"):
        rss.fit_rss(problem.x, problem.y * 2, problem.unlabelled, SETTINGS, generator=torch_generator(0))
    with pytest.raises(ValueError, match="even and positive"):
        data.gaussian_problem(1, d=3, m=5, n=1, alpha=0.0, generator=torch_generator(0))


def test_gaussian_problem_has_the_stated_shift() -> None:
    problem = data.gaussian_problem(2, d=40, m=2, n=60_000, alpha=0.5, generator=torch_generator(7))
    top = baselines.principal_component(problem)
    variance = (problem.unlabelled @ top[..., None]).squeeze(-1).square().mean(1)
    for k in range(2):  # the top eigenvalue is 1 + |mu_1|^2, and mu_1 is mu_0 plus a vector of length alpha
        length = math.sqrt(float(variance[k]) - 1)
        shift = length * top[k] - problem.mean[k]
        assert float(shift.norm()) == pytest.approx(0.5, abs=0.03)


def test_image_task_is_disjoint_and_named() -> None:
    pools = data.digit_pools("optdigits", "mnist5k", fake=True)
    task = data.image_task(pools, [4], [9], m=4, n=8, n_test=6, generators=[torch_generator(k) for k in range(2)])
    assert task.x.shape == (2, 4, 64)
    assert set(task.unlabelled) == set(data.SOURCES)
    assert task.unlabelled["mix50"].shape == (2, 8, 64)
    everything = torch.cat([task.x[0], task.unlabelled["same"][0], task.x_test[0]])
    assert len(everything.unique(dim=0)) == len(everything)
    assert task.y[0].tolist() == [1.0, 1.0, -1.0, -1.0]
    with pytest.raises(ValueError, match="ask for less"):
        data.image_task(pools, [4], [9], m=4, n=10_000, n_test=6, generators=[torch_generator(0)])


def test_shared_unlabelled_points_give_the_same_rules() -> None:
    problem = gaussian(2)
    shared = problem.unlabelled[:1]
    together = rss.fit_rss(problem.x, problem.y, shared, SETTINGS, generator=torch_generator(1))
    apart = rss.fit_rss(problem.x, problem.y, shared.expand(2, -1, -1), SETTINGS, generator=torch_generator(1))
    torch.testing.assert_close(together.w, apart.w, atol=1e-4, rtol=0)


def small_stack() -> NetworkStack:
    return NetworkStack.build(lambda: MLP(6, [8], 3), [torch_generator(0, k) for k in range(2)])


def test_inner_ascent_never_loses_and_vanishes_at_a_high_price() -> None:
    stack = small_stack()
    x, y = torch.randn(2, 9, 6, generator=torch_generator(1)), torch.arange(18).reshape(2, 9) % 3
    for gamma in (0.01, 0.3, 3.0):
        z = networks.worst_inputs(stack, x, y, gamma, 5)
        value = networks.cross_entropies(stack, z, y) - gamma * (z - x).square().sum(2)
        assert bool((value >= networks.cross_entropies(stack, x, y) - 1e-6).all())
        assert float((z - x).norm()) > 0
    far = networks.worst_inputs(stack, x, y, 1e8, 5)
    torch.testing.assert_close(far, x)
    assert all(tensor.grad is None for tensor in stack.parameters())


def test_inner_ascent_finds_the_known_maximum_of_a_linear_network() -> None:
    """Logit difference linear in z: the stationary point solves z = x + grad / (2 gamma)."""
    stack = NetworkStack.build(lambda: MLP(4, [], 2), [torch_generator(0)])
    x, y = torch.randn(1, 5, 4, generator=torch_generator(1)), torch.zeros(1, 5, dtype=torch.long)
    z = networks.worst_inputs(stack, x, y, 2.0, 200).requires_grad_()
    (slope,) = torch.autograd.grad(networks.cross_entropies(stack, z, y).sum(), z)
    torch.testing.assert_close(z.detach(), x + slope / 4.0, atol=5e-4, rtol=0)


@pytest.mark.parametrize("method", networks.METHODS)
def test_every_method_learns_separated_clusters(method: str) -> None:
    generator = torch_generator(3)
    centers = 4 * torch.eye(3, 6)
    y = torch.arange(12).repeat(2, 1) % 3
    noise = torch.randn(2, 60, 6, generator=generator)
    unlabelled = centers[torch.arange(60) % 3] + noise
    x = centers[y] + noise[:, :12].flip(1)
    stack = networks.fit_networks(
        small_stack(), x, y, unlabelled, networks.Semi(method), Recipe(60, 0.02, 12, "adam"), generator=generator
    )
    assert float(accuracy(predict(stack, unlabelled), torch.arange(60).repeat(2, 1) % 3).min()) > 0.75


def test_unlabelled_weight_zero_is_robust_learning() -> None:
    generator = torch_generator(3)
    x, y = torch.randn(2, 12, 6, generator=generator), torch.arange(24).reshape(2, 12) % 3
    fitted = [
        networks.fit_networks(
            small_stack(),
            x,
            y,
            x,
            networks.Semi(method, weight=0.0),
            Recipe(5, 0.02, 6, "adam"),
            generator=torch_generator(4),
        )
        for method in ("rss", "robust", "supervised")
    ]
    outputs = [predict(stack, x) for stack in fitted]
    torch.testing.assert_close(outputs[0], outputs[1])
    assert not torch.allclose(outputs[1], outputs[2], atol=1e-4)
    with pytest.raises(ValueError, match="pseudo-labels"):
        networks.Semi("mixmatch")


def test_slides_are_read_from_both_formats(tmp_path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    for name in ("TUM", "NORM"):
        folder = tmp_path / slides.NCT / name
        folder.mkdir(parents=True)
        for k in range(3):
            Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)).save(folder / f"{name}-{k}.tif")
    pool = slides.tissue_pool("nct", side=8, root=tmp_path)
    assert pool.pixels.shape == (6, 192)
    assert pool.classes.tolist() == [1, 1, 1, 0, 0, 0]
    with Image.open(tmp_path / slides.NCT / "TUM" / "TUM-0.tif") as image:
        mean = np.asarray(image).mean() / 255
    assert pool.pixels[0].mean().item() == pytest.approx(mean, abs=2e-3)
    arrays = {
        "x": rng.integers(0, 256, (4, 96, 96, 3), dtype=np.uint8),
        "y": np.array([1, 0, 0, 1]).reshape(4, 1, 1, 1),
    }
    monkeypatch.setitem(sys.modules, "h5py", fake_h5py(arrays))
    for key in "xy":
        (tmp_path / f"{slides.PCAM}_{key}.h5").touch()
    pool = slides.tissue_pool("pcam", side=12, root=tmp_path)
    assert pool.classes.tolist() == [1, 0, 0, 1]
    expected = arrays["x"][2].reshape(12, 8, 12, 8, 3).mean((1, 3)).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(pool.pixels[2].numpy(), expected.ravel(), atol=1e-6)


def fake_h5py(arrays: dict[str, np.ndarray]) -> types.SimpleNamespace:
    """The part of h5py that the loader uses: opening a file as a mapping of arrays."""

    @contextmanager
    def open_file(path, mode):
        key = path.stem[-1]
        yield {key: arrays[key]}

    return types.SimpleNamespace(File=open_file)


def test_missing_slides_say_where_to_get_them(tmp_path) -> None:
    for name, words in (("nct", "NCT-CRC-HE-100K"), ("pcam", "camelyonpatch")):
        with pytest.raises(DataError, match=words):
            slides.tissue_pool(name, root=tmp_path)
    with pytest.raises(ValueError, match="nct, pcam"):
        slides.tissue_pool("mnist5k", root=tmp_path)
    assert slides.tissue_pool("nct", side=4, fake=True).pixels.shape[1] == 48
