r"""Teacher-student kernel regression and its learning curves, for `wide_cnn` (arXiv:2208.01003).

A teacher is a Gaussian random field with covariance $K_T$: a random infinitely wide network. The student is kernel
regression with $K_S$. Sizes: `n` training points, `m` test points, `fields` independent teachers on the same inputs.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from glocal.theory.wide_cnn import gram, multisphere_inputs


def jittered_cholesky(kernel: Float[Tensor, "n n"], ridge: float) -> Float[Tensor, "n n"]:
    r"""Lower Cholesky factor of $K + \lambda\,\bar k I$, where $\bar k = \mathrm{tr} K / n$.

    Raises:
        ValueError: if the matrix is not positive definite to working accuracy.
    """
    shifted = kernel.clone()
    shifted.diagonal().add_(ridge * kernel.diagonal().mean())
    factor, info = torch.linalg.cholesky_ex(shifted)
    if info.item():
        raise ValueError(
            f"the kernel matrix must be positive definite, got a failure at row {info.item()} with ridge={ridge:g}: "
            "use float64, distinct points, or a larger ridge"
        )
    return factor


def sample_fields(
    kernel: Float[Tensor, "n n"], fields: int, *, generator: torch.Generator, jitter: float = 1e-12
) -> Float[Tensor, "n fields"]:
    r"""Gaussian random fields with covariance $K$, jointly on all points: random infinitely wide networks.

    Args:
        kernel: $K(X, X)$ on all points, training and test.
        fields: independent draws.
        generator: source of randomness.
        jitter: relative white noise that lets the Cholesky factor exist.

    Source: the teacher-student set-up.
    """
    noise = torch.randn((len(kernel), fields), generator=generator, dtype=kernel.dtype, device=kernel.device)
    return jittered_cholesky(kernel, jitter) @ noise


def nested_predictions(
    train_kernel: Float[Tensor, "n n"],
    cross_kernel: Float[Tensor, "n m"],
    targets: Float[Tensor, "n fields"],
    sizes: list[int],
    *,
    ridge: float = 1e-10,
) -> Float[Tensor, "sizes m fields"]:
    r"""Kernel regression on the first $P$ points for every $P$ in `sizes`, from one Cholesky factor.

    The leading block of the factor $L$ is the factor of the leading block of $K$. With $V = L^{-1}K(X, X_*)$ and
    $u = L^{-1}f(X)$ the prediction from $P$ points is therefore a partial sum,

    $$\hat f_P(x_*) = K(x_*, X_P)\,K(X_P, X_P)^{-1} f(X_P) = \sum_{i \le P} V_{i*}\,u_i .$$

    Args:
        train_kernel: $K(X, X)$.
        cross_kernel: $K(X, X_*)$.
        targets: $f(X)$, one column per teacher.
        sizes: training-set sizes $P$, increasing.
        ridge: $\lambda$ relative to the mean of the diagonal.

    Raises:
        ValueError: if the sizes are not increasing, not positive or exceed the number of points.

    Source: ridgeless regression; ridge $10^{-10}$ stands for zero.
    """
    if not sizes or sizes[0] < 1 or sizes[-1] > len(train_kernel) or sorted(set(sizes)) != sizes:
        raise ValueError(f"sizes must increase within 1..{len(train_kernel)}, the training points, got {sizes}")
    factor = jittered_cholesky(train_kernel, ridge)
    v = torch.linalg.solve_triangular(factor, cross_kernel, upper=False)
    u = torch.linalg.solve_triangular(factor, targets, upper=False)
    steps = [v[a:b].T @ u[a:b] for a, b in zip([0, *sizes[:-1]], sizes, strict=True)]
    return torch.stack(steps).cumsum(0)


def relative_errors(
    predictions: Float[Tensor, "sizes m fields"], truth: Float[Tensor, "m fields"]
) -> Float[Tensor, " sizes"]:
    r"""Mean squared error over test points and teachers, in units of the teachers' variance over the inputs."""
    return (predictions - truth).square().mean((1, 2)) / truth.var(0).mean()


def teacher_student_curves(
    *,
    d: int,
    filters: list[int],
    pairs: list[tuple[int, int, str]],
    sizes: list[int],
    n_test: int,
    fields: int,
    generator: torch.Generator,
    ridge: float = 1e-10,
    jitter: float = 1e-12,
    block_elements: int = 2**16,
) -> dict[tuple[int, int, str], Float[Tensor, " sizes"]]:
    r"""Learning curves of students of several depths on teachers of several depths, on one draw of inputs.

    Everything that can be shared is: the inputs, one pass through the layers for all depths and kinds, the fields of
    a teacher for all students, and a student's Cholesky factor for all sizes and teachers.

    Args:
        d: input dimension.
        filters: filter sizes of the deepest network; a network of depth $l$ has the first $l$ of them.
        pairs: `(teacher depth, student depth, kind)` of each curve.
        sizes: training-set sizes, increasing.
        n_test: test points.
        fields: teachers drawn per teacher kernel; errors are averaged over them.
        generator: draws inputs and fields.
        ridge: see `nested_predictions`.
        jitter: white noise in the fields, in units of their variance; lets the Cholesky factor exist.
        block_elements: see `gram`.

    Returns:
        Error over teacher variance at each size, for each of `pairs`.

    Source: the official protocol; there, every size has inputs of its own.
    """
    n = sizes[-1]
    x = multisphere_inputs(n + n_test, d, filters[0], generator=generator)
    depths = sorted({depth for teacher, student, _ in pairs for depth in (teacher, student)})
    kinds = sorted({kind for *_, kind in pairs})
    kernels = gram(x, filters=filters, depths=depths, kinds=kinds, block_elements=block_elements)
    targets = {
        key: sample_fields(kernels[key], fields, generator=generator, jitter=jitter)
        for key in sorted({(teacher, kind) for teacher, _, kind in pairs})
    }
    curves = {}
    for student, kind in sorted({(student, kind) for _, student, kind in pairs}):
        teachers = [teacher for teacher, other, k in pairs if (other, k) == (student, kind)]
        joint = torch.cat([targets[teacher, kind] for teacher in teachers], 1)
        kernel = kernels[student, kind]
        predictions = nested_predictions(kernel[:n, :n], kernel[:n, n:], joint[:n], sizes, ridge=ridge)
        for i, teacher in enumerate(teachers):
            part = slice(i * fields, (i + 1) * fields)
            curves[teacher, student, kind] = relative_errors(predictions[:, :, part], joint[n:, part])
    return curves


def fit_exponent(sizes: list[int], errors: Float[Tensor, "*runs sizes"]) -> Float[Tensor, "*runs"]:
    r"""Least-squares slope of $\log\epsilon$ against $\log P$; $-\beta$ for a power law $P^{-\beta}$.

    Raises:
        ValueError: with fewer than two sizes.
    """
    if len(sizes) < 2:
        raise ValueError(f"a slope needs at least two sizes, got {sizes}")
    log = torch.as_tensor(sizes, dtype=errors.dtype, device=errors.device).log()
    centred = log - log.mean()
    return errors.log() @ centred / centred.square().sum()
