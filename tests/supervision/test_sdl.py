"""Supervised dictionary learning: gradients, rate, projections, block descent, and the files of full scale."""

import gzip
import struct

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score

from glocal.data import load
from glocal.data.errors import DataError
from glocal.seeding import torch_generator
from glocal.supervision import sdl, sdl_bcd, sdl_data, sdl_evaluation, sdl_files, sdl_logistic

F64 = torch.float64


def draw(*shape, name="x"):  # type: ignore[no-untyped-def]
    return torch.randn(*shape, generator=torch_generator(0, name), dtype=F64)


def problem(p: int = 6, n: int = 15, q: int = 2) -> sdl.Problem:
    return sdl.Problem(draw(p, n).abs(), (draw(1, n, name="y") > 0).to(F64), draw(q, n, name="u"))


def start(data: sdl.Problem, model: str) -> sdl.Lifted:
    p, n = data.x.shape
    shape = (p, 1) if model == "filter" else (1, n)
    return sdl.Lifted(draw(*shape, name="a"), draw(p, n, name="b"), draw(len(data.covariates), 1, name="g"))


def factors(data: sdl.Problem, r: int = 3) -> sdl.Factors:
    p, n = data.x.shape
    return sdl.Factors(
        draw(p, r, name="w").abs() / 9,
        draw(r, n, name="h").abs(),
        draw(r, 1, name="be"),
        draw(len(data.covariates), 1, name="g"),
    )


def digits() -> sdl.Problem:
    table = load("optdigits")
    return sdl_data.low_rank_pair(table, 300, 8, classes=("4", "9"), generator=torch_generator(0, "t"))


