r"""Exact spectra of hierarchical kernels and the learning curves they predict, for `wide_cnn` (arXiv:2208.01003).

With two coordinates per patch the inputs are $p$ angles and the kernels depend on the $p$ differences of angles
only: the eigenfunctions are Fourier modes $e^{i\,\mathbf k\cdot\theta}$, $\mathbf k \in \mathbb Z^p$, the eigenvalues
Fourier coefficients. Sizes: `modes` wave vectors, `p` patches.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.fft import dctn
from scipy.optimize import brentq

from glocal.theory.wide_cnn import SMOOTHNESS, hierarchical_kernels


@dataclass(frozen=True)
class TorusSpectrum:
    r"""Eigenvalues of the kernels of all depths and kinds.

    Args:
        waves: $|k_i|$ of a representative, in the first field of its layer.
        multiplicity: number of modes with this eigenvalue: signs, and fields that carry the same pattern.
        sectors: the layer whose field the mode needs, and no smaller; 0 for the constant.
        values: $\Lambda_{\mathbf k}$ by `(depth, kind)`.
    """

    waves: Int[np.ndarray, "modes p"]
    multiplicity: Float[np.ndarray, " modes"]
    sectors: Int[np.ndarray, " modes"]
    values: dict[tuple[int, str], Float[np.ndarray, " modes"]]


def torus_spectrum(filters: list[int], half_grids: list[int], *, n_fields: int = 1, coarse: int = 6) -> TorusSpectrum:
    r"""Eigenvalues sector by sector, by cosine transforms of the kernels of all depths.

    Modes of sector $l$ live on one field of layer $l$, $\prod_{2 \le i \le l} s_i$ patches. They are computed on a grid
    that is fine in the angles of this field and coarse in the others, over which the transform averages. The kernels
    are even in every difference of angles, so the angles $\pi j/h$, $j = 0, \dots, h$, suffice. Frequencies beyond $h$
    are folded back, which matters near $|k_i| = h$ only.

    Args:
        filters: filter sizes, the first of which must be 2.
        half_grids: $h$ for each sector; sector $l$ costs about $h_l^{p_l}$ kernel values with $p_l$ its patches.
        n_fields: fields of the last layer in the input, over which the kernel is the mean: each has the same modes,
            at `1 / n_fields` the weight; the constant is common to all.
        coarse: $h$ for the angles outside the field.

    Raises:
        ValueError: if the first filter is not 2, or there is not one grid per filter.

    Source: the theorem on eigenfunctions and sectors.
    """
    if filters[0] != 2:
        raise ValueError(f"Fourier modes need patches of two coordinates, got filters={filters}: start them with 2")
    if len(half_grids) != len(filters):
        raise ValueError(f"half_grids needs one entry per filter, {len(filters)}, got {half_grids}")
    n_patches = math.prod(filters[1:])
    waves, sector_of, multiplicity = [], [], []
    values: dict[tuple[int, str], list[np.ndarray]] = {}
    for sector, half in enumerate(half_grids, 1):
        inside = math.prod(filters[1:sector])
        sides = [half if i < inside else coarse for i in range(n_patches)]
        transform = _cosine_transform(filters, sides)
        k = np.stack([axis.ravel() for axis in np.meshgrid(*[np.arange(half + 1)] * inside, indexing="ij")], 1)
        keep = _needs_sector(k, filters, sector)
        if sector == 1:
            keep |= (k == 0).all(1)  # the constant comes along with the first sector
        waves.append(np.pad(k[keep], ((0, 0), (0, n_patches - inside))))
        is_constant = (k[keep] == 0).all(1)
        signs = 2.0 ** ((k[keep] != 0) & (k[keep] != half)).sum(1)
        multiplicity.append(np.where(is_constant, 1.0, signs * n_fields * (n_patches // inside)))
        sector_of.append(np.where(is_constant, 0, sector))
        for key, coefficients in transform.items():
            outside_constant = coefficients.reshape([half + 1] * inside + [-1])[..., 0]
            own = outside_constant.ravel()[keep]
            # modes of zero weight come out as rounding errors of either sign
            values.setdefault(key, []).append(np.where(is_constant, own, own / n_fields).clip(min=0))
    joined = {key: np.concatenate(parts) for key, parts in values.items()}
    return TorusSpectrum(np.concatenate(waves), np.concatenate(multiplicity), np.concatenate(sector_of), joined)


def _cosine_transform(filters: list[int], sides: list[int]) -> dict[tuple[int, str], np.ndarray]:
    """Fourier coefficients of all kernels on a grid with `2 * sides[i]` points on circle `i`."""
    cosines = [torch.cos(torch.pi * torch.arange(side + 1, dtype=torch.float64) / side) for side in sides]
    grid = torch.stack(torch.meshgrid(*cosines, indexing="ij"))
    chunks = [hierarchical_kernels(part, filters) for part in grid.flatten(1).split(2**15, dim=1)]
    points = math.prod(2 * side for side in sides)
    tables = {key: torch.cat([chunk[key] for chunk in chunks]).view(grid.shape[1:]) for key in chunks[0]}
    return {key: dctn(table.numpy(), type=1) / points for key, table in tables.items()}


def _needs_sector(k: np.ndarray, filters: list[int], sector: int) -> np.ndarray:
    """Whether modes on the patches of one field of layer `sector` fit into no field of the layer below."""
    if sector == 1:
        return k[:, 0] != 0
    blocks = k.reshape(len(k), filters[sector - 1], -1)
    return (blocks != 0).any(2).sum(1) > 1


def predicted_curve(
    spectrum: TorusSpectrum,
    teacher: tuple[int, str],
    student: tuple[int, str],
    sizes: list[int],
    *,
    ridge: float = 1e-10,
) -> Float[np.ndarray, " sizes"]:
    r"""Learning curve that follows from the spectra, for Gaussian features with the student's eigenvalues,

    $$P = \sum_k \frac{\Lambda_k}{\Lambda_k + \tau} + \frac\lambda\tau, \qquad
    \epsilon(P) = \frac{1}{1 - \gamma} \sum_k T_k \Big(\frac{\tau}{\Lambda_k + \tau}\Big)^2, \qquad
    \gamma = \frac1P \sum_k \Big(\frac{\Lambda_k}{\Lambda_k + \tau}\Big)^2,$$

    with $T_k$ the teacher's eigenvalues: modes with $\Lambda_k \gg \tau$ are learned, the others are not.

    Args:
        spectrum: from `torus_spectrum`.
        teacher: depth and kind.
        student: depth and kind.
        sizes: training-set sizes $P$.
        ridge: $\lambda$ relative to $K(x, x)$.

    Returns:
        Error over the variance of the teacher.

    Raises:
        ValueError: if a size is not below the number of modes that the student has.

    Source: Bordelon, Canatar and Pehlevan, ICML 2020; averaged over teachers.
    """
    kernel, target, copies = spectrum.values[student], spectrum.values[teacher], spectrum.multiplicity
    is_active = kernel > 1e-16 * kernel.max()
    if sizes[-1] >= copies[is_active].sum():
        raise ValueError(
            f"sizes must stay below {copies[is_active].sum():.0f}, the modes on this grid, got {sizes[-1]}: refine it"
        )
    absolute = ridge * (copies @ kernel)
    errors = []
    for size in sizes:

        def excess(log_tau: float, size: int = size) -> float:
            tau = math.exp(log_tau)
            return float(copies @ (kernel / (kernel + tau))) + absolute / tau - size

        tau = math.exp(brentq(excess, math.log(1e-18), math.log(2 * (copies @ kernel) + 1), xtol=1e-8))
        learned = kernel / (kernel + tau)
        unlearned = float((copies * target) @ (1 - learned) ** 2)
        errors.append(unlearned / (1 - float(copies @ learned**2) / size))
    is_varying = spectrum.sectors > 0
    return np.array(errors) / float(copies[is_varying] @ target[is_varying])


def unreachable_share(spectrum: TorusSpectrum, teacher: tuple[int, str], student_depth: int) -> float:
    """Share of a teacher's variance in modes that a student with smaller fields lacks: its error stays above."""
    target = spectrum.multiplicity * spectrum.values[teacher]
    return float(target[spectrum.sectors > student_depth].sum() / target[spectrum.sectors > 0].sum())


