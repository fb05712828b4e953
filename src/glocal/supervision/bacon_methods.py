"""What distinguishes BaCon, its ablations, GCD, SimGCD, ORCA and OpenCon, and what they share."""

from dataclasses import dataclass, replace
from typing import ClassVar

PRIORS = ("estimated", "oracle")


@dataclass(frozen=True)
class Method:
    r"""What distinguishes one row from another; the defaults are BaCon.

    Args:
        power: exponent $p$ of the prior in $L_{reg}$; 0 is the uniform prior.
        prior: `estimated` by k-means on the contrastive branch, or `oracle`, the true class sizes.
        has_soft: whether the soft contrastive loss is used; without it the contrastive branch is exactly GCD.
        alpha: exponent of the sampling rate of classes labelled in the batch.
        beta: exponent for the other classes; alpha = beta = 0 is no re-sampling.
        tau_adj: strength $\tau_a$ of the logit adjustment.
        is_shared: one branch for both heads, as in SimGCD.
        has_contrastive: whether there is a contrastive branch; without it nothing is estimated.

    Raises:
        ValueError: for an unknown prior, or without a contrastive branch that other settings need.
    """

    power: float = 1.1
    prior: str = "estimated"
    has_soft: bool = True
    alpha: float = 0.0
    beta: float = 0.5
    tau_adj: float = 0.5
    is_shared: bool = False
    has_contrastive: bool = True

    def __post_init__(self) -> None:
        if self.prior not in PRIORS:
            raise ValueError(f"prior must be one of {', '.join(PRIORS)}, got {self.prior!r}")
        if not self.has_contrastive and (self.has_soft or self.is_shared or self.needs_estimate):
            raise ValueError(
                "has_contrastive=False leaves no features to estimate from and no branch for the soft loss: "
                "set has_soft=False, is_shared=False, and prior='oracle' or power=0"
            )

    @property
    def kind(self) -> str:
        """Which network it trains, one of `KINDS`."""
        if not self.has_contrastive:
            return "class branch"
        return "shared branch" if self.is_shared else "two branches"

    @property
    def needs_estimate(self) -> bool:
        """Whether the estimate is used anywhere; other rows spend no time on it."""
        return self.prior == "estimated" and (self.power > 0 or self.has_soft)


@dataclass(frozen=True)
class Orca:
    r"""ORCA; cosines have the temperature `tau` of the settings, 0.1 as in its official code.

    Args:
        margin_cap: largest margin.
        pair_weight: weight of the pairwise objective.
        uniform_weight: weight of the pull towards uniform predictions.
    """

    kind: ClassVar[str] = "class branch"
    needs_estimate: ClassVar[bool] = False
    margin_cap: float = 0.5
    pair_weight: float = 1.0
    uniform_weight: float = 1.0


@dataclass(frozen=True)
class OpenCon:
    r"""OpenCon; the defaults are those of the official script for CIFAR.

    Args:
        known_share: share of the labelled images above the threshold, $p/100$.
        momentum: $\gamma$ of the prototypes.
        n_embedding: outputs of the projection.
        weight_labelled: weight of the supervised contrastive loss on labelled images, with `tau_labelled`.
        weight_unlabelled: weight of InfoNCE on unlabelled images, with `tau_unlabelled`.
        weight_novel: final weight of the loss on images taken as novel, with `tau_novel`.
        ramp_epochs: epochs over which that weight grows from zero.
        weight_composition: weight of the pull towards the composition of the unlabelled images.
        tau_prototypes: temperature of the similarities with prototypes in that term.
        labelled_share: share of the images of a known class that is labelled.
    """

    kind: ClassVar[str] = "prototypes"
    needs_estimate: ClassVar[bool] = False
    known_share: float = 0.7
    momentum: float = 0.9
    n_embedding: int = 128
    weight_labelled: float = 0.2
    weight_unlabelled: float = 1.0
    weight_novel: float = 0.1
    tau_labelled: float = 0.1
    tau_unlabelled: float = 0.4
    tau_novel: float = 0.7
    ramp_epochs: float = 100.0
    weight_composition: float = 0.05
    tau_prototypes: float = 0.1
    labelled_share: float = 0.5


AnyMethod = Method | Orca | OpenCon
KINDS = ("two branches", "shared branch", "class branch", "prototypes")


def baselines(method: Method, open_con: OpenCon) -> dict[str, AnyMethod]:
    """BaCon with the given settings, its baselines and its ablations.

    The pseudo-label branch that is trained beside GCD is the ablation with a uniform prior: with $p = 0$ nothing of the
    contrastive branch reaches it. With the oracle prior only that branch is trained.
    """
    return {
        "BaCon": method,
        "SimGCD": replace(method, power=0.0, has_soft=False, is_shared=True),
        "GCD": replace(method, power=0.0, has_soft=False),
        "ORCA": Orca(),
        "OpenCon": open_con,
        "oracle prior": replace(method, prior="oracle", has_soft=False, has_contrastive=False),
        "no re-sampling": replace(method, alpha=0.0, beta=0.0),
        "no logit adjustment": replace(method, tau_adj=0.0),
    }


@dataclass(frozen=True)
class Settings:
    r"""What all rows share.

    Args:
        lam: weight $\lambda$ of the supervised terms.
        epoch_steps: updates that are called an epoch.
        est_freq: epochs between two estimates of the prior.
        warmup: epochs before the soft contrastive loss sets in.
        teacher_epochs: epochs over which the teacher's temperature falls.
        tau: temperature of the student, of SupCon's and the soft loss `tau_con`, of InfoNCE `tau_nce`.
        widths: hidden widths and bottleneck of the contrastive head.
        n_outputs: its outputs.
        est_init: starts of k-means in an estimate.
        eval_init: starts of k-means in an evaluation.
    """

    lam: float = 0.35
    epoch_steps: int = 5
    est_freq: int = 5
    warmup: int = 1
    teacher_epochs: float = 30.0
    tau: float = 0.1
    tau_con: float = 0.07
    tau_nce: float = 1.0
    widths: tuple[int, ...] = (2048, 2048, 256)
    n_outputs: int = 65536
    est_init: int = 10
    eval_init: int = 10


@dataclass(frozen=True)
class Row:
    """One method on one problem; `problem` is an index."""

    problem: int
    method: AnyMethod