@pytest.mark.parametrize("model", sdl.MODELS)
def test_check_1_lifted_gradient(model: str) -> None:
    data = problem()
    theta = start(data, model)
    parts = [part.clone().requires_grad_() for part in (theta.a, theta.b, theta.gamma)]
    exact = torch.autograd.grad(sdl.lifted_objective(data, sdl.Lifted(*parts), model, 0.7, 0.3), parts)
    ours = sdl.lifted_gradient(data, theta, model, 0.7, 0.3)
    for a, b in zip(exact, (ours.a, ours.b, ours.gamma), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("model", sdl.MODELS)
def test_check_1_block_gradients(model: str) -> None:
    data, f = problem(), factors(problem())
    w, h = f.w.clone().requires_grad_(), f.h.clone().requires_grad_()
    setting = sdl_bcd.Settings(0.7)
    value = sdl_bcd.bcd_objective(data, sdl.Factors(w, h, f.beta, f.gamma), model, setting)
    exact = torch.autograd.grad(value, (w, h))
    torch.testing.assert_close(exact[0], sdl_bcd.gradient_w(data, f, model, 0.7), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(exact[1], sdl_bcd.gradient_h(data, f, model, 0.7), rtol=1e-8, atol=1e-8)


def test_checks_2_and_4_linear_convergence_to_scikit_learn() -> None:
    data, xi = digits(), 0.08
    mu, smoothness = sdl.curvature(data, "filter", xi, xi)
    assert mu == pytest.approx(0.16)
    assert smoothness == pytest.approx(0.41)
    tau = sdl.best_step(mu, smoothness)
    rho = sdl.contraction(mu, smoothness, tau)
    assert rho == pytest.approx(0.877, abs=1e-3)
    fit = LogisticRegression(C=1 / (2 * xi), fit_intercept=False, solver="newton-cholesky", tol=1e-12)
    coef = torch.tensor(fit.fit(data.x.T.numpy(), data.labels[0].numpy()).coef_.T.copy())
    target = sdl.Lifted(coef, data.x, coef[:0])
    begin = start(data, "filter")
    run = sdl.lpgd(data, begin, "filter", r=8, xi=xi, nu=xi, tau=tau, steps=60, reference=target)
    torch.testing.assert_close(run.theta.a, coef, rtol=0, atol=1e-5)
    torch.testing.assert_close(run.theta.b, data.x, rtol=0, atol=1e-8)
    assert run.distances is not None
    d = run.distances
    live = d[:-1] > 1e-9
    assert (d[1:][live] <= rho * d[:-1][live]).all()
    assert live.sum() > 10


def test_check_2_cvxpy_agrees() -> None:
    data = problem(5, 20, 0)
    low = sdl.Problem(sdl.project_rank(data.x, 2), data.labels, data.covariates)
    a = cp.Variable(5)
    score = low.x.numpy().T @ a
    y = low.labels[0].numpy()
    program = cp.Problem(cp.Minimize(cp.sum(cp.logistic(score) - cp.multiply(y, score)) + 0.3 * cp.sum_squares(a)))
    program.solve(solver="CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12)
    coef = sdl_logistic.ridge_logistic(low.x, low.labels, 0.3)
    value = sdl.lifted_objective(low, sdl.Lifted(coef, low.x, coef[:0]), "filter", 1.0, 0.3)
    assert float(value) == pytest.approx(program.value, abs=1e-6)


def test_check_3_projection() -> None:
    u, z = draw(1000, 5, 9, name="u"), sdl.project_rank(draw(1000, 5, 9, name="z"), 2)
    projected = sdl.project_rank(u, 2)
    near = torch.linalg.matrix_norm(projected - z)
    assert (near <= 2 * torch.linalg.matrix_norm(u - z) + 1e-12).all()
    torch.testing.assert_close(sdl.project_rank(projected, 2), projected)
    torch.testing.assert_close(sdl.project_rank(u, 2, "gram"), projected)
    torch.testing.assert_close(sdl.project_rank(u.mT, 2, "gram"), projected.mT)
    left, s, right = np.linalg.svd(u[0].numpy(), full_matrices=False)
    np.testing.assert_allclose(projected[0].numpy(), left[:, :2] * s[:2] @ right[:2], atol=1e-12)


@pytest.mark.parametrize("model", sdl.MODELS)
def test_check_5_round_trip(model: str) -> None:
    data = problem()
    theta = start(data, model)
    theta = sdl.split(sdl.project_rank(theta.stacked(model), 3), theta.gamma, model)
    f = sdl.factorise(theta, 3, model)
    back = sdl.lift(f, model)
    torch.testing.assert_close(back.a, theta.a, rtol=0, atol=1e-10)
    torch.testing.assert_close(back.b, theta.b, rtol=0, atol=1e-10)
    assert float(f.w.norm()) == pytest.approx(1)
    pair = sdl.factored_objective(data, f, model, 1.0, 0.2), sdl.lifted_objective(data, theta, model, 1.0, 0.2)
    torch.testing.assert_close(*pair)


def test_check_6_limits() -> None:
    data = problem(6, 15, 0)
    zero = sdl.Lifted(data.x[:, :1] * 0, data.x * 0, data.x[:0, :1])
    xi = 1e5
    tau = 1 / sdl.curvature(data, "filter", xi, 0.5)[1]
    b = sdl.lpgd(data, zero, "filter", r=2, xi=xi, nu=0.5, tau=tau, steps=50).theta.b
    best = sdl.project_rank(data.x, 2)
    assert (b - best).norm() < 1e-3 * best.norm()
    tau = 1 / sdl.curvature(data, "filter", 0.0, 0.5)[1]
    a = sdl.lpgd(data, zero, "filter", r=6, xi=0.0, nu=0.5, tau=tau, steps=3000).theta.a
    torch.testing.assert_close(a, sdl_logistic.ridge_logistic(data.x, data.labels, 0.5), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("model", sdl.MODELS)
def test_check_7_block_descent(model: str) -> None:
    data = problem()
    begin = sdl_bcd.random_factors(data, 3, generator=torch_generator(0, "i"))
    setting = sdl_bcd.Settings(0.5, radius_scale=0.05)
    run = sdl_bcd.bcd(data, begin, model, setting, n_iter=30, has_trace=True)
    assert float(run.factors.w.min()) >= 0
    assert float(run.factors.h.min()) >= 0
    assert max(run.moves) <= 1 + 1e-9
    assert max(run.moves) > 0.99
    assert (np.diff(run.objectives) <= 1e-9 * np.abs(run.objectives[:-1])).all()
    assert run.objectives[-1] < run.objectives[0]
    free = sdl_bcd.bcd(data, begin, model, sdl_bcd.Settings(0.5), n_iter=600, has_trace=True)
    assert free.stationarity[-1] < 1e-2 * free.stationarity[0]


def test_block_descent_normalised() -> None:
    data = problem()
    begin = sdl_bcd.random_factors(data, 3, generator=torch_generator(0, "i"))
    run = sdl_bcd.bcd(data, begin, "filter", sdl_bcd.Settings(0.5, is_normalized=True), n_iter=5)
    assert float(run.factors.w.norm()) == pytest.approx(1)
    assert sdl_bcd.Settings(1.0, radius_scale=2.0, radius_exp=1.0).radius(3, 5.0) == pytest.approx(10 / 3 / np.log(4))


@pytest.mark.parametrize("model", sdl.MODELS)
def test_check_8_zero_covariates(model: str) -> None:
    none = problem(6, 15, 0)
    zero = sdl.Problem(none.x, none.labels, torch.zeros(1, 15, dtype=F64))
    ends = []
    for data in (none, zero):
        begin = start(data, model)
        begin = sdl.Lifted(begin.a, begin.b, begin.gamma * 0)
        ends.append(sdl.lpgd(data, begin, model, r=2, xi=1.0, nu=1.0, tau=0.05, steps=20).theta)
    torch.testing.assert_close(ends[0].a, ends[1].a)
    runs = [
        sdl_bcd.bcd(
            d, sdl_bcd.random_factors(d, 2, generator=torch_generator(0, "i")), model, sdl_bcd.Settings(1.0), n_iter=5
        )
        for d in (none, zero)
    ]
    torch.testing.assert_close(runs[0].factors.w, runs[1].factors.w)


def test_codes_equal_nnls() -> None:
    w, x = draw(8, 4, name="w").abs(), draw(8, 6)
    codes = sdl_bcd.nonnegative_codes(w.T @ w, w.T @ x, torch.zeros(4, 6, dtype=F64), sweeps=500)
    expected = np.stack([nnls(w.numpy(), column)[0] for column in x.T.numpy()], 1)
    np.testing.assert_allclose(codes.numpy(), expected, atol=1e-8)


def test_measures_equal_scikit_learn() -> None:
    scores, labels = draw(200).round(decimals=1), (draw(200, name="l") > 1).to(F64)
    assert sdl_logistic.auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    preds = (scores > 0.5).to(F64)
    assert sdl_logistic.f_score(preds, labels) == pytest.approx(f1_score(labels, preds))
    easy = torch.tensor([0.1, 0.2, 0.7, 0.9], dtype=F64)
    assert sdl_logistic.training_threshold(easy, torch.tensor([0.0, 0, 1, 1], dtype=F64)) == pytest.approx(0.7)


def test_docstrings_are_real() -> None:
    corpus = sdl_data.docstrings(("networkx",))
    assert len(corpus) > 300
    assert corpus.covariates.shape == (len(corpus), 3)
    assert not any("networkx" in text for text in corpus.texts)
    with pytest.raises(ValueError, match="packages must be installed, got 'no_such_package'"):
        sdl_data.docstrings(("no_such_package",))


def test_postings_and_digits_from_files(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=r"fake_job_postings\.csv"):
        sdl_files.load_postings(tmp_path)
    header = [*sdl_files.TEXT_COLUMNS, *sdl_files.FLAGS, *sdl_files.CATEGORIES, "salary_range", "fraudulent"]
    rows = [["Clerk", '"a, b"', "c", "d", "e", "0", "1", "0", "Full-time", "", "", "IT", "1-2", "0"]]
    rows.append(["Agent", "f", "g", "h", "i", "1", "0", "1", "", "", "", "IT", "", "1"])
    path = tmp_path / sdl_files.POSTINGS
    path.parent.mkdir()
    path.write_text("\n".join([",".join(header), *(",".join(row) for row in rows)]))
    corpus = sdl_files.load_postings(tmp_path)
    assert corpus.groups.tolist() == [0, 1]
    assert "clerk a, b" in corpus.texts[0]
    assert corpus.covariates[:, 3].tolist() == [1.0, 0.0]
    folder = tmp_path / sdl_files.MNIST_FOLDER
    folder.mkdir(parents=True)
    (folder / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + struct.pack(">3I", 2, 2, 2) + bytes(range(8)))
    labels = gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 2) + b"\x03\x07")
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(labels)
    images = sdl_files.load_mnist(tmp_path)
    assert images.labels.tolist() == [3, 7]
    assert float(images.images[1, 0, 1, 1]) == pytest.approx(7 / 255)
    with pytest.raises(DataError, match=r"NORMAL/\*\.jpeg"):
        sdl_files.load_xrays(8, tmp_path)


def test_messages() -> None:
    data = problem()
    with pytest.raises(ValueError, match="r must be at least 1, got 0"):
        sdl.project_rank(data.x, 0)
    with pytest.raises(ValueError, match="ridge must be positive"):
        sdl_logistic.ridge_logistic(data.x, data.labels, 0.0)
    with pytest.raises(ValueError, match="tau must be positive"):
        sdl.lpgd(data, start(data, "filter"), "filter", r=2, xi=1.0, nu=1.0, tau=0.0, steps=1)
    folds = sdl_evaluation.Folds(data, data, data)
    assert sdl_evaluation.classify((data.x, data.x, data.x), folds, [1.0]).auc > 0.5


def test_projected_gradient_is_the_gradient_inside_and_ignores_blocked_directions() -> None:
    data = problem()
    inner = sdl_bcd.random_factors(data, 3, generator=torch_generator(0, "i"))
    inner = sdl.Factors(0.5 * inner.w, inner.h, inner.beta, inner.gamma)
    setting = sdl_bcd.Settings(0.5)
    free = sdl_bcd.Settings(0.5, is_nonnegative=False)
    norms = [sdl_bcd.projected_gradient_norm(data, inner, "filter", choice) for choice in (setting, free)]
    assert norms[0] == pytest.approx(norms[1])
    slopes = (sdl_bcd.gradient_w(data, inner, "filter", 0.5), sdl_bcd.gradient_h(data, inner, "filter", 0.5))
    regression = inner.w.mT @ data.x, sdl_bcd.scores(data, inner, "filter").sigmoid() - data.labels
    rest = (regression[0] @ regression[1].mT).square().sum() + (data.covariates @ regression[1].mT).square().sum()
    assert norms[0] == pytest.approx(float(sum(g.square().sum() for g in slopes) + rest))
    blocked = inner.h.clone()
    blocked[0, 0] = 0.0
    at_bound = sdl.Factors(inner.w, blocked, inner.beta, inner.gamma)
    slope = float(sdl_bcd.gradient_h(data, at_bound, "filter", 0.5)[0, 0])
    gap = sdl_bcd.projected_gradient_norm(data, at_bound, "filter", free) - sdl_bcd.projected_gradient_norm(
        data, at_bound, "filter", setting
    )
    assert gap == pytest.approx(max(slope, 0.0) ** 2)


def test_candidates_and_naive_bayes_on_separable_counts() -> None:
    generator = torch_generator(0, "counts")
    labels = (torch.arange(120) % 2).double()[None]
    x = torch.rand(6, 120, generator=generator, dtype=F64)
    x[:3] += 3 * labels
    x[3:] += 3 * (1 - labels)
    part = sdl.Problem(x, labels, torch.ones(1, 120, dtype=F64))
    folds = sdl_evaluation.Folds(part, part, part)
    found, w = sdl_evaluation.nmf_candidates(folds, 2, seed=0)
    assert [c.setting for c in found] == ["codes", "filters"]
    torch.testing.assert_close(w.norm(dim=0), torch.ones(2, dtype=F64))
    assert sdl_evaluation.tuned(found, folds, [1.0])[0].accuracy > 0.97
    assert sdl_evaluation.naive_bayes(folds, [0.1, 1.0]).auc > 0.99
    assert 0 < found[0].reconstruction < 0.5


def test_projected_gradient_does_not_point_out_of_the_unit_ball() -> None:
    data = problem()
    inner = sdl_bcd.random_factors(data, 3, generator=torch_generator(0, "i"))
    edge = sdl.Factors(inner.w / inner.w.norm(), 0.1 * inner.h, inner.beta, inner.gamma)
    free = sdl_bcd.Settings(0.5, is_nonnegative=False)
    step = -sdl_bcd.gradient_w(data, edge, "filter", 0.5)
    outward = float((step * edge.w).sum())
    assert outward > 0.1
    within = sdl.Factors((1 - 1e-6) * edge.w, edge.h, edge.beta, edge.gamma)
    gap = sdl_bcd.projected_gradient_norm(data, within, "filter", free) - sdl_bcd.projected_gradient_norm(
        data, edge, "filter", free
    )
    assert gap == pytest.approx(outward**2, rel=1e-3)