def predicted_exponent(kind: str, teacher_dim: int, student_dim: int) -> float:
    r"""Asymptotic exponent $\beta$ of $\epsilon \sim P^{-\beta}$ for a teacher and a student of one kind,

    $$\beta = \frac{2\nu}{2\nu + d_T} \cdot \frac{2\nu + d_S}{d_S}, \qquad
    \beta = \frac{2\nu}{d_T} \text{ for } d_S = d_T, \qquad
    \beta \to \frac{2\nu}{2\nu + d_T} \text{ for } d_S \to \infty.$$

    The second factor is the student's capacity: its eigenvalues by rank decay as $\rho^{-(2\nu + d_S)/d_S}$, so that
    $\tau \sim P^{-(2\nu + d_S)/d_S}$. The first is the source: in its own sector both spectra decay as
    $k^{-2\nu - d_T}$, and the modes with $\Lambda_k < \tau$ hold a share $\tau^{2\nu/(2\nu + d_T)}$ of the variance.

    Args:
        kind: `"rfk"` or `"ntk"`.
        teacher_dim: effective dimension $d_T$ of the teacher, at most $d_S$.
        student_dim: effective dimension $d_S$ of the student.

    Raises:
        ValueError: if the student is shallower than the teacher; its error does not decay to zero.
    """
    if teacher_dim > student_dim:
        raise ValueError(
            f"the student's effective dimension must be at least the teacher's, got {student_dim} < {teacher_dim}: "
            "its error saturates, see unreachable_share"
        )
    two_nu = 2 * SMOOTHNESS[kind]
    return two_nu / (two_nu + teacher_dim) * (two_nu + student_dim) / student_dim
