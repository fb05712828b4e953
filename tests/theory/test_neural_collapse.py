"""Closed forms, numerical optimum, metrics and networks; check numbers are those of the brief."""

import itertools
import math

import cvxpy as cp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from glocal.data.types import ImageData
from glocal.seeding import torch_generator
from glocal.theory.neural_collapse import (
    balanced_etf,
    class_objective,
    class_scale,
    closed_form,
    official_scale,
    planar_ce,
    polygon_projection,
)
from glocal.theory.neural_collapse_direct import (
    Factors,
    best_of,
    direct_problem,
    gaussian_start,
    gradient_descent,
    minimize_lbfgs,
    objective,
    realize,
    with_noise,
)
from glocal.theory.neural_collapse_metrics import (
    class_means,
    collapse_metrics,
    cosines,
    frame,
    frame_targets,
    gof_targets,
    largest_offdiagonal,
    variability,
)
from glocal.theory.neural_collapse_nets import (
    LinearHeadNet,
    choose_examples,
    init_network,
    load_training_images,
    make_backbone,
    train_networks,
)

CASES = [  # class sizes, depth, lambda, value, scales
    ((30, 30, 30, 30), 1, 5e-3, 0.1035445, (0.8905,) * 4),
    ((30, 30, 30, 30), 2, 5e-3, 0.0912439, (0.9365,) * 4),
    ((30, 30, 30, 30), 3, 5e-3, 0.0924915, (0.9520,) * 4),
    ((30, 30, 30, 30), 6, 5e-3, 0.1132516, (0.9667,) * 4),
    ((60, 30, 10, 3), 1, 2e-3, 0.035411, (0.9734, 0.9624, 0.9349, 0.8811)),
    ((60, 30, 10, 3), 3, 1e-3, 0.0163727, (0.9952, 0.9919, 0.9815, 0.9537)),
    ((100, 50, 20, 4), 1, 8e-3, 0.1660736, (0.8608, 0.8031, 0.6887, 0.3040)),
]


def generator(name="test"):
    return torch_generator(0, name)


def solved(sizes, depth, lam, runs=2, d=8, **options):
    problem = direct_problem([sizes] * runs, [lam] * runs, depth=depth, d=d, **options)
    found = minimize_lbfgs(problem, gaussian_start(problem, generator=generator("start")), tolerance=1e-8)
    return problem, found, int(objective(problem, found).argmin())


# Checks 0 and 3


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_scale_is_the_minimiser_and_agrees_with_the_official_root(depth):
    grid = np.linspace(0, 1.2, 241)
    n_collapsed = n_local = 0
    for n in (1, 3, 10, 40, 100):
        for lam in (5e-4, 2e-3, 8e-3, 3e-2):
            z = class_scale(n, 174, lam, [lam] * depth)
            values = [class_objective(x, n, 174, lam, [lam] * depth) for x in grid]
            assert class_objective(z, n, 174, lam, [lam] * depth) <= min(values) + 1e-15
            assert abs(z - grid[int(np.argmin(values))]) < 6e-3
            official = official_scale(n, 174, lam, [lam] * depth)
            n_collapsed += z == 0
            if z > 0:
                assert official == pytest.approx(z, abs=1e-6)
            else:
                n_local += official > 0
    assert n_collapsed > 0
    assert (n_local > 0) == (depth > 1)  # without the comparison with zero a local minimum is returned


def test_soft_threshold_of_one_layer():
    assert class_scale(4, 174, 0.008, [0.008]) == pytest.approx(0.3040, abs=1e-12)
    assert class_scale(9, 100, 0.02, [0.03]) == pytest.approx(max(0.0, 1 - 100 * math.sqrt(6e-4 / 9)))
    assert class_scale(1, 174, 0.008, [0.008]) == 0


def test_deep_scale_jumps_at_the_predicted_penalty():
    critical = math.sqrt(2 / 3) * (4 / 3) / 4 * 5**0.75 / 20
    assert class_scale(5, 20, 1.001 * critical, [1.001 * critical] * 3) == 0
    assert class_scale(5, 20, 0.9999 * critical, [0.9999 * critical] * 3) == pytest.approx(2 / 3, abs=1e-2)


