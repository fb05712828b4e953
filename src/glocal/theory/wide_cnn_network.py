r"""Random hierarchical CNNs of finite width, whose kernels converge to those of `wide_cnn` (arXiv:2208.01003)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def init_network(
    filters: list[int], n_positions: int, width: int, *, generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    r"""Standard normal weights (NTK parametrisation): one filter bank per layer, then the readout.

    Args:
        filters: filter sizes, which are also the strides.
        n_positions: positions of the last hidden layer.
        width: channels $H$ of every hidden layer.
        generator: source of randomness; its device is that of the weights.
        dtype: floating-point type.

    Returns:
        Layer $l$ has shape `(width, filters[l] * channels below)`, the readout `(n_positions, width)`.
    """
    fan_in = [filters[0]] + [size * width for size in filters[1:]]
    shapes = [(width, fan) for fan in fan_in] + [(n_positions, width)]
    return [torch.randn(shape, generator=generator, dtype=dtype, device=generator.device) for shape in shapes]


def hidden_layers(
    weights: list[Tensor], x: Float[Tensor, "n p s"], filters: list[int]
) -> tuple[list[Tensor], list[Tensor], Float[Tensor, "n positions width"]]:
    r"""Scaled inputs $u^{(l)}$ and pre-activations $z^{(l)} = W^{(l)}u^{(l)}$ of each layer, and the last features.

    Features are $\sqrt2\,\mathrm{ReLU}(z)$, of mean square one; the $s_l H$ features that a unit reads are divided by
    $\sqrt{s_l H}$. The filters are shared by all positions.
    """
    inputs, preactivations, features = [], [], x
    for layer, weight in enumerate(weights[:-1]):
        if layer:
            features = features.unflatten(1, (-1, filters[layer])).flatten(2) / math.sqrt(weight.shape[1])
        inputs.append(features)
        preactivations.append(features @ weight.T)
        features = math.sqrt(2) * torch.relu(preactivations[-1])
    return inputs, preactivations, features


def network(weights: list[Tensor], x: Float[Tensor, "n p s"], filters: list[int]) -> Float[Tensor, " n"]:
    r"""Output $f(x) = \frac{1}{\sqrt{p_L H}} \sum_{i,h} w_{ih}\,\sqrt2\,\mathrm{ReLU}(z^{(L)}_{ih}(x))$.

    Source: the definition of the hierarchical CNN.
    """
    *_, features = hidden_layers(weights, x, filters)
    return (features * weights[-1]).sum((1, 2)) / math.sqrt(weights[-1].numel())


def empirical_kernels(
    weights: list[Tensor], x: Float[Tensor, "n p s"], filters: list[int]
) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n"]]:
    r"""Kernel of the last features and neural tangent kernel $\nabla_w f(x)\cdot\nabla_w f(y)$ of one network.

    The gradient with respect to a filter bank is $\sum_j \delta_j u_j^\top$ over positions, so products of
    gradients are $\sum_{jj'} (\delta_j\cdot\delta'_{j'})(u_j\cdot u'_{j'})$: no array of the size of the weights, times
    points, is needed.

    Returns:
        RFK and NTK on all pairs.
    """
    frozen = [weight.detach() for weight in weights]
    inputs, z, features = hidden_layers(frozen, x.clone().requires_grad_(), filters)
    output = (features * frozen[-1]).sum() / math.sqrt(frozen[-1].numel())
    deltas = torch.autograd.grad(output, z)
    flat = features.detach().flatten(1) / math.sqrt(frozen[-1].numel())
    rfk = flat @ flat.T
    ntk = rfk.clone()
    for u, delta in zip(inputs, deltas, strict=True):
        products = (part.detach().flatten(0, 1) @ part.detach().flatten(0, 1).T for part in (u, delta))
        left, right = products
        n, positions = u.shape[:2]
        ntk += (left * right).view(n, positions, n, positions).sum((1, 3))
    return rfk, ntk
