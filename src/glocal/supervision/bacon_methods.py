"""What distinguishes BaCon, its ablations, GCD and SimGCD, and what they share."""

from dataclasses import dataclass, replace

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

    Raises:
        ValueError: for an unknown prior.
    """

    power: float = 1.1
    prior: str = "estimated"
    has_soft: bool = True
    alpha: float = 0.0
    beta: float = 0.5
    tau_adj: float = 0.5
    is_shared: bool = False

    def __post_init__(self) -> None:
        if self.prior not in PRIORS:
            raise ValueError(f"prior must be one of {', '.join(PRIORS)}, got {self.prior!r}")

    @property
    def needs_estimate(self) -> bool:
        """Whether the estimate is used anywhere; other rows spend no time on it."""
        return self.prior == "estimated" and (self.power > 0 or self.has_soft)


def baselines(method: Method) -> dict[str, Method]:
    """BaCon with the given settings, its baselines and its ablations.

    The pseudo-label branch that is trained beside GCD is the ablation with a uniform prior: with $p = 0$ nothing of the
    contrastive branch reaches it.
    """
    return {
        "BaCon": method,
        "SimGCD": replace(method, power=0.0, has_soft=False, is_shared=True),
        "GCD": replace(method, power=0.0, has_soft=False),
        "oracle prior": replace(method, prior="oracle"),
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
    method: Method