# Check 1


@pytest.mark.parametrize(("sizes", "depth", "lam", "value", "scales"), CASES)
def test_optimiser_reaches_the_closed_form(sizes, depth, lam, value, scales):
    optimum = closed_form(sizes, lam, [lam] * depth)
    assert optimum.value == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(optimum.scales, scales, atol=6e-5)
    problem, found, run = solved(sizes, depth, lam, d=32 if depth == 6 else 8)
    assert objective(problem, found)[run].item() == pytest.approx(optimum.value, rel=1e-6)
    means = class_means(found.logits, problem.onehot)[run]
    torch.testing.assert_close(means, optimum.scales.diag(), atol=1e-5, rtol=0.0)
    measured = collapse_metrics(found.features, found.weights, problem.onehot, gof_targets(optimum)).worst[:, run]
    assert measured.max() < 1e-4


def test_unequal_penalties_of_the_layers():
    problem = direct_problem([[20, 10, 5]] * 2, [4e-3] * 2, depth=2, d=6)
    uneven = type(problem)(problem.onehot, problem.lambda_h, torch.tensor([[1e-3, 1e-3], [8e-3, 8e-3]]).double(), 6)
    found = minimize_lbfgs(uneven, gaussian_start(uneven, generator=generator()), tolerance=1e-8)
    optimum = closed_form([20, 10, 5], 4e-3, [1e-3, 8e-3])
    assert objective(uneven, found).min().item() == pytest.approx(optimum.value, rel=1e-7)
    run = int(objective(uneven, found).argmin())
    values = torch.linalg.svdvals(found.weights[0][run])[:3]
    torch.testing.assert_close(values, optimum.layer_values[0], atol=1e-5, rtol=0.0)


# Check 2


