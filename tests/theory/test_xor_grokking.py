"""Properties of the network on XOR clusters, its dual form and its data; check numbers are those of the brief."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad

from glocal.data.types import ImageData
from glocal.seeding import torch_generator
from glocal.theory.xor_grokking import (
    accuracy,
    feature_contrast,
    feature_growth,
    linear_scores,
    masked_accuracy,
    network,
    one_step_slope,
    output_weights,
    theorem_regime,
    train_dual,
    train_primal,
)
from glocal.theory.xor_grokking_baselines import (
    fit_logistic,
    fit_random_features,
    joined,
    linear_population_accuracy,
    oracle_error,
    oracle_outputs,
)
from glocal.theory.xor_grokking_data import (
    Points,
    Problem,
    ambient_points,
    clean_labels,
    cluster_noise,
    draw_centres,
    flip_labels,
    gaussian_rows,
    gram_blocks,
)
from glocal.theory.xor_grokking_digits import digit_problems


def generator(*names):
    return torch_generator(0, *names)


def ambient(runs=2, n=20, n_test=12, m=16, p=300, mu_sq=100.0, flip_rate=0.2, name="data", is_balanced=True):
    """Explicit coordinates, the problem made of them, and second layers."""
    stream = generator(name)
    centres = draw_centres(runs, n, is_balanced=is_balanced, generator=stream)
    test_centres = draw_centres(runs, n_test, is_balanced=True, generator=stream)
    points = ambient_points(centres, test_centres, m, p, mu_sq, generator=stream)
    clean = clean_labels(centres)
    labels = flip_labels(clean, flip_rate, generator=stream)
    return (
        points,
        Problem(gram_blocks(points), labels, clean, clean_labels(test_centres)),
        output_weights(runs, m, generator=stream),
    )


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


# Check 1


@pytest.mark.parametrize("step_size", [0.003, 1.0])
def test_dual_form_equals_autograd_descent(step_size):
    points, problem, second = ambient()
    options = {"step_size": step_size, "steps": 10}
    weights = train_primal(points.train, problem.labels, second, 0.01 * points.init, **options)
    dual = train_dual(problem, second, init_std=0.01, record=[0, 10], **options)
    assert relative(dual.train[:, 10], network(points.train, weights, second)) < 1e-10
    assert relative(dual.test[:, 1], network(points.probes[:, :-2], weights, second)) < 1e-10
    assert relative(dual.test[:, 0], network(points.probes[:, :-2], 0.01 * points.init, second)) < 1e-10
    assert relative(dual.along[:, 1], points.probes[:, -2:] @ weights.mT) < 1e-10
    assert relative(dual.norms[:, 1], weights.norm(dim=-1)) < 1e-10
    assert relative(0.01 * points.init + dual.coefs.mT @ points.train, weights) < 1e-10
    cosines = torch.cosine_similarity(points.probes[:, -2:, None], weights[:, None], dim=-1)
    assert relative(dual.cosines(100.0)[:, 1], cosines) < 1e-10


def test_odd_part_is_half_the_difference_at_opposite_points_and_linear():
    points, problem, second = ambient()
    opposite = Points(points.train, torch.cat([-points.probes[:, :-2], points.probes[:, -2:]], 1), points.init)
    options = {"init_std": 0.01, "step_size": 0.1, "steps": 5}
    plus = train_dual(problem, second, **options)
    mirrored = Problem(gram_blocks(opposite), problem.labels, problem.clean, problem.test_clean)
    minus = train_dual(mirrored, second, **options)
    assert relative((plus.test - minus.test) / 2, plus.odd) < 1e-10


# Check 2


def test_one_step_by_hand():
    x = torch.tensor([[[1.0, 2.0]]], dtype=torch.float64)
    second = torch.tensor([[1.0, -1.0]], dtype=torch.float64) / math.sqrt(2)
    init = torch.cat([x, -x], 1)
    f = 5 / math.sqrt(2)
    g = 1 / (1 + math.exp(f))
    expected = torch.cat([x * (1 + 0.7 * g / math.sqrt(2)), -x], 1)
    labels = torch.ones(1, 1, dtype=torch.float64)
    primal = train_primal(x, labels, second, init, step_size=0.7, steps=1)
    torch.testing.assert_close(primal, expected, rtol=1e-14, atol=0)
    probes = torch.zeros(1, 3, 2, dtype=torch.float64)
    problem = Problem(gram_blocks(Points(x, probes, init)), labels, labels, labels)
    dual = train_dual(problem, second, init_std=1.0, step_size=0.7, steps=1)
    torch.testing.assert_close(init + dual.coefs.mT @ x, expected, rtol=1e-14, atol=0)


# Check 3


def test_one_step_limit_is_the_linear_classifier_with_slope_alpha_over_8n():
    points, problem, second = ambient(runs=1, n=40, n_test=200, m=20000, p=400, mu_sq=1.0)
    trained = train_dual(problem, second, init_std=1e-8, step_size=0.01, steps=1)
    scores, outputs = linear_scores(problem)[0], trained.test[0, 0]
    slope = (scores @ outputs / (scores @ scores)).item()
    assert slope == pytest.approx(one_step_slope(0.01, 40), rel=0.03)
    assert torch.corrcoef(torch.stack([scores, outputs]))[0, 1] > 0.99
    torch.testing.assert_close(scores, points.probes[0, :-2] @ (problem.labels[0] @ points.train[0]))


# Check 4


def test_flipping_labels_and_second_layer_flips_the_network_only():
    _, problem, second = ambient()
    options = {"init_std": 0.01, "step_size": 0.1, "steps": 6}
    plain = train_dual(problem, second, **options)
    flipped = Problem(problem.grams, -problem.labels, -problem.clean, -problem.test_clean)
    mirrored = train_dual(flipped, -second, **options)
    assert torch.equal(mirrored.coefs, plain.coefs)
    assert torch.equal(mirrored.test, -plain.test)
    assert torch.equal(mirrored.train, -plain.train)
    assert plain.coefs.abs().max() > 0


# Check 5


def test_rotating_everything_leaves_the_network():
    points, problem, second = ambient()
    rotation = torch.linalg.qr(torch.randn(300, 300, generator=generator("rotation"), dtype=torch.float64)).Q
    turned = Points(*(part @ rotation for part in vars(points).values()))
    options = {"init_std": 0.01, "step_size": 0.1, "steps": 6}
    plain = train_dual(problem, second, **options)
    other = train_dual(
        Problem(gram_blocks(turned), problem.labels, problem.clean, problem.test_clean), second, **options
    )
    assert relative(other.test, plain.test) < 1e-8
    weights = [train_primal(q.train, problem.labels, second, q.init, step_size=0.1, steps=3) for q in (points, turned)]
    assert relative(weights[1], weights[0] @ rotation) < 1e-8


# Check 6


def test_no_linear_rule_beats_chance_and_no_affine_rule_three_quarters():
    products = 5 * torch.randn(1000, 2, generator=generator("v"), dtype=torch.float64)
    length = torch.rand(1000, generator=generator("length"), dtype=torch.float64) + 0.1
    assert (linear_population_accuracy(products, length) - 0.5).abs().max() < 1e-15
    offset = 20 * torch.randn(1000, generator=generator("b"), dtype=torch.float64)
    affine = linear_population_accuracy(products, length, offset)
    assert 0.7 < affine.max() <= 0.75
    # one corner cut off: v = mu_1, b = -|mu|^2 / 2, with a long mean
    corner = linear_population_accuracy(
        torch.tensor([900.0, 0.0]).double(), torch.tensor(30.0).double(), torch.tensor(-450.0).double()
    )
    assert corner.item() == pytest.approx(0.75, abs=1e-12)


def test_linear_population_accuracy_is_what_simulation_counts():
    v, offset = torch.tensor([2.0, 0.2, 0.5], dtype=torch.float64), -2.0
    centres = draw_centres(1, 200_000, is_balanced=True, generator=generator("c"))
    noise = torch.randn(1, 200_000, 3, generator=generator("noise"), dtype=torch.float64)
    corners = 1.5 * torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]], dtype=torch.float64)
    counted = accuracy((corners[centres] + noise) @ v + offset, clean_labels(centres)).item()
    closed = linear_population_accuracy(1.5 * v[:2], v.norm(), offset).item()
    assert abs(closed - 0.5) > 0.02
    assert abs(counted - closed) < 3 * 0.5 / math.sqrt(200_000)


# Check 7


def test_oracle_error_equals_its_closed_form():
    stream = generator("oracle")
    centres = draw_centres(1, 100_000, is_balanced=True, generator=stream)
    points = ambient_points(centres[:, :4], centres, 4, 3, 2.25, generator=stream)
    error = 1 - accuracy(oracle_outputs(points), clean_labels(centres)).item()
    closed = oracle_error(2.25)
    assert abs(error - closed) < 3 * math.sqrt(closed * (1 - closed) / 100_000)
    # the same by quadrature: P(|u_1| < |u_2|) with u_1 ~ N(1.5, 1), u_2 ~ N(0, 1)
    wrong, _ = quad(lambda u: stats.norm.pdf(u, 1.5) * 2 * stats.norm.sf(abs(u)), -9, 12)
    assert closed == pytest.approx(wrong, rel=1e-8)


# Check 8 and the order of events


def test_the_network_first_memorises_then_generalises_with_small_outputs():
    noise = cluster_noise(4, 200, 400, 500, 20000.0, generator=generator("e1"))
    problem, second = noise.problem(400.0, 0.1), output_weights(4, 500, generator=generator("a"))
    trained = train_dual(problem, second, init_std=1e-4 / 20000**2, step_size=1 / 20000, steps=30, record=[1, 30])
    assert trained.train.abs().max() < 0.3
    assert (accuracy(trained.train, problem.labels[:, None])[:, 1:] == 1).all()
    test = accuracy(trained.test, problem.test_clean[:, None])
    assert ((test[:, 0] - 0.5).abs() < 0.1).all()
    assert test[:, 1].mean() > 0.8
    contrast = feature_contrast(trained.cosines(400.0), second)
    assert contrast[:, 0].abs().max() < 0.05
    assert contrast[:, 1].min() > 0.15
    flipped = problem.labels != problem.clean
    assert flipped.any(1).all()
    assert (masked_accuracy(trained.train[:, 1], problem.labels, flipped) == 1).all()


# the exact shortcut


def test_bartlett_rows_have_the_wishart_law():
    rows = gaussian_rows(4000, 3, 7.0, generator=generator("wishart"))
    gram = (rows @ rows.mT).numpy()
    assert np.abs(np.triu(rows[0].numpy(), 1)).max() == 0
    reference = stats.wishart(7, np.eye(3)).rvs(4000, random_state=np.random.default_rng(0))
    for statistic in (lambda g: g[:, 2, 2], lambda g: g[:, 2, 1], lambda g: np.linalg.det(g), lambda g: g.sum((1, 2))):
        assert stats.ks_2samp(statistic(gram), statistic(reference)).pvalue > 1e-3


def test_compressed_data_have_the_law_of_explicit_data():
    runs, n, k, m, p = 3000, 8, 4, 4, 30
    noise = cluster_noise(runs, n, k, m, float(p), generator=generator("short"))
    second = output_weights(runs, m, generator=generator("a"))
    short = noise.problem(9.0, 0.2)
    _, explicit, other = ambient(runs, n, k, m, p, 9.0, 0.2, "long")
    options = {"init_std": 0.1, "step_size": 0.2, "steps": 3, "record": [0, 1, 3]}
    a, b = train_dual(short, second, **options), train_dual(explicit, other, **options)
    pairs = [
        (a.train[:, 3, 0], b.train[:, 3, 0]),
        (a.test[:, 0, 1], b.test[:, 0, 1]),
        (a.test[:, 2, 3], b.test[:, 2, 3]),
        ((a.test[:, 2, 0] - a.test[:, 0, 0]), (b.test[:, 2, 0] - b.test[:, 0, 0])),
        (a.test[:, 2].prod(1), b.test[:, 2].prod(1)),
        (a.along[:, 2, 0, 0], b.along[:, 2, 0, 0]),
        (a.norms[:, 2, 1], b.norms[:, 2, 1]),
    ]
    for ours, reference in pairs:
        assert stats.ks_2samp(ours.numpy(), reference.numpy()).pvalue > 1e-3


def test_one_draw_of_noise_serves_all_means():
    noise = cluster_noise(2, 8, 4, 4, 50.0, generator=generator("shared"))
    short, long = noise.means(1.0), noise.means(25.0)
    shift = long.train - short.train
    centres = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.float64)[noise.centres]
    torch.testing.assert_close(shift, 4 * centres)
    problem = noise.problem(25.0, 0.3)
    explicit = joined(long, noise.noise)
    torch.testing.assert_close(problem.grams.train, explicit.train @ explicit.train.mT)
    torch.testing.assert_close(problem.grams.probes_init, explicit.probes @ explicit.init.mT)
    assert (noise.problem(1.0, 0.3).labels == problem.labels).all()
    fewer = noise.problem(25.0, 0.1).labels != problem.clean
    assert not (fewer & (problem.labels == problem.clean)).any()  # flips are nested


def test_labels_flip_at_the_given_rate_and_centres_are_balanced():
    centres = draw_centres(3, 8000, is_balanced=True, generator=generator("c"))
    assert (torch.stack([(centres == c).sum(1) for c in range(4)]) == 2000).all()
    clean = clean_labels(centres)
    assert clean.sum() == 0
    rate = (flip_labels(clean, 0.1, generator=generator("f")) != clean).double().mean().item()
    assert abs(rate - 0.1) < 3 * math.sqrt(0.09 / 24000)


# the regime of the theorem


def test_theorem_regime_meets_every_assumption():
    n, m, c = 200, 500, 10.0
    regime = theorem_regime(n, m, c)
    assert regime.mu_sq >= c * n**0.51 * regime.p**0.5 * (1 - 1e-12)
    assert regime.p >= c * n**2 * regime.mu_sq * (1 - 1e-12)
    assert regime.step_size <= 1 / (c * n * regime.p)
    assert regime.init_std * n * m**1.5 * regime.p <= regime.step_size * regime.mu_sq**0.5 * (1 + 1e-12)


def test_features_grow_at_the_predicted_rate_in_the_regime():
    n, m, runs = 200, 200, 60
    regime = theorem_regime(n, m, 10.0)
    noise = cluster_noise(runs, n, 4, m, regime.p, generator=generator("growth"))
    second = output_weights(runs, m, generator=generator("a"))
    problem, start = noise.problem(regime.mu_sq, 0.1), {"init_std": regime.init_std, "step_size": regime.step_size}
    trained = train_dual(problem, second, steps=14, record=[4, 14], **start)
    speed = (trained.along[:, 1].abs() - trained.along[:, 0].abs()) / 10
    own = torch.where(second > 0, speed[:, 0], speed[:, 1]).mean(1)
    other = torch.where(second > 0, speed[:, 1], speed[:, 0]).mean().item()
    predicted = feature_growth(regime.step_size, regime.mu_sq, 0.1, n, m)
    standard_error = own.std().item() / runs**0.5
    assert abs(own.mean().item() - predicted) < 3 * standard_error
    assert standard_error < 0.01 * predicted
    assert abs(other) < 0.2 * predicted


# baselines


def test_logistic_regression_is_stationary_for_its_penalty():
    noise = cluster_noise(1, 40, 8, 4, 500.0, generator=generator("logistic"))
    problem = noise.problem(9.0, 0.1)
    points = joined(noise.means(9.0), noise.noise)
    v = fit_logistic(points, problem.labels, grid=[0.01])[0]
    x, y = points.train[0], problem.labels[0]
    gradient = v - 0.01 * (torch.sigmoid(-y * (x @ v)) * y) @ x
    assert gradient.norm() < 1e-3 * v.norm()
    assert v.norm() > 0


def test_random_features_learn_what_their_kernel_can_see():
    # two far clusters on opposite sides: linearly separable, hence easy for random features
    stream = generator("rf")
    labels = torch.tensor([[1.0, -1.0]], dtype=torch.float64).repeat(1, 20)
    x = 10 * labels[..., None] * torch.eye(1, 5, dtype=torch.float64) + torch.randn(
        1, 40, 5, generator=stream, dtype=torch.float64
    )
    init = torch.randn(1, 50, 5, generator=stream, dtype=torch.float64)
    problem = Problem(gram_blocks(Points(x, torch.cat([x, x[:, :2]], 1), init)), labels, labels, labels)
    fitted, predicted = fit_random_features(problem, output_weights(1, 50, generator=stream))
    torch.testing.assert_close(fitted, predicted)
    assert accuracy(predicted, labels).item() == 1


# digits


def test_digit_problems_centre_and_scale_each_pair():
    images = ImageData(torch.rand(120, 1, 6, 6, generator=generator("images")), torch.arange(120) % 6, tuple("abcdef"))
    problem = digit_problems(
        images,
        3,
        digits=[0, 1, 4, 5],
        n_per_digit=8,
        n_test_per_digit=6,
        m=5,
        p=100.0,
        mu_sq=400.0,
        flip_rate=0.0,
        generator=generator("digits"),
    )
    assert problem.grams.train.shape == (3, 32, 32)
    assert problem.test_clean.sum(1).abs().max() == 0
    # training means sit at +-delta: their products with delta_1 are +400 and -400
    products = problem.grams.probes[:, -2]
    order = problem.clean > 0
    values = torch.stack([row[mask].sum() for row, mask in zip(products, order, strict=True)])
    assert values.abs().max() < 1e-6  # +delta_1 and -delta_1 cancel
    largest = torch.stack([row[mask].abs().sum() for row, mask in zip(products, order, strict=True)]) / 16
    assert (largest >= 400 - 1e-6).all()


# errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, a: train_dual(p, a, init_std=0.0, step_size=1.0, steps=3), "init_std must be positive, got 0.0"),
        (lambda p, a: train_dual(p, a, init_std=1.0, step_size=1.0, steps=0), "steps must be positive, got 0"),
        (
            lambda p, a: train_dual(p, a, init_std=1.0, step_size=1.0, steps=3, record=[1, 4]),
            r"record must lie between 0 and steps = 3, got \[1, 4\]",
        ),
        (
            lambda p, a: cluster_noise(1, 8, 4, 4, 13.0, generator=generator("x")),
            r"p is too small: the noise needs at least n \+ m = 12 coordinates, got 11",
        ),
        (
            lambda p, a: gaussian_rows(1, 4, 3.0, generator=generator("x")),
            "dimension must be at least the number of vectors, 4, got 3",
        ),
        (
            lambda p, a: draw_centres(1, 6, is_balanced=True, generator=generator("x")),
            "balanced centres need a multiple of 4 points, got 6",
        ),
        (lambda p, a: flip_labels(p.clean, 0.5, generator=generator("x")), r"flip_rate must be in \[0, 0.5\), got 0.5"),
        (lambda p, a: theorem_regime(200, 10, 10.0), r"m must be at least C n\^0.02 = 11.1, got 10"),
        (
            lambda p, a: digit_problems(
                ImageData(torch.zeros(4, 1, 2, 2), torch.arange(4), tuple("abcd")),
                1,
                digits=[0, 0, 1, 2],
                n_per_digit=1,
                n_test_per_digit=1,
                m=1,
                p=9.0,
                mu_sq=1.0,
                flip_rate=0.0,
                generator=generator("x"),
            ),
            r"digits must be four different classes, got \[0, 0, 1, 2\]",
        ),
    ],
)
def test_errors_name_what_is_allowed_and_what_came(call, message):
    _, problem, second = ambient(runs=1, n=4, n_test=4, m=2, p=10)
    with pytest.raises(ValueError, match=message):
        call(problem, second)
