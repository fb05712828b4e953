"""Properties of the three networks, their training and the exact risks; check numbers are those of the brief."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import norm, ortho_group
from sklearn.linear_model import Ridge
from torch import nn

from glocal.data.types import ImageData
from glocal.seeding import torch_generator
from glocal.theory import dsd, dsd_data, dsd_search, dsd_theory
from glocal.theory.dsd_two_step import two_step

F64 = torch.float64


def generator(*names):
    return torch_generator(0, *names)


def draw(runs=2, n=40, k=3, d=4, sigma=0.25, name="data"):
    signal = dsd_data.random_signals(runs, d, generator=generator("signal", d), dtype=F64)
    return signal, dsd_data.moving_signal(signal, n, k, sigma, generator=generator(name))


def weights(kind, runs=2, models=2, k=3, d=4, scale=1.0):
    return dsd.init_weights(kind, runs, models, k, d, scale=scale, generator=generator("w", kind)).clone()


# Check 1


def test_soft_threshold_is_softshrink_odd_and_identity_at_zero():
    z = torch.randn(1000, generator=generator("z"), dtype=F64)
    assert torch.equal(dsd.soft_threshold(z, 0.3), F.softshrink(z, 0.3))
    assert torch.equal(dsd.soft_threshold(-z, 0.3), -dsd.soft_threshold(z, 0.3))
    assert torch.equal(dsd.soft_threshold(z, 0.0), z)


# Check 2


def test_the_classes_are_nested():
    _, data = draw()
    columns, w, b = dsd.as_columns(data.x), weights("cnn"), torch.full((2, 2), 0.2, dtype=F64)
    local = w.expand(-1, 3, -1, -1)
    dense = torch.zeros(2, 3, 2, 12, dtype=F64)
    for s in range(3):
        dense[:, s, :, 4 * s : 4 * s + 4] = local[:, s]
    outputs = [dsd.network_outputs(kind, x, b, columns) for kind, x in (("cnn", w), ("lcn", local), ("fcn", dense))]
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-14, rtol=0)
    torch.testing.assert_close(outputs[1], outputs[2], atol=1e-14, rtol=0)


def test_cnn_is_a_strided_convolution():
    _, data = draw(runs=1)
    w = weights("cnn", runs=1, models=1)
    conv = nn.Conv1d(1, 1, 4, stride=4, bias=False, dtype=F64)
    with torch.no_grad():
        conv.weight.copy_(w[0, 0])
        expected = F.softshrink(conv(data.x[0].flatten(1)[:, None]), 0.2).sum((1, 2))
    ours = dsd.network_outputs("cnn", w, torch.full((1, 1), 0.2, dtype=F64), dsd.as_columns(data.x))[0, 0]
    torch.testing.assert_close(ours, expected, atol=1e-13, rtol=0)


@pytest.mark.parametrize("kind", dsd.KINDS)
def test_gradient_equals_autograd(kind):
    _, data = draw()
    columns, y = dsd.as_columns(data.x), data.y[:, None].expand(-1, 2, -1)
    w, b = weights(kind).requires_grad_(), torch.full((2, 2), 0.1, dtype=F64, requires_grad=True)
    loss = (dsd.network_outputs(kind, w, b, columns) - y).square().mean(-1).sum()
    automatic = torch.autograd.grad(loss, (w, b))
    ours = dsd.loss_gradient(kind, w.detach(), b.detach(), columns, y)
    for a, o in zip(automatic, ours, strict=True):
        assert a.abs().max() > 1e-3
        torch.testing.assert_close(o, a, atol=1e-12, rtol=0)


@pytest.mark.parametrize("n", [5, 40])
@pytest.mark.parametrize("kind", dsd.KINDS)
def test_linear_phase_is_exact(kind, n):
    _, data = draw(n=n)
    columns, y, w = dsd.as_columns(data.x), data.y[:, None].expand(-1, 2, -1), weights(kind)
    expected = dsd.loss_gradient(kind, w, torch.zeros(2, 2, dtype=F64), columns, y)[0]
    torch.testing.assert_close(
        dsd.linear_gradient(kind, w, dsd.linear_problem(kind, columns, y)), expected, atol=1e-12, rtol=0
    )


# Check 3


@pytest.mark.parametrize("optimizer", ["gd", "adam"])
@pytest.mark.parametrize("kind", dsd.KINDS)
def test_gradient_descent_is_equivariant_for_the_group_of_its_network_and_adam_is_not(kind, optimizer):
    k, d = 3, 4
    (_, data), (_, val), (_, test) = (draw(n=n, name=n) for n in (60, 100, 200))
    rng = np.random.default_rng(0)
    if kind == "fcn":
        q = torch.tensor(ortho_group.rvs(k * d, random_state=rng))
    else:
        blocks = [torch.tensor(ortho_group.rvs(d, random_state=rng)) for _ in range(k)]
        q = torch.block_diag(*(blocks if kind == "lcn" else blocks[:1] * k))

    def turn(part):
        return dsd_data.PatchData((part.x.flatten(2) @ q.T).unflatten(2, (k, d)), part.y)

    w = weights(kind, models=1, scale=0.1)
    if kind == "fcn":
        turned = w @ q.T
    else:
        turned = torch.stack([w[:, s] @ q[s * d : s * d + d, s * d : s * d + d].T for s in range(w.shape[1])], 1)
    options = {
        "lrs": [0.3 if optimizer == "gd" else 0.05],
        "linear_steps": 25,
        "threshold_steps": 25,
        "optimizer": optimizer,
    }
    plain, other = dsd.train(kind, w, data, val, **options), dsd.train(kind, turned, turn(data), turn(val), **options)
    change = (plain.outputs(test) - other.outputs(turn(test))).abs().max()
    assert change < 1e-8 if optimizer == "gd" else change > 1e-3
    assert (plain.val_risk < 0.8).all()


# Check 4


def test_patch_permutations_leave_a_cnn_alone_and_not_an_lcn():
    _, data = draw()
    columns, b = dsd.as_columns(data.x), torch.full((2, 2), 0.1, dtype=F64)
    shuffled = columns[:, [2, 0, 1]]
    change = {
        kind: (
            dsd.network_outputs(kind, weights(kind), b, columns) - dsd.network_outputs(kind, weights(kind), b, shuffled)
        )
        .abs()
        .max()
        for kind in ("cnn", "lcn")
    }
    assert change["cnn"] < 1e-12
    assert change["lcn"] > 0.1


# Check 5


def test_linear_oracle_and_best_linear_risk():
    k, sigma, n = 16, 0.25, 100_000
    signal, data = draw(runs=1, n=n, k=k, d=4)
    accuracy = dsd_data.accuracy(dsd_data.linear_oracle_outputs(data, signal), data.y).item()
    assert norm.cdf(1 / (sigma * math.sqrt(k))) == pytest.approx(0.8413, abs=1e-4)
    assert abs(accuracy - 0.8413) < 3 * math.sqrt(0.8413 * 0.1587 / n)
    assert dsd_theory.best_linear_risk(k, sigma) == 0.5
    x, y = data.x[0].sum(1).numpy(), data.y[0].numpy()
    fit = Ridge(alpha=1e-3, fit_intercept=False).fit(x[: n // 2], y[: n // 2])
    assert np.mean((fit.predict(x[n // 2 :]) - y[n // 2 :]) ** 2) == pytest.approx(0.5, abs=0.01)


# Check 6


def test_first_gradient_and_its_mean_squared_length():
    runs, n, k, d, sigma = 4000, 20, 3, 4, 0.25
    _, data = draw(runs=runs, n=n, k=k, d=d, sigma=sigma)
    columns, y = dsd.as_columns(data.x), data.y[:, None]
    gradient = {
        kind: dsd.linear_gradient(kind, torch.zeros(runs, f, 1, d, dtype=F64), dsd.linear_problem(kind, columns, y))
        for kind, f in (("cnn", 1), ("lcn", k))
    }
    by_hand = -2 / n * (data.y[..., None] * data.x.sum(2)).sum(1)
    torch.testing.assert_close(gradient["cnn"][:, 0, 0], by_hand, atol=1e-12, rtol=0)
    expected = {
        "cnn": 4 * (1 + sigma**2 * k * d / n),
        "lcn": 4 * (1 / k**2 + sigma**2 * d / n + 1 / (n * k) - 1 / (n * k**2)),
    }
    for kind, value in expected.items():
        squares = gradient[kind].square().sum(-1).mean((1, 2))
        assert abs(squares.mean() - value) < 4 * squares.std() / math.sqrt(runs)


# Check 7 and the exact risk


def trained(kind, k=4, d=6, n=400):
    signal = dsd_data.random_signals(2, d, generator=generator("t"), dtype=F64)
    data, val, test = (
        dsd_data.moving_signal(signal, m, k, 0.25, generator=generator("t", m)) for m in (n, 300, 40_000)
    )
    init = dsd.init_weights(kind, 2, 2, k, d, scale=0.02, generator=generator("ti"))
    return signal, dsd.train(kind, init, data, val, lrs=[0.3, 1.0]).best(), test


@pytest.mark.parametrize("kind", dsd.KINDS)
def test_bayes_is_not_beaten_and_training_works(kind):
    signal, networks, test = trained(kind)
    bayes = dsd_data.accuracy(dsd_data.bayes_outputs(test, signal, 0.25), test.y)
    ours = dsd_data.accuracy(networks.outputs(test)[:, 0], test.y)
    assert (bayes >= ours - 3 * 0.5 / math.sqrt(len(test))).all()
    assert (ours > 0.95).all()


@pytest.mark.parametrize("kind", ["cnn", "lcn"])
def test_population_risk_equals_monte_carlo(kind):
    signal, networks, test = trained(kind)
    assert (networks.bias > 0.05).all()
    errors = (networks.outputs(test)[:, 0] - test.y).square()
    exact = dsd_theory.population_risk(networks, signal, 4, 0.25)[:, 0]
    assert ((errors.mean(1) - exact).abs() < 4 * errors.std(1) / math.sqrt(len(test))).all()


def test_best_network_risk_has_its_limits():
    assert dsd_theory.best_network_risk(1, 0.25) <= 0.0625 / 1.0625 + 1e-6  # one patch: no worse than linear
    risks = [dsd_theory.best_network_risk(8, 0.25, c) for c in (0.8, 0.9, 1.0)]
    assert risks == sorted(risks, reverse=True)
    assert risks[-1] < dsd_theory.best_linear_risk(8, 0.25)
    assert all(dsd_theory.best_network_risk(k, 0.25, 0.9) < dsd_theory.best_linear_risk(k, 0.25) for k in (4, 8, 32))


@pytest.mark.parametrize("kind", ["cnn", "lcn"])
def test_two_steps_recover_the_signal(kind):
    signal, data = draw(n=3000, k=4, d=6)
    _, val = draw(n=500, k=4, d=6, name="val")
    every = two_step(kind, data, val)
    torch.testing.assert_close(every.risk(val), every.val_risk, atol=1e-12, rtol=0)
    networks = every.best()
    cosines = torch.cosine_similarity(networks.weights[:, :, 0], signal[:, None], dim=-1)
    assert (cosines > 0.95).all()
    assert (dsd_theory.population_risk(networks, signal, 4, 0.25) < 0.17).all()  # linear: 0.2


def test_shifted_copies_give_the_lcn_the_gradient_of_the_cnn():
    _, data = draw()
    w, b = weights("cnn", models=1), torch.full((2, 1), 0.1, dtype=F64)
    of_cnn = dsd.loss_gradient("cnn", w, b, dsd.as_columns(data.x), data.y[:, None])[0]
    many = dsd_data.shifted_copies(data)
    of_lcn = dsd.loss_gradient("lcn", w.expand(-1, 3, -1, -1), b, dsd.as_columns(many.x), many.y[:, None])[0]
    torch.testing.assert_close(3 * of_lcn, of_cnn.expand_as(of_lcn), atol=1e-12, rtol=0)


def test_large_threshold_from_the_start_is_a_dead_zone():
    _, data = draw(n=100)
    networks = dsd.train("cnn", weights("cnn", scale=0.02), data, data, lrs=[0.3, 1.0], linear_steps=0, threshold=1.0)
    torch.testing.assert_close(networks.risk(data), torch.ones(2, 2, dtype=F64), atol=0.03, rtol=0)


def test_sample_complexity_and_exponent_by_hand():
    risks = np.array([[0.8, 0.4, 0.1], [0.2, 0.1, 0.1], [0.9, 0.8, 0.7]])
    found = dsd_search.sample_complexity(np.array([16.0, 32.0, 64.0]), risks, 0.6)
    np.testing.assert_allclose(found, [16 * math.sqrt(2), 16, np.inf])
    np.testing.assert_allclose(dsd_search.exponent(np.array([2.0, 4.0, 8.0]), np.array([[3.0, 12.0, 48.0]])), [2.0])
    with pytest.raises(ValueError, match="enlarge the grid"):
        dsd_search.exponent(np.array([2.0, 4.0, 8.0]), risks[2:] + np.inf)


def searched(seed, runs=4, until=0.23, **options):
    task = dsd_search.draw_task(runs, 4, 8, 0.25, n=256, n_val=100, n_test=1, seed=seed)
    sizes = [16, 32, 64, 128, 256]
    return dsd_search.risk_curve("cnn", task, sizes, until=until, lrs=[0.3], seed=seed, **options)


def test_the_search_stops_and_repeats():
    first, again, other = searched(0), searched(0), searched(1)
    assert np.isnan(first.risks).any()  # not all end at one size
    for row in first.risks:
        tried = row[np.isfinite(row)]
        assert tried[-1] <= 0.23
        assert (tried[:-1] > 0.23).all()
    assert [len(net.bias) for net in first.networks] == np.isfinite(first.risks).sum(0).tolist()
    np.testing.assert_array_equal(first.risks, again.risks)
    assert first.risks[0, 0] != other.risks[0, 0]


def test_runs_that_have_ended_do_not_change_the_others():
    complete, ended = searched(0, until=0.0), searched(0)
    alive = np.isfinite(ended.risks)
    np.testing.assert_allclose(ended.risks[alive], complete.risks[:, : len(ended.n)][alive], atol=1e-5)


def test_pooled_risks_are_means_over_runs():
    single, pooled = searched(0, until=0.0), searched(0, until=0.0, pool=2)
    np.testing.assert_allclose(pooled.risks, single.risks.reshape(2, 2, -1).mean(1), atol=1e-12)
    with pytest.raises(ValueError, match="pool must divide the 4 runs of the task, got 3"):
        searched(0, pool=3)


def test_early_looks_save_a_network_that_overfits():
    """Twelve images in twelve dimensions: the least-squares fit is far worse than a few steps towards it."""
    signal = dsd_data.random_signals(6, 4, generator=generator("early"), dtype=F64)
    data, val = (dsd_data.moving_signal(signal, m, 3, 0.5, generator=generator("early", m)) for m in (12, 400))
    init = dsd.init_weights("lcn", 6, 1, 3, 4, scale=0.02, generator=generator("early", "w"))
    late, early = (
        dsd.train("lcn", init, data, val, lrs=[0.3], threshold_steps=0, linear_check_every=every) for every in (150, 5)
    )
    assert (early.val_risk <= late.val_risk).all()
    assert early.val_risk.mean() < 0.95 * late.val_risk.mean()
    assert (late.val_risk <= late.risk(val) + 1e-9).all()


def test_a_run_trains_alike_alone_and_in_company():
    signal = dsd_data.random_signals(3, 6, generator=generator("t"), dtype=F64)
    data, val = (dsd_data.moving_signal(signal, m, 4, 0.25, generator=generator("t", m)) for m in (100, 300))
    init = dsd.init_weights("fcn", 3, 2, 4, 6, scale=0.02, generator=generator("ti"))
    options = {"lrs": [0.3, 1.0], "threshold_steps": 500}
    together = dsd.train("fcn", init, data, val, **options)
    one = torch.tensor([1])
    alone = dsd.train("fcn", init[one], data.take(one), val.take(one), **options)
    torch.testing.assert_close(alone.val_risk, together.val_risk[one], atol=1e-9, rtol=0)
    torch.testing.assert_close(together.risk(val), together.val_risk, atol=1e-9, rtol=0)


def test_task_and_canvas_have_the_signal_where_they_should():
    signal = dsd_data.random_signals(1, 5, generator=generator("s"), dtype=F64)
    data = dsd_data.moving_signal(signal, 300, 4, 0.0, generator=generator("p"))
    hits = (data.x[0].norm(dim=-1) > 0.5).sum(1)
    assert (hits == 1).all()
    torch.testing.assert_close(data.x[0].sum(1), data.y[0][:, None] * signal, atol=1e-12, rtol=0)
    assert (data.x[0].norm(dim=-1).sum(0) > 40).all()
    static = dsd_data.moving_signal(signal, 50, 4, 0.0, generator=generator("p"), is_static=True)
    assert (static.x[:, :, 1:] == 0).all()


def test_centred_patches_have_opposite_unit_means():
    images = ImageData(torch.rand(40, 1, 3, 3, generator=generator("i")), torch.arange(40) % 4, ("a", "b", "c", "d"))
    patches, y = dsd_data.centred_patches(images, (1, 3))
    means = patches[y > 0].mean(0), patches[y < 0].mean(0)
    assert len(y) == 20
    torch.testing.assert_close(means[0], -means[1], atol=1e-5, rtol=0)
    assert means[0].norm().item() == pytest.approx(1, abs=1e-5)


def test_rotation_sends_the_signal_to_the_first_axis():
    signal = dsd_data.random_signals(3, 6, generator=generator("s"), dtype=F64)
    q = dsd_data.rotation_to_axis(signal)
    torch.testing.assert_close(q @ q.mT, torch.eye(6, dtype=F64).expand(3, 6, 6), atol=1e-12, rtol=0)
    torch.testing.assert_close(
        (q @ signal[..., None]).squeeze(-1), torch.eye(6, dtype=F64)[0].expand(3, 6), atol=1e-12, rtol=0
    )


def test_errors_say_what_to_do():
    signal, data = draw()
    with pytest.raises(ValueError, match="kind must be one of cnn, lcn, fcn"):
        dsd.init_weights("mlp", 1, 1, 2, 2, scale=1.0, generator=generator())
    with pytest.raises(ValueError, match="optimizer must be gd or adam"):
        dsd.train("cnn", weights("cnn"), data, data, lrs=[0.1, 0.2], optimizer="sgd")
    with pytest.raises(ValueError, match="one model per learning rate"):
        dsd.train("cnn", weights("cnn"), data, data, lrs=[0.1])
    with pytest.raises(ValueError, match=r"use Trained\.risk"):
        dsd_theory.population_risk(
            dsd.Trained("fcn", weights("fcn"), torch.zeros(2, 2), torch.zeros(2, 2)), signal, 3, 0.25
        )
    with pytest.raises(ValueError, match="needs more than two steps"):
        two_step("fcn", data, data)
    with pytest.raises(ValueError, match="sigma >= 0"):
        dsd_data.moving_signal(signal, 3, 2, -1.0, generator=generator())
    with pytest.raises(ValueError, match="cosine must be in"):
        dsd_theory.best_network_risk(4, 0.25, 0.0)
