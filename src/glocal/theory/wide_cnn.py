r"""Kernels of infinitely wide hierarchical CNNs, exactly (Cagnetta et al., ICML 2023, arXiv:2208.01003).

Sizes: `n` and `m` points, `p` patches of the input with `s` coordinates each. A network is written as its list of
filter sizes $(s_1, \dots, s_L)$, which are also the strides. Regression with these kernels is in
`wide_cnn_regression`, their exact spectrum in `wide_cnn_spectrum`, networks of finite width in `wide_cnn_network`.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

KINDS = ("rfk", "ntk")
# nu: the kernel is analytic up to |x - y|^(2 nu) at coinciding points
SMOOTHNESS = {"rfk": 1.5, "ntk": 0.5}


def arc_cosine(t: Float[Tensor, "*batch"]) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    r"""Arc-cosine kernels of order zero and one, normalised to $\kappa_0(1) = \kappa_1(1) = 1$,

    $$\kappa_0(t) = \frac{\pi - \arccos t}{\pi}, \qquad
    \kappa_1(t) = \frac{\sqrt{1 - t^2} + (\pi - \arccos t)\,t}{\pi}, \qquad \kappa_1' = \kappa_0.$$

    They are $2E[\mathbb 1_{u>0}\mathbb 1_{v>0}]$ and $2E[\mathrm{ReLU}(u)\,\mathrm{ReLU}(v)]$ for standard normal
    $u, v$ of correlation $t$. Rounding may push a cosine out of $[-1, 1]$; it is clamped.
    """
    t = t.clamp(-1, 1)
    kappa0 = t.arccos().mul_(-1 / math.pi).add_(1)
    kappa1 = torch.addcmul((1 - t * t).sqrt_().div_(math.pi), kappa0, t)
    return kappa0, kappa1


def receptive_field(filters: list[int]) -> int:
    r"""Number of inputs that a unit of the last hidden layer sees, $\prod_{i \le L} s_i$."""
    return math.prod(filters)


def effective_dimension(filters: list[int]) -> int:
    r"""$d_{\mathrm{eff}}(L) = (s_1 - 1)\prod_{i=2}^L s_i$: each patch lies on a sphere and has lost one dimension.

    Source: definition of the effective dimensionality of a meta-patch.
    """
    return (filters[0] - 1) * math.prod(filters[1:])


def multisphere_inputs(
    n: int, d: int, patch: int, *, generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> Float[Tensor, "n p s"]:
    r"""Inputs whose $p = d/s_1$ patches are independent and uniform on the unit sphere of $\mathbb R^{s_1}$.

    Args:
        n: number of points.
        d: coordinates of a point.
        patch: $s_1$, coordinates of a patch.
        generator: source of randomness; its device is that of the points.
        dtype: floating-point type.

    Raises:
        ValueError: if `patch` does not divide `d`.

    Source: the multisphere of the paper; sampling as in the official repository.
    """
    if d % patch:
        raise ValueError(
            f"patch must divide d, got d={d} and patch={patch}: choose d as a multiple of the first filter"
        )
    x = torch.randn((n, d // patch, patch), generator=generator, dtype=dtype, device=generator.device)
    return x / x.norm(dim=-1, keepdim=True)


def patch_cosines(x: Float[Tensor, "n p s"], y: Float[Tensor, "m p s"]) -> Float[Tensor, "p n m"]:
    r"""$c_i = \langle x_i, y_i\rangle$ of patches at equal positions; the patches must have length one."""
    return x.transpose(0, 1) @ y.permute(1, 2, 0)


def hierarchical_kernels(
    cosines: Float[Tensor, " p *batch"], filters: list[int], *, depths: list[int] | None = None
) -> dict[tuple[int, str], Float[Tensor, "*batch"]]:
    r"""Both kernels of a hierarchical CNN and of all shallower ones that share its first filters.

    With $c^{(0)}_i = \Theta^{(0)}_i$ the cosine of patch $i$, layer $l = 1, \dots, L$ computes

    $$c^{(l)}_j = \operatorname*{mean}_i\ \kappa_1(c^{(l-1)}_i), \qquad
    \Theta^{(l)}_j = \operatorname*{mean}_i\,
    \big[\kappa_0(c^{(l-1)}_i)\,\Theta^{(l-1)}_i + \kappa_1(c^{(l-1)}_i)\big],$$

    where $i$ runs over the $s_{l+1}$ positions that unit $j$ of the next layer reads. The kernel of the network that
    ends after layer $l$ has the same right-hand side with $i$ running over all positions.

    Args:
        cosines: $c^{(0)}$, one slice per patch.
        filters: $(s_1, \dots, s_L)$; the patches must fill whole fields of the last layer.
        depths: which $l$ to return; all of $1, \dots, L$ by default.

    Returns:
        `kernels[l, kind]`, the random-feature (NNGP) kernel $c^{(l)}$ for `"rfk"`, the neural tangent kernel
        $\Theta^{(l)}$ for `"ntk"`, of the network with the filters $(s_1, \dots, s_l)$.

    Raises:
        ValueError: if the filters do not tile the patches, or a depth does not exist.

    Source: the kernels of hierarchical CNNs; normalisation of the official repository.
    """
    wanted = list(range(1, len(filters) + 1)) if depths is None else depths
    if not set(wanted) <= set(range(1, len(filters) + 1)):
        raise ValueError(f"depths must be in 1..{len(filters)}, the number of filters, got {wanted}")
    if len(cosines) % math.prod(filters[1:]):
        raise ValueError(
            f"{len(cosines)} patches cannot be grouped by the filters {filters[1:]}: "
            f"their number must be a multiple of {math.prod(filters[1:])}"
        )
    kernels = {}
    c = theta = cosines
    for depth in range(1, max(wanted) + 1):
        kappa0, kappa1 = arc_cosine(c)
        theta = torch.addcmul(kappa1, kappa0, theta)
        c = kappa1
        if depth in wanted:
            kernels[depth, "rfk"], kernels[depth, "ntk"] = c.mean(0), theta.mean(0)
        if depth < max(wanted):
            c, theta = (part.unflatten(0, (-1, filters[depth])).mean(1) for part in (c, theta))
    return kernels


def gram(
    x: Float[Tensor, "n p s"],
    y: Float[Tensor, "m p s"] | None = None,
    *,
    filters: list[int],
    depths: list[int] | None = None,
    kinds: list[str] | None = None,
    block_elements: int = 2**16,
) -> dict[tuple[int, str], Float[Tensor, "n m"]]:
    r"""Kernel matrices of all pairs of points, in blocks of rows; without `y`, the symmetric Gram matrices of `x`.

    Args:
        x: points with patches of unit length.
        y: further points.
        filters: filter sizes, see `hierarchical_kernels`.
        depths: which depths to keep.
        kinds: which of `"rfk"` and `"ntk"` to keep; both by default.
        block_elements: patch cosines held at a time (about ten times as many numbers are alive). A block that fits
            the processor's cache is fastest on a CPU; a GPU wants millions.

    Returns:
        `kernels[depth, kind]`, in memory $8nm$ bytes each.

    Raises:
        ValueError: for an unknown kind; see also `hierarchical_kernels`.
    """
    kinds = list(KINDS) if kinds is None else kinds
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    columns = x if y is None else y
    depths = list(range(1, len(filters) + 1)) if depths is None else depths
    out = {(depth, kind): x.new_empty(len(x), len(columns)) for depth in depths for kind in kinds}
    rows = max(1, block_elements // (x.shape[1] * len(columns)))
    start = 0
    while start < len(x):
        begin = start if y is None else 0  # below the diagonal, the block is the mirror image of an earlier one
        stop = min(start + max(rows, block_elements // (x.shape[1] * (len(columns) - begin))), len(x))
        cosines = patch_cosines(x[start:stop], columns[begin:])
        if y is None:  # exactly one: kappa_0 would turn a rounding error of 1e-16 into one of 1e-8
            cosines.diagonal(dim1=1, dim2=2).fill_(1)
        block = hierarchical_kernels(cosines, filters, depths=depths)
        for key, matrix in out.items():
            matrix[start:stop, begin:] = block[key]
            if y is None:
                matrix[stop:, start:stop] = block[key][:, stop - start :].T
        start = stop
    return out
