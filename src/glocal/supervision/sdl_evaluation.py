"""One protocol for supervised dictionary learning and its rivals: r features, one tuned logistic fit, one threshold."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from glocal.data.types import ImageData
from glocal.supervision.sdl import (
    Factors,
    Lifted,
    Model,
    Problem,
    best_step,
    curvature,
    factorise,
    lpgd,
    project_rank,
)
from glocal.supervision.sdl_bcd import Settings, bcd, nonnegative_codes, random_factors
from glocal.supervision.sdl_data import image_problem
from glocal.supervision.sdl_logistic import auc, f_score, ridge_logistic, training_threshold

Solver = Literal["bcd", "lpgd"]
Triple = tuple[Float[Tensor, "m _"], Float[Tensor, "m _"], Float[Tensor, "m _"]]
LARGEST_NEWTON = 128  # features up to which Newton's method beats L-BFGS


@dataclass(frozen=True)
class Folds:
    """One task: fit on `train`, tune on `val`, read `test` once."""

    train: Problem
    val: Problem
    test: Problem

    def parts(self) -> tuple[Problem, Problem, Problem]:
        """The three parts in order."""
        return self.train, self.val, self.test

    def without_covariates(self) -> "Folds":
        """The same task with the intercept only."""
        return Folds(*(replace(part, covariates=part.covariates[:1]) for part in self.parts()))

    def to(self, device: str | torch.device) -> "Folds":
        """The same task on `device`."""
        return Folds(*(part.to(device) for part in self.parts()))


@dataclass(frozen=True)
class Candidate:
    """Features of the three parts under one setting; `reconstruction` is the relative error, if there is one."""

    setting: str
    features: Triple
    reconstruction: float = float("nan")


@dataclass(frozen=True)
class Result:
    """Test scores of a tuned method: accuracy and F-score at the training threshold, area under the ROC curve."""

    accuracy: float
    f_score: float
    auc: float
    val_auc: float
    setting: str
    weights: Float[Tensor, "m 1"]


def classify(features: Triple, folds: Folds, c_grid: Sequence[float]) -> Result:
    """Logistic regression on the features and covariates with C tuned by the AUC on the validation part.

    Features are centred and brought to mean variance one (a single factor) with the training part's moments.
    """
    center = features[0].mean(1, keepdim=True)
    scale = (features[0] - center).square().mean().sqrt().clamp(min=1e-12)
    designs = [
        torch.cat([(part - center) / scale, fold.covariates])
        for part, fold in zip(features, folds.parts(), strict=True)
    ]
    labels = [fold.labels[0] for fold in folds.parts()]
    if len(designs[0]) <= LARGEST_NEWTON:
        ridges = torch.tensor([0.5 / c for c in c_grid], dtype=center.dtype, device=center.device)
        weights = ridge_logistic(designs[0], folds.train.labels, ridges)
    else:
        weights = torch.stack([_lbfgs(designs[0], labels[0], c) for c in c_grid])
    val = [auc((w.T @ designs[1])[0], labels[1]) for w in weights]
    best = int(np.argmax(val))
    train, _, test = [(weights[best].T @ design)[0] for design in designs]
    preds = (test >= training_threshold(train, labels[0])).to(test.dtype)
    accuracy = float((preds == labels[2]).double().mean())
    setting = f"C={c_grid[best]:g}"
    return Result(accuracy, f_score(preds, labels[2]), auc(test, labels[2]), val[best], setting, weights[best])


def _lbfgs(design: Tensor, labels: Tensor, c: float) -> Tensor:
    from sklearn.linear_model import LogisticRegression

    fit = LogisticRegression(C=c, fit_intercept=False, tol=1e-3, max_iter=500)
    fit.fit(design.T.cpu().numpy(), labels.cpu().numpy())
    return torch.as_tensor(fit.coef_.T, dtype=design.dtype, device=design.device)


def tuned(candidates: Sequence[Candidate], folds: Folds, c_grid: Sequence[float]) -> tuple[Result, list[Result]]:
    """The best of `candidates` on the validation part (and of C), and the results of all of them."""
    results = [classify(candidate.features, folds, c_grid) for candidate in candidates]
    best = max(range(len(results)), key=lambda i: results[i].val_auc)
    chosen = replace(results[best], setting=f"{candidates[best].setting} {results[best].setting}".strip())
    return chosen, results


def fit_dictionary(
    problem: Problem,
    model: Model,
    solver: Solver,
    settings: Settings,
    *,
    r: int,
    n_iter: int,
    generator: torch.Generator,
) -> Factors:
    """Supervised dictionary of rank r by block descent from a random start, or by LPGD from zero.

    Raises:
        ValueError: unknown solver.
    """
    if solver == "bcd":
        return bcd(problem, random_factors(problem, r, generator=generator), model, settings, n_iter=n_iter).factors
    if solver != "lpgd":
        raise ValueError(f"solver must be 'bcd' or 'lpgd', got {solver!r}")
    x = problem.x
    a = x.new_zeros(len(x), 1) if model == "filter" else x.new_zeros(1, x.shape[1])
    start = Lifted(a, torch.zeros_like(x), x.new_zeros(len(problem.covariates), 1))
    tau = best_step(*curvature(problem, model, settings.xi, settings.nu))
    options = {"r": r, "xi": settings.xi, "nu": settings.nu, "tau": tau, "steps": n_iter}
    theta = lpgd(problem, start, model, projection="gram", **options).theta  # type: ignore[arg-type]
    return factorise(theta, r, model)


def dictionary_features(w: Float[Tensor, "p r"], folds: Folds, model: Model, is_nonnegative: bool = True) -> Triple:
    r"""$W^\top X$ (filter) or the codes $\arg\min_{H \ge 0}\lVert X - WH\rVert_F^2$ (feature) of all three parts."""
    targets = [w.T @ part.x for part in folds.parts()]
    if model == "filter":
        return targets[0], targets[1], targets[2]
    gram, options = w.T @ w, {"sweeps": 60, "is_nonnegative": is_nonnegative}
    codes = [nonnegative_codes(gram, target, torch.zeros_like(target), **options) for target in targets]  # type: ignore[arg-type]
    return codes[0], codes[1], codes[2]


def sdl_candidates(
    folds: Folds,
    model: Model,
    solver: Solver,
    settings: Sequence[Settings],
    *,
    r: int,
    n_iter: int,
    generator: Callable[[], torch.Generator],
) -> tuple[list[Candidate], list[Factors]]:
    r"""Supervised dictionaries along a path of $\xi$ (one per entry of `settings`), all from the same start."""
    candidates, fits = [], []
    for setting in settings:
        fit = fit_dictionary(folds.train, model, solver, setting, r=r, n_iter=n_iter, generator=generator())
        features = dictionary_features(fit.w, folds, model, setting.is_nonnegative)
        candidates.append(Candidate(f"xi={setting.xi:g}", features, reconstruction_error(folds.train.x, fit.w @ fit.h)))
        fits.append(fit)
    return candidates, fits


def nmf_candidates(
    folds: Folds, r: int, *, seed: int, n_iter: int = 200
) -> tuple[list[Candidate], Float[Tensor, "p r"]]:
    """scikit-learn's NMF of the training part; read by codes or as filters, the validation part chooses."""
    from sklearn.decomposition import NMF

    x = folds.train.x.clamp(min=0)
    nmf = NMF(r, init="random", random_state=seed % 2**32, max_iter=n_iter, tol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fixed number of iterations is the budget, not a failure
        codes = nmf.fit_transform(x.T.cpu().numpy())
    w, own = (torch.as_tensor(part, dtype=x.dtype, device=x.device) for part in (nmf.components_.T.copy(), codes))
    length = w.norm(dim=0).clamp(min=1e-12)
    w, own = w / length, own * length
    error = reconstruction_error(folds.train.x, w @ own.T)
    return [
        Candidate("codes", dictionary_features(w, folds, "feature"), error),
        Candidate("filters", dictionary_features(w, folds, "filter"), error),
    ], w


def linear_candidates(folds: Folds, r: int) -> dict[str, list[Candidate]]:
    """Rivals without a dictionary of parts: all features, principal components, partial least squares."""
    from sklearn.cross_decomposition import PLSRegression

    x, parts = folds.train.x, folds.parts()
    center = x.mean(1, keepdim=True)
    basis = torch.linalg.eigh((x - center) @ (x - center).T).eigenvectors[:, -r:]
    pca = tuple(basis.T @ (part.x - center) for part in parts)
    pls = PLSRegression(r, scale=False).fit(x.T.cpu().numpy(), folds.train.labels[0].cpu().numpy())
    scores = tuple(
        torch.as_tensor(pls.transform(part.x.T.cpu().numpy()).T, dtype=x.dtype).to(x.device) for part in parts
    )
    error = reconstruction_error(x - center, project_rank(x - center, r, "gram"))
    return {
        "logistic": [Candidate("", (parts[0].x, parts[1].x, parts[2].x))],
        "PCA + logistic": [Candidate("", (pca[0], pca[1], pca[2]), error)],
        "PLS-DA": [Candidate("", (scores[0], scores[1], scores[2]))],
    }


def reconstruction_error(x: Float[Tensor, "p n"], approximation: Float[Tensor, "p n"]) -> float:
    r"""$\lVert X - \hat X\rVert_F / \lVert X\rVert_F$."""
    return float((x - approximation).norm() / x.norm())


def naive_bayes(folds: Folds, alphas: Sequence[float]) -> Result:
    """Multinomial naive Bayes on non-negative features, its smoothing tuned like C; covariates cannot enter."""
    from sklearn.naive_bayes import MultinomialNB

    labels = [part.labels[0] for part in folds.parts()]
    best: tuple[float, float, list[Tensor]] | None = None
    for alpha in alphas:
        fit = MultinomialNB(alpha=alpha).fit(folds.train.x.T.cpu().numpy(), labels[0].cpu().numpy())
        odds = [torch.as_tensor(fit.predict_log_proba(part.x.T.cpu().numpy())) for part in folds.parts()]
        scores = [(value[:, 1] - value[:, 0]).to(labels[0]) for value in odds]
        quality = auc(scores[1], labels[1])
        if best is None or quality > best[0]:
            best = (quality, alpha, scores)
    if best is None:
        raise ValueError("alphas must hold at least one value, got none")
    quality, alpha, scores = best
    preds = (scores[2] >= training_threshold(scores[0], labels[0])).to(scores[2].dtype)
    accuracy, area = float((preds == labels[2]).double().mean()), auc(scores[2], labels[2])
    return Result(accuracy, f_score(preds, labels[2]), area, quality, f"alpha={alpha:g}", preds.new_zeros(0, 1))


def image_folds(images: ImageData, *, generator: torch.Generator) -> Folds:
    """A random 64/16/20 split of two-class images."""
    order, n = torch.randperm(len(images), generator=generator), len(images)
    cuts = (order[: int(0.64 * n)], order[int(0.64 * n) : int(0.8 * n)], order[int(0.8 * n) :])
    return Folds(*(image_problem(images, rows) for rows in cuts))