def test_one_layer_is_a_nuclear_norm_program():
    sizes, lam = [100, 50, 20, 4], 8e-3
    z, root = cp.Variable((4, 4)), np.diag(np.sqrt(sizes))
    fit = cp.sum_squares((z - np.eye(4)) @ root) / (2 * sum(sizes))
    program = cp.Problem(cp.Minimize(fit + lam * cp.normNuc(z @ root)))
    program.solve(solver="CLARABEL", tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    optimum = closed_form(sizes, lam, [lam])
    assert program.value == pytest.approx(optimum.value, abs=1e-5)
    np.testing.assert_allclose(z.value, np.diag(optimum.scales), atol=1e-5)


# Check 4


def test_balance_and_equal_penalty_shares():
    sizes, lam = (60, 30, 10, 3), 2e-3
    _problem, found, run = solved(sizes, 3, lam)
    h, weights = found.features[run], [w[run] for w in found.weights]
    torch.testing.assert_close(weights[0].T @ weights[0], h @ h.T, atol=1e-5, rtol=0.0)
    for lower, upper in itertools.pairwise(weights):
        torch.testing.assert_close(upper.T @ upper, lower @ lower.T, atol=1e-5, rtol=0.0)
    shares = closed_form(sizes, lam, [lam] * 3).shares.sort(descending=True).values
    for matrix in (h, *weights):
        torch.testing.assert_close(lam * torch.linalg.svdvals(matrix)[:4] ** 2, shares, atol=1e-5, rtol=0.0)


# Check 5


def test_frames_and_their_distance():
    etf = frame(4, "etf")
    assert etf.sum(1).abs().max() < 1e-15
    off = cosines(etf[None])[0][~torch.eye(4).bool()]
    torch.testing.assert_close(off, torch.full((12,), -1 / 3).double())
    assert etf.norm() == pytest.approx(1)
    assert (etf - frame(4, "of")).norm() == pytest.approx(math.sqrt(2 - 2 * math.sqrt(3 / 4)))


def test_variability_of_collapsed_and_of_random_features():
    onehot = F.one_hot(torch.arange(3).repeat_interleave(50), 3).T.double()[None]
    means = torch.randn(1, 5, 3, generator=generator(), dtype=torch.float64)
    assert variability(means @ onehot, onehot) < 1e-20
    assert variability(torch.randn(1, 5, 150, generator=generator("iid"), dtype=torch.float64), onehot) > 5


def test_variability_is_the_trace_of_the_official_definition():
    onehot = F.one_hot(torch.tensor([0] * 9 + [1] * 4 + [2] * 2), 3).T.double()[None]
    h = torch.randn(1, 4, 15, generator=generator(), dtype=torch.float64)
    means, centre = class_means(h, onehot)[0], h[0].mean(1, keepdim=True)
    spread = h[0] - means @ onehot[0]
    between = (means - centre) @ (means - centre).T / 3
    expected = torch.trace(spread @ spread.T / 15 @ torch.linalg.pinv(between, rtol=1e-10)) / 3
    torch.testing.assert_close(variability(h, onehot)[0], expected)
    padded = torch.cat([h, torch.ones(1, 4, 3).double()], 2)
    torch.testing.assert_close(variability(padded, F.pad(onehot, (0, 3)))[0], expected)


# Check 6


@pytest.mark.parametrize("depth", [1, 3])
def test_free_bias_gives_the_simplex(depth):
    problem, found, run = solved((8, 8, 8, 8), depth, 5e-3, has_bias=True)
    value, z = balanced_etf(4, 8, 5e-3, [5e-3] * depth)
    assert objective(problem, found)[run].item() == pytest.approx(value, rel=1e-8)
    assert (found.bias[run] - 0.25).abs().max() < 1e-5
    product = class_means(found.logits, problem.onehot)[run] - found.bias[run][:, None]
    torch.testing.assert_close(product, z * (torch.eye(4).double() - 0.25), atol=1e-5, rtol=0.0)


# Check 7


def test_rotations_change_neither_loss_nor_metrics():
    problem = direct_problem([[5, 4, 3]] * 2, [1e-2] * 2, depth=2, d=6)
    factors = gaussian_start(problem, generator=generator())
    q = torch.linalg.qr(torch.randn(6, 6, generator=generator("q"), dtype=torch.float64)).Q
    turned = Factors(q @ factors.features, (factors.weights[0] @ q.T, factors.weights[1]), factors.bias)
    torch.testing.assert_close(objective(problem, factors), objective(problem, turned), atol=1e-10, rtol=0.0)
    both = [
        collapse_metrics(f.features, f.weights, problem.onehot, frame_targets(3, 2, "of")).worst
        for f in (factors, turned)
    ]
    torch.testing.assert_close(*both, atol=1e-10, rtol=1e-10)


# Check 8


def test_narrow_layers_keep_a_projection():
    problem, found, run = solved((10, 10, 10, 10), 2, 5e-3, d=2)
    optimum = closed_form([10] * 4, 5e-3, [5e-3] * 2, rank=2)
    assert objective(problem, found)[run].item() == pytest.approx(optimum.value, rel=1e-7)
    product = class_means(found.logits, problem.onehot)[run]
    z = optimum.scales.max()
    torch.testing.assert_close(product @ product, z * product, atol=1e-5, rtol=0.0)
    assert torch.linalg.matrix_rank(product, rtol=1e-4) == 2


# cross-entropy


@pytest.mark.parametrize("depth", [1, 2])
def test_cross_entropy_from_random_starts_ends_at_the_simplex_value(depth):
    problem, found, run = solved((10, 10, 10, 10), depth, 5e-3, loss="ce")
    value, z = balanced_etf(4, 10, 5e-3, [5e-3] * depth, loss="ce")
    assert objective(problem, found)[run].item() == pytest.approx(value, rel=1e-8)
    product = class_means(found.logits, problem.onehot)[run]
    torch.testing.assert_close(product, z * (torch.eye(4).double() - 0.25), atol=1e-4, rtol=0.0)


@pytest.mark.parametrize(("depth", "is_lower"), [(1, False), (2, True), (3, True), (6, True)])
def test_planar_point_is_below_the_simplex_for_deep_cross_entropy(depth, is_lower):
    lam = 5e-3
    problem = direct_problem([[30] * 4], [lam], depth=depth, d=8, loss="ce")
    simplex, z = balanced_etf(4, 30, lam, [lam] * depth, loss="ce")
    planar, z_plane = planar_ce(4, 30, lam, [lam] * depth)
    for value, matrix in (
        (simplex, z * (torch.eye(4).double() - 0.25)),
        (planar, z_plane * polygon_projection(4)),
    ):
        assert objective(problem, realize(problem, matrix[None])).item() == pytest.approx(value, rel=1e-10)
    assert (planar < simplex * (1 - 1e-3)) == is_lower


def test_polygon_is_a_projection_of_rank_two():
    p = polygon_projection(5)
    torch.testing.assert_close(p @ p, p)
    assert p.trace() == pytest.approx(2)


# direct problem


def test_realised_factors_cost_the_schatten_norm():
    problem = direct_problem([[6, 3, 2]], [1e-2], depth=2, d=5)
    z = torch.randn(3, 3, generator=generator(), dtype=torch.float64)
    factors = realize(problem, z[None])
    torch.testing.assert_close(class_means(factors.logits, problem.onehot)[0], z)
    sigma = torch.linalg.svdvals(z * problem.onehot[0].sum(-1).sqrt())
    penalty = 1.5 * 1e-2 * (sigma ** (2 / 3)).sum()
    data = ((z - torch.eye(3)).square().sum(0) * problem.onehot[0].sum(-1)).sum() / 22
    torch.testing.assert_close(objective(problem, factors)[0], data + penalty)


def test_padding_counts_for_nothing():
    both = direct_problem([[5, 2], [3, 1]], [1e-2, 2e-2], depth=1, d=3)
    alone = direct_problem([[3, 1]], [2e-2], depth=1, d=3)
    start = gaussian_start(both, generator=generator())
    assert start.features[1, :, 4:].abs().max() == 0
    single = Factors(start.features[1:, :, :4], (start.weights[0][1:],), start.bias[1:])
    torch.testing.assert_close(objective(both, start)[1:], objective(alone, single))


def test_minority_collapses_below_the_threshold_only():
    sizes = [[100, 50, 20, n] for n in (7, 10)]
    problem = direct_problem(sizes, [0.016] * 2, depth=1, d=5)
    found = minimize_lbfgs(problem, gaussian_start(problem, generator=generator()), tolerance=1e-9)
    lengths = found.weights[0][:, 3].norm(dim=-1)
    expected = closed_form(sizes[1], 0.016, [0.016]).layer_values[0, 3]
    assert lengths[0] < 1e-4
    assert lengths[1].item() == pytest.approx(expected.item(), rel=1e-4)


def test_gradient_descent_follows_the_gradient_and_converges():
    problem = direct_problem([[5, 5]], [2e-2], depth=1, d=3)
    start = gaussian_start(problem, generator=generator())
    steps, path = gradient_descent(problem, start, steps=1, lr=0.1)
    w = start.weights[0][0]
    gradient = (w @ start.features[0] - problem.onehot[0]) @ start.features[0].T / 10 + 2e-2 * w
    torch.testing.assert_close(path[-1].weights[0][0], w - 0.1 * gradient)
    steps, path = gradient_descent(problem, start, steps=800, lr=0.1, record_every=300)
    assert steps == [0, 300, 600, 800]
    assert objective(problem, path[-1]).item() == pytest.approx(closed_form([5, 5], 2e-2, [2e-2]).value, rel=1e-6)


def test_best_of_picks_per_run():
    problem = direct_problem([[4, 4]] * 2, [1e-2] * 2, depth=1, d=3)
    a = gaussian_start(problem, generator=generator("a"))
    zero = Factors(0 * a.features, (0 * a.weights[0],), a.bias)
    mixed = Factors(
        torch.stack([a.features[0], zero.features[1]]),
        (torch.stack([9 * a.weights[0][0], 0 * a.weights[0][1]]),),
        a.bias,
    )
    best, winner = best_of(problem, [mixed, zero])
    assert winner.tolist() == [1, 0]
    assert objective(problem, best).tolist() == [0.25 * 2, 0.25 * 2]
    noisy = with_noise(problem, zero, 0.5, generator=generator("a"))
    assert noisy.features.std() == pytest.approx(0.5, rel=0.5)


def test_largest_offdiagonal_ignores_the_diagonal():
    matrix = torch.tensor([[[5.0, -0.5], [0.25, 5.0]]]).double()
    assert largest_offdiagonal(matrix).item() == 0.5


# networks


def test_batched_training_equals_a_plain_loop():
    x = torch.randn(12, 1, 2, 3, generator=generator("x"))
    labels = torch.arange(12) % 3

    def fresh(run):
        body, f = make_backbone("mlp", (1, 2, 3), width=5, n_hidden=1)
        return init_network(LinearHeadNet(body, f, 3, depth=2, width=4, has_bias=True), generator=generator(run))

    measured = train_networks(
        [fresh(0), fresh(1)],
        x,
        labels,
        n_classes=3,
        head_decay=0.1,
        feature_decay=[0.2, 0.0],
        backbone_decay=[0.0, 0.3],
        steps=3,
        record_at=[0, 3],
        measure=lambda s: s,
        lr=0.1,
        drop_at=[2],
        optimizer="sgd",
        generator=generator(),
    )
    for run, (on_features, on_backbone) in enumerate([(0.2, 0.0), (0.0, 0.3)]):
        net = fresh(run)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for step in range(3):
            for group in optimizer.param_groups:
                group["lr"] = 0.01 if step >= 2 else 0.1
            features, logits = net(x)
            loss = (logits - F.one_hot(labels, 3)).square().sum() / 24 + on_features / 24 * features.square().sum()
            loss = loss + sum(0.05 * layer.weight.square().sum() for layer in net.head)
            loss = loss + sum(on_backbone / 2 * p.square().sum() for p in net.backbone.parameters())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        torch.testing.assert_close(measured[1].weights[1][run].float(), net.head[1].weight.detach())
        torch.testing.assert_close(measured[1].features[run].float(), net(x)[0].detach().T)


@pytest.mark.parametrize("name", ["resnet18", "vgg16"])
def test_convolutional_networks_have_the_usual_number_of_weights(name):
    body, f = make_backbone(name, (3, 32, 32), width=8, n_hidden=1)
    convolutions = sum(m.weight.numel() for m in body.modules() if isinstance(m, nn.Conv2d))
    # torchvision: ResNet18 11,166,912 in convolutions with a 7x7 stem of 9,408 (here 3x3: 1,728); VGG16 14,710,464
    assert convolutions == {"resnet18": 11_166_912 - 9_408 + 1_728, "vgg16": 14_710_464}[name]
    assert f == 512


def test_examples_have_the_wanted_sizes_and_scale():
    data = ImageData(torch.rand(30, 1, 4, 4, generator=generator()), torch.arange(30) % 3, ("a", "b", "c"))
    x, labels = choose_examples(data, [5, 2], generator=generator("pick"))
    assert labels.tolist() == [0] * 5 + [1] * 2
    assert x.mean().abs() < 1e-5
    assert x.std() == pytest.approx(1)
    assert load_training_images("cifar10", fake=True).images.shape[1:] == (3, 32, 32)


# errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: closed_form([3, 0], 0.1, [0.1]), r"class_sizes must be positive, got \[3, 0\]"),
        (lambda: closed_form([3], 0.1, [-0.1]), r"penalties must be positive, got \[0.1, -0.1\]"),
        (lambda: official_scale(3, 9, 0.1, [0.1, 0.2]), "the official formula needs equal penalties"),
        (lambda: balanced_etf(3, 3, 0.1, [0.1], loss="hinge"), "loss must be 'mse' or 'ce', got 'hinge'"),
        (lambda: planar_ce(3, 3, 0.1, [0.1]), "from 4 classes on, got 3"),
        (lambda: direct_problem([[3]], [0.1], depth=0, d=2), "depth must be at least 1, got 0"),
        (lambda: direct_problem([[3]], [0.1], depth=1, d=2, loss="hinge"), "loss must be 'mse' or 'ce', got 'hinge'"),
        (lambda: frame(3, "gof"), "kind must be 'of' or 'etf', got 'gof'"),
        (lambda: make_backbone("lenet", (1, 8, 8), width=2, n_hidden=1), "backbone must be 'mlp', 'resnet18' or"),
    ],
)
def test_errors_name_what_is_allowed_and_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
