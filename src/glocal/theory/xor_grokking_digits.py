"""XOR of handwritten digits: the clusters of the theory with real, anisotropic noise inside them."""

from collections.abc import Sequence

import torch

from glocal.data.splits import stratified_split
from glocal.data.types import ImageData
from glocal.theory.xor_grokking_data import (
    N_CENTRES,
    Points,
    Problem,
    clean_labels,
    flip_labels,
    gram_blocks,
    noise_points,
)


def digit_problems(
    images: ImageData,
    runs: int,
    *,
    digits: Sequence[int],
    n_per_digit: int,
    n_test_per_digit: int,
    m: int,
    p: float,
    mu_sq: float,
    flip_rate: float,
    generator: torch.Generator,
) -> Problem:
    r"""XOR of digits: $a, b$ against $c, d$, each pair centred and scaled to $\lVert\delta\rVert^2 = $ `mu_sq`.

    An image $z$ of $a$ or $b$ becomes $(z - \frac12(\bar z_a + \bar z_b))\,\lVert\mu\rVert/\lVert\delta_1\rVert$ with
    $\delta_1 = \frac12(\bar z_a - \bar z_b)$ and class means of the training part, so that the two digits sit around
    $\pm\delta_1$; the same for $c, d$ with $\delta_2$. Standard normal coordinates fill up to $p$.

    Args:
        images: source of the digits.
        runs: independent draws of images, label flips and weights.
        digits: the four digits $a, b, c, d$.
        n_per_digit: training images per digit.
        n_test_per_digit: test images per digit.
        m: neurons.
        p: ambient dimension.
        mu_sq: squared distance of a digit's mean from the middle of its pair.
        flip_rate: share of flipped training labels.
        generator: source of randomness.

    Raises:
        ValueError: if `digits` are not four different classes, or a class has too few images.
    """
    if len(set(digits)) != N_CENTRES:
        raise ValueError(f"digits must be four different classes, got {list(digits)}")
    cpu = torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=generator, device=generator.device)))
    keep = torch.isin(images.labels, torch.tensor(list(digits)))
    pixels, labels = images.images[keep].flatten(1).double(), images.labels[keep]
    position = torch.tensor([list(digits).index(int(label)) for label in labels])
    parts = []
    for _ in range(runs):
        train, test = stratified_split(position, (n_per_digit, n_test_per_digit), generator=cpu)
        means = torch.stack([pixels[train][position[train] == c].mean(0) for c in range(N_CENTRES)])
        middle = means.reshape(2, 2, -1).mean(1).repeat_interleave(2, 0)
        scale = mu_sq**0.5 / (means - middle).norm(dim=1, keepdim=True)
        moved = (pixels - middle[position]) * scale[position]
        deltas = ((means - middle) * scale)[[0, 2]]
        parts.append((moved[train], torch.cat([moved[test], deltas]), position[train], position[test]))
    x, probes, centres, test_centres = (torch.stack(part).to(generator.device) for part in zip(*parts, strict=True))
    n, n_test, width = x.shape[1], test_centres.shape[1], x.shape[2]
    init = torch.randn(runs, m, width, generator=generator, dtype=torch.float64, device=generator.device)
    noise = noise_points(runs, n, n_test, m, p - width, generator=generator)
    grams = gram_blocks(Points(x, probes, init)) + gram_blocks(noise)
    clean = clean_labels(centres)
    return Problem(grams, flip_labels(clean, flip_rate, generator=generator), clean, clean_labels(test_centres))
