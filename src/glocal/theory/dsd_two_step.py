"""The two gradient steps of the upper bounds, literally (Lahoti et al. 2024, arXiv:2403.15707)."""

from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from glocal.theory.dsd import (
    Columns,
    Trained,
    as_columns,
    init_weights,
    linear_gradient,
    linear_problem,
    loss_gradient,
    preactivations,
    soft_threshold,
)
from glocal.theory.dsd_data import PatchData


def two_step(
    kind: str,
    data: PatchData,
    validation: PatchData,
    *,
    first_thresholds: tuple[float, ...] = (1.0, 1.5, 2.0, 2.5, 3.0),
    second_thresholds: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0),
    lr: float = 1e-3,
) -> Trained:
    r"""Two full-batch gradient steps for the CNN or LCN, all pairs of thresholds side by side.

    Step 1, at weights zero and $b = 0$: $w_1 = -\eta\nabla L$, the label-weighted mean
    $\frac{2\eta}n\sum_i y_i\sum_s x_i^{(s)}$ (CNN) or $\frac{2\eta}n\sum_i y_ix_i^{(s)}$ (LCN).
    Then $b$ is raised to a multiple of the root mean square of the preactivations, and step 2 takes the gradient
    again: with a small $\eta$ it is the label-weighted mean of only those patches that pass the threshold.
    The networks are positively homogeneous in $(w, b)$, so the learning rate of step 2 is a scale;
    it is set by least squares on the training images.

    Args:
        kind: `"cnn"` or `"lcn"`. In the FCN both steps would give all rows the same weights.
        data: training images.
        validation: images that will choose among the models.
        first_thresholds: multiples for the threshold of step 2.
        second_thresholds: multiples for the final threshold.
        lr: learning rate $\eta$ of step 1.

    Returns:
        One model per pair of thresholds, with its validation risk.

    Raises:
        ValueError: for another kind.

    Source: the algorithm of the upper bounds; the thresholds' constants are chosen by validation here.
    """
    if kind not in ("cnn", "lcn"):
        raise ValueError(
            f"two_step knows the kinds cnn and lcn, got {kind!r}: a dense network needs more than two steps"
        )
    columns = as_columns(data.x, kind)
    runs, k, d, _ = columns.shape
    pairs = torch.tensor(list(product(first_thresholds, second_thresholds)), dtype=columns.dtype, device=columns.device)
    first, many = pairs[:: len(second_thresholds), 0], len(second_thresholds)
    y = data.y[:, None]
    generator = torch.Generator(device=columns.device)
    zero = init_weights(kind, runs, 1, k, d, scale=0.0, generator=generator).to(columns.dtype)
    w = -lr * linear_gradient(kind, zero, linear_problem(kind, columns, y))
    b = first * root_mean_square(preactivations(kind, w, columns))
    w = w.expand(-1, -1, len(first), -1)
    w = w - loss_gradient(kind, w, b, columns, y.expand(-1, len(first), -1))[0]
    b = pairs[:, 1] * root_mean_square(preactivations(kind, w, columns)).repeat_interleave(many, 1)

    def outputs(images: Columns) -> Float[Tensor, "runs models n"]:  # each filter with all of its final thresholds
        z = preactivations(kind, w, images).repeat_interleave(many, 2)
        return soft_threshold(z, b[:, None, :, None]).sum(1)

    f = outputs(columns)
    scale = ((f * y).sum(-1) / f.square().sum(-1).clamp(min=1e-30)).clamp(min=0)
    val_risk = (scale[..., None] * outputs(as_columns(validation.x, kind)) - validation.y[:, None]).square().mean(-1)
    w, b = scale[:, None, :, None] * w.repeat_interleave(many, 2), scale * b
    return Trained(kind, w, b, val_risk)


def root_mean_square(z: Float[Tensor, "runs k models n"]) -> Float[Tensor, "runs models"]:
    """Size of the preactivations, the unit in which thresholds are given."""
    return z.square().mean((1, 3)).sqrt()
