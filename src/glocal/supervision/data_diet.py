r"""Scores of training examples and the subsets they choose (Paul et al., NeurIPS 2021, arXiv:2107.07075).

Logits $f_w(x) \in \mathbb R^k$, $p = \mathrm{softmax}(f)$, one-hot $y$, cross-entropy $\ell$. n examples, d inputs,
k classes, m kept examples, s networks side by side.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from glocal.nn.networks import MLP
from glocal.nn.stack import NetworkStack

OUTPUT_SCORES = ("el2n", "l1", "margin_max", "margin_sum", "loss")


def output_score(
    logits: Float[Tensor, "*runs n k"], labels: Int[Tensor, "*#runs n"], kind: str = "el2n"
) -> Float[Tensor, "*runs n"]:
    r"""Scores that need one forward pass, run by run, with the error vector $e = p - y$.

    `el2n`: $\lVert e\rVert_2 \in [0, \sqrt2]$; `l1`: $\lVert e\rVert_1$; `margin_max` and `margin_sum`: the largest
    wrong probability, or the sum of them, minus $p_y$; `loss`: $-\log p_y$. High is hard.

    Args:
        logits: outputs in evaluation mode, without augmentation.
        labels: class indices; either one row for all runs or one per run.
        kind: one of `OUTPUT_SCORES`.

    Raises:
        ValueError: for an unknown kind.

    Source: Section 2, definition of EL2N; the margins and the l1 error are variants of the released code.
    """
    if kind not in OUTPUT_SCORES:
        raise ValueError(f"kind must be one of {', '.join(OUTPUT_SCORES)}, got {kind!r}")
    labels = labels.expand(logits.shape[:-1])
    if kind == "loss":
        return -logits.log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)
    probs, onehot = logits.softmax(-1), F.one_hot(labels, logits.shape[-1])
    if kind.startswith("margin"):
        wrong = probs * (1 - onehot)
        worst = wrong.amax(-1) if kind == "margin_max" else wrong.sum(-1)
        return worst - (probs * onehot).sum(-1)
    return torch.linalg.vector_norm(probs - onehot, ord=1 if kind == "l1" else 2, dim=-1)


def el2n(logits: Float[Tensor, "runs n k"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    r"""EL2N score $\frac1R\sum_r\lVert p_r(x_i) - y_i\rVert_2$, averaged over $R$ runs before any ranking.

    Args:
        logits: outputs of independently initialised runs, in evaluation mode, without augmentation.
        labels: class indices.

    Source: Section 2, definition of EL2N.
    """
    return output_score(logits, labels[None]).mean(0)


def grand(
    network: nn.Module,
    x: Float[Tensor, "n ..."],
    labels: Int[Tensor, " n"],
    *,
    only: Sequence[str] = (),
    chunk: int = 256,
) -> Float[Tensor, " n"]:
    r"""GraNd score of one run, $\lVert\nabla_w\ell(f_w(x_i), y_i)\rVert_2$ over all parameters, example by example.

    Args:
        network: in evaluation mode, on which batch norm uses its running statistics.
        x: inputs, without augmentation.
        labels: class indices.
        only: names of the parameters to restrict the gradient to; all by default.
        chunk: gradients held at a time; memory is `chunk` times the number of parameters.

    Raises:
        ValueError: in training mode, or for a parameter that does not exist.

    Source: Section 2, definition of GraNd.
    """
    if network.training:
        raise ValueError("grand needs evaluation mode, got a network in training mode: call network.eval() first")
    named = {name: p.detach() for name, p in network.named_parameters()}
    if unknown := set(only) - set(named):
        raise ValueError(f"only must name parameters of the network, got {sorted(unknown)}; it has {sorted(named)}")
    weights = {name: p for name, p in named.items() if not only or name in only}
    fixed = {**named, **dict(network.named_buffers())}

    def norm(x_i: Tensor, label: Tensor) -> Tensor:
        def loss(w: dict[str, Tensor]) -> Tensor:
            return F.cross_entropy(functional_call(network, {**fixed, **w}, (x_i[None],)), label[None])

        return torch.cat([g.flatten() for g in grad(loss)(weights).values()]).norm()

    return vmap(norm, chunk_size=chunk)(x, labels)


def grand_dense(stack: NetworkStack, x: Float[Tensor, "_ n ..."], labels: Int[Tensor, "_ n"]) -> Float[Tensor, "s n"]:
    r"""The same GraNd scores for a stack of multilayer perceptrons, without forming the gradients.

    The gradient of example $i$ in layer $l$ is the outer product $\delta_{il} h_{il}^\top$ of the error signal and the
    layer's input, with $\delta_{il}$ for the bias, so its squared norm is $\lVert\delta_{il}\rVert^2(\lVert
    h_{il}\rVert^2 + 1)$. One backward pass over the batch gives all $\delta$.

    Args:
        stack: perceptrons.
        x: inputs; the leading axis is 1 or s, as in a call of the stack.
        labels: classes, with the same leading axis.

    Raises:
        TypeError: for another architecture: use `grand`.

    Source: identity; equal to `grand` up to rounding.
    """
    if not isinstance(stack.network, MLP):
        raise TypeError(f"grand_dense needs a stack of MLP, got {type(stack.network).__name__}: use grand")
    layers = [name.removesuffix(".weight") for name in stack.weights if name.endswith(".weight")]
    h = x.flatten(2).expand(len(stack), -1, -1)
    inputs, signals = [], []
    for position, layer in enumerate(layers):
        inputs.append(h.detach())
        weight, bias = stack.weights[f"{layer}.weight"].detach(), stack.weights[f"{layer}.bias"].detach()
        z = torch.baddbmm(bias[:, None], h, weight.mT)
        z = z.requires_grad_() if position == 0 else z
        signals.append(z)
        h = z if position == len(layers) - 1 else z.relu()
    targets = labels.expand(len(stack), -1).flatten()
    deltas = torch.autograd.grad(F.cross_entropy(h.flatten(0, 1), targets, reduction="sum"), signals)
    squares = [(h.square().sum(-1) + 1) * d.square().sum(-1) for h, d in zip(inputs, deltas, strict=True)]
    return torch.stack(squares).sum(0).sqrt()


class ForgettingCounter:
    """Counts how often each network, having been right on an example at one visit, is wrong at the next.

    Args:
        n_networks: networks trained side by side.
        n: examples.
        device: where the counts live.

    Source: the released code's `forget` scores: correctness on the training batch, before the step.
    """

    def __init__(self, n_networks: int, n: int, *, device: str | torch.device = "cpu") -> None:
        self.was_right = torch.zeros(n_networks, n, dtype=torch.bool, device=device)
        self.ever_right = torch.zeros_like(self.was_right)
        self.flips = torch.zeros(n_networks, n, device=device)

    def visit(self, index: Int[Tensor, "s b"], logits: Float[Tensor, "s b k"], labels: Int[Tensor, "s b"]) -> None:
        """Record one batch per network: `index` are its examples, `logits` the outputs before the step."""
        is_right = logits.argmax(-1) == labels
        flipped = self.was_right.gather(1, index) & ~is_right
        self.flips.scatter_(1, index, self.flips.gather(1, index) + flipped)
        self.was_right.scatter_(1, index, is_right)
        self.ever_right.scatter_(1, index, self.ever_right.gather(1, index) | is_right)

    def scores(self) -> Float[Tensor, "s n"]:
        """Number of flips; infinite for examples that were never right."""
        return self.flips.masked_fill(~self.ever_right, torch.inf)


def keep_hardest(scores: Float[Tensor, " n"], m: int) -> Int[Tensor, " m"]:
    """Positions of the `m` highest scores (`keep max`); ties are broken by position, which the split makes random."""
    return keep_window(scores, m, len(scores) - m)


def keep_easiest(scores: Float[Tensor, " n"], m: int) -> Int[Tensor, " m"]:
    """Positions of the `m` lowest scores."""
    return keep_window(scores, m, 0)


def keep_window(scores: Float[Tensor, " n"], m: int, offset: int) -> Int[Tensor, " m"]:
    r"""Positions at the ranks $[o, o + m)$ of the ascending order: the $o$ easiest and the $n - o - m$ hardest go.

    Args:
        scores: high is hard.
        m: examples to keep.
        offset: rank $o$ of the easiest example kept.

    Raises:
        ValueError: if the window leaves the ranks.

    Source: pruning rule with an offset, used for the study of label noise.
    """
    if m < 1 or not 0 <= offset <= len(scores) - m:
        raise ValueError(
            f"a window of m >= 1 ranks must lie within {len(scores)} ranks, got m = {m} from rank {offset}: "
            "lower m or offset"
        )
    return scores.argsort(stable=True)[offset : offset + m]
