r"""How training settles: error barriers between children of one parent, and the velocity of the tangent kernel.

s networks, n examples, k classes, m examples of a kernel.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from glocal.nn.networks import MLP
from glocal.nn.stack import NetworkStack, Weights


def spawn_batches(
    parent: Int[Tensor, "n_steps s b"], other: Int[Tensor, "n_steps s b"], step: int
) -> Int[Tensor, "n_steps s b"]:
    """The batches of a child: its parent's up to `step`, another data order from there on.

    Trained from the parent's initial weights, it shares the parent's path, momentum included, until `step`.

    Raises:
        ValueError: if `step` is outside the training.
    """
    if not 0 <= step <= len(parent):
        raise ValueError(f"step must be between 0 and the {len(parent)} steps of the training, got {step}")
    return torch.cat([parent[:step], other[step:]])


@torch.no_grad()
def errors_on_path(
    stack: NetworkStack,
    first: Weights,
    second: Weights,
    x: Float[Tensor, "_ n ..."],
    labels: Int[Tensor, "s n"],
    n_points: int = 11,
) -> Float[Tensor, "s n_points"]:
    r"""Error of $\alpha w_1 + (1 - \alpha) w_2$ at equally spaced $\alpha$ from 0 to 1, for each pair of networks.

    Running statistics of batch norm, where there are any, are interpolated like weights.
    """
    errors = []
    for alpha in torch.linspace(0, 1, n_points).tolist():
        mixed = {name: torch.lerp(second[name].float(), first[name].float(), alpha) for name in first}
        wrong = stack(x, weights=mixed).argmax(-1) != labels
        errors.append(wrong.float().mean(1))
    return torch.stack(errors, dim=1)


def error_barrier(errors: Float[Tensor, "*s n_points"]) -> Float[Tensor, "*s"]:
    """Largest error on the path minus the mean of the errors at its two ends.

    Source: definition of the error barrier between children, evaluated on the examples of one's choice.
    """
    return errors.amax(-1) - (errors[..., 0] + errors[..., -1]) / 2


def logit_kernel(network: nn.Module, x: Float[Tensor, "m ..."], *, chunk: int = 64) -> Float[Tensor, "mk mk2"]:
    r"""Gram matrix of the logit gradients, $\langle\nabla_w f^{(c)}(x_i), \nabla_w f^{(c')}(x_j)\rangle$.

    Args:
        network: in evaluation mode.
        x: m examples; the matrix has side m k.
        chunk: examples whose gradients are held at a time, twice; memory is 2 `chunk` k times the parameters.
    """
    weights = {name: p.detach() for name, p in network.named_parameters()}
    buffers = dict(network.named_buffers())

    def gradients(part: Tensor) -> Tensor:
        def logits(w: Weights, x_i: Tensor) -> Tensor:
            return functional_call(network, {**buffers, **w}, (x_i[None],))[0]

        jacobian = vmap(jacrev(logits), (None, 0))(weights, part)
        return torch.cat([j.flatten(2) for j in jacobian.values()], dim=2).flatten(0, 1)

    parts = x.split(chunk)
    rows: list[list[Tensor]] = [[] for _ in parts]
    for i, part in enumerate(parts):
        left = gradients(part)
        rows[i] += [rows[j][i].mT for j in range(i)]
        rows[i] += [left @ (left if j == i else gradients(parts[j])).mT for j in range(i, len(parts))]
    return torch.cat([torch.cat(row, dim=1) for row in rows])


@torch.no_grad()
def dense_logit_kernels(
    stack: NetworkStack, x: Float[Tensor, "_ m ..."], weights: Weights | None = None
) -> Float[Tensor, "s mk mk2"]:
    r"""The same kernels for a stack of multilayer perceptrons, layer by layer instead of gradient by gradient.

    The gradient of logit $c$ in layer $l$ is $\delta_{il}^{(c)} h_{il}^\top$, so that
    $K_{(i,c),(j,c')} = \sum_l \langle\delta_{il}^{(c)}, \delta_{jl}^{(c')}\rangle (\langle h_{il}, h_{jl}\rangle + 1)$.

    Args:
        stack: perceptrons.
        x: m examples; the leading axis is 1 or s.
        weights: stacked weights to use instead of the stack's own.

    Raises:
        TypeError: for another architecture: use `logit_kernel`.
    """
    if not isinstance(stack.network, MLP):
        raise TypeError(f"needs a stack of MLP, got {type(stack.network).__name__}: use logit_kernel")
    named = weights or stack.weights
    layers = [name.removesuffix(".weight") for name in named if name.endswith(".weight")]
    kernels = []
    for network in range(len(stack)):  # one at a time: the matrices of one network stay in the cache
        matrices = [named[f"{layer}.weight"][network] for layer in layers]
        inputs, h = [], x.flatten(2)[network if len(x) > 1 else 0]
        for layer, matrix in zip(layers, matrices, strict=True):
            inputs.append(h)
            h = (h @ matrix.T + named[f"{layer}.bias"][network]).relu()
        m, k = h.shape
        sizes = [part @ part.T + 1 for part in inputs]
        kernel = torch.einsum("ij,cd->icjd", sizes[-1], torch.eye(k, device=h.device))  # the head: delta is one-hot
        signal = matrices[-1].expand(m, k, -1)
        for position in reversed(range(len(layers) - 1)):
            signal = signal * (inputs[position + 1] > 0)[:, None]
            flat = signal.flatten(0, 1)
            kernel = kernel.addcmul((flat @ flat.T).view(m, k, m, k), sizes[position][:, None, :, None])
            signal = signal @ matrices[position]
        kernels.append(kernel.reshape(m * k, m * k))
    return torch.stack(kernels)


def velocities(
    stack: NetworkStack, before: Weights, after: Weights, x: Float[Tensor, "s m ..."], *, chunk: int = 64
) -> list[float]:
    """Kernel velocity of each network between two states, on its own examples; see `logit_kernel` for `chunk`."""
    if isinstance(stack.network, MLP):
        kernels = [dense_logit_kernels(stack, x, weights) for weights in (before, after)]
    else:
        kernels = [
            torch.stack(
                [logit_kernel(stack.load(weights).single(k).eval(), part, chunk=chunk) for k, part in enumerate(x)]
            )
            for weights in (before, after)
        ]
    return [kernel_velocity(first, second) for first, second in zip(*kernels, strict=True)]


def kernel_velocity(before: Float[Tensor, "a b"], after: Float[Tensor, "a b"]) -> float:
    r"""$1 - \langle K, K'\rangle / (\lVert K\rVert\,\lVert K'\rVert)$, Frobenius: 0 if only the size changes."""
    before, after = before.double(), after.double()
    return float(1 - (before * after).sum() / (before.norm() * after.norm()))


def score_deciles(
    scores: Float[Tensor, " n"], deciles: Sequence[int], m: int, *, generator: torch.Generator
) -> list[Int[Tensor, " _"]]:
    """`m` random positions from each of the given tenths of the ascending order, 0 the easiest and 9 the hardest.

    Raises:
        ValueError: for a decile outside 0 to 9, or fewer than ten examples.
    """
    if len(scores) < 10 or not all(0 <= decile <= 9 for decile in deciles):
        raise ValueError(f"deciles must lie in 0..9 of at least ten examples, got {list(deciles)} of {len(scores)}")
    groups = scores.argsort(stable=True).tensor_split(10)
    chosen = []
    for decile in deciles:
        group = groups[decile]
        order = torch.randperm(len(group), generator=generator, device=generator.device).to(group.device)
        chosen.append(group[order[:m]])
    return chosen
