r"""Label proportions by belief propagation (Havaldar et al., ICLR 2024, arXiv:2310.08056): the law and its marginals.

Instances are stored bag by bag: instance $i$ is member $i \bmod b$ of bag $\lfloor i / b \rfloor$, so that a tensor
over instances is a reshaped tensor of shape [m, b]. m bags, b instances per bag, n = m b instances, e edges.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

INITS = ("half", "zero")
LARGEST_ENUMERATION = 20


@dataclass(frozen=True)
class PairwiseModel:
    r"""Binary Markov random field $P(y) \propto \exp\bigl(\sum_i u_i y_i + \sum_{i<j} w_{ij} y_i y_j\bigr)$.

    Args:
        unary: $u_i$.
        bag_couplings: $w_{ij}$ of the pairs within a bag, symmetric with a zero diagonal.
        edges: the remaining pairs, each once.
        edge_couplings: their $w_{ij}$.
    """

    unary: Float[Tensor, "m b"]
    bag_couplings: Float[Tensor, "m b b"]
    edges: Int[Tensor, "2 e"]
    edge_couplings: Float[Tensor, " e"]

    @property
    def n_messages(self) -> int:
        """Directed messages per iteration: $m b (b - 1) + 2 e$."""
        n_bags, bag_size = self.unary.shape
        return n_bags * bag_size * (bag_size - 1) + 2 * self.edges.shape[1]

    def log_weight(self, states: Float[Tensor, "s n"]) -> Float[Tensor, " s"]:
        """The exponent of the law at given states, one state per row."""
        by_bag = states.reshape(len(states), *self.unary.shape)
        within = 0.5 * torch.einsum("sbi,bij,sbj->s", by_bag, self.bag_couplings, by_bag)
        between = (states[:, self.edges[0]] * states[:, self.edges[1]]) @ self.edge_couplings
        return states @ self.unary.flatten() + within + between


def pairwise_model(
    edges: Int[Tensor, "2 e"],
    similarities: Float[Tensor, " e"],
    bag_sums: Float[Tensor, " m"],
    bag_size: int,
    *,
    lam_s: float,
    lam_b: float,
) -> PairwiseModel:
    r"""The Gibbs law of neighbours and bags as a pairwise model; the constant $s_B^2$ is dropped.

    $u_i = -\lambda_b (1 - 2 s_{B(i)}) - \lambda_s \sum_j \kappa_{ij}$ and
    $w_{ij} = 2 \lambda_s \kappa_{ij} - 2 \lambda_b [B(i) = B(j)]$; a pair of neighbours in one bag carries both terms.

    Args:
        edges: pairs of neighbours, each once.
        similarities: their weights $\kappa_{ij}$.
        bag_sums: number of positives $s_B$ of each bag.
        bag_size: instances per bag b.
        lam_s: price $\lambda_s$ of neighbours with different labels.
        lam_b: price $\lambda_b$ of the squared deviation from a bag's sum.

    Raises:
        ValueError: if a bag sum cannot be reached.

    Source: the Gibbs distribution over labels; the memory is O(n b).
    """
    if bool((bag_sums < 0).any()) or bool((bag_sums > bag_size).any()):
        raise ValueError(f"bag_sums must lie between 0 and bag_size = {bag_size}, got {bag_sums.aminmax()}")
    n_bags, like = len(bag_sums), similarities
    unary = (-lam_b * (1 - 2 * bag_sums.to(like)))[:, None].expand(-1, bag_size).flatten()
    unary = unary.index_add(0, edges.flatten(), -lam_s * similarities.repeat(2))
    couplings = torch.full((n_bags, bag_size, bag_size), -2 * lam_b, dtype=like.dtype, device=like.device)
    couplings.diagonal(dim1=1, dim2=2).zero_()
    bag, place = edges // bag_size, edges % bag_size
    inside = bag[0] == bag[1]
    for a, b in ((0, 1), (1, 0)):
        couplings[bag[0, inside], place[a, inside], place[b, inside]] += 2 * lam_s * similarities[inside]
    return PairwiseModel(
        unary.reshape(n_bags, bag_size), couplings, edges[:, ~inside], 2 * lam_s * similarities[~inside]
    )


def new_messages(cavity: Float[Tensor, "*messages"], factors: Float[Tensor, "*messages"]) -> Float[Tensor, "*messages"]:
    r"""Sum-product in log-odds: $m_{i \to j} = \log\frac{1 + e^{h + w}}{1 + e^{h}} = \log(\sigma(-h) + e^w \sigma(h))$.

    With $y_j = 1$ the two states of $y_i$ weigh $1$ and $e^{h + w}$, with $y_j = 0$ they weigh $1$ and $e^h$, where
    $h = h_{i \setminus j}$ is the cavity field. The last form adds two positive numbers, each exact to its last digit;
    fields beyond 60 are cut off, since denormal numbers are slow, which needs couplings $|w|$ below 60.

    Args:
        cavity: $h_{i \setminus j}$.
        factors: $e^{w_{ij}}$, the same in all iterations.
    """
    cavity = cavity.clamp(-60.0, 60.0)
    on = torch.sigmoid(cavity)
    return torch.sigmoid(cavity.neg_()).addcmul_(on, factors).log_()


@dataclass(frozen=True)
class Beliefs:
    """Result of belief propagation.

    Args:
        probs: marginal probability of label 1.
        n_iters: iterations done.
        change: largest change of a message in the last one.
    """

    probs: Float[Tensor, "m b"]
    n_iters: int
    change: float


def belief_propagation(
    model: PairwiseModel,
    *,
    n_iters: int = 100,
    damping: float = 0.5,
    tolerance: float = 1e-4,
    init: str = "half",
) -> Beliefs:
    r"""Loopy belief propagation on the joint graph of bags and neighbours, all messages at once (flooding).

    Messages within bags are a dense tensor [m, b, b], those along edges a list; one iteration costs O(n b + e).

    Args:
        model: the field.
        n_iters: most iterations; 0 gives the beliefs of the initial messages.
        damping: share of the old message that is kept.
        tolerance: stop once no message changes by more.
        init: `half`: $m_{i \to j} = w_{ij} / 2$, symmetric under the exchange of labels; `zero`: as the official code.

    Raises:
        ValueError: for an unknown `init`, or a damping outside [0, 1).
    """
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}, got {init!r}")
    if not 0 <= damping < 1:
        raise ValueError(f"damping must be in [0, 1), got {damping}")
    source, target = torch.cat([model.edges, model.edges.flip(0)], dim=1)
    couplings = model.edge_couplings.repeat(2)
    bag_factors, factors = model.bag_couplings.exp(), couplings.exp()
    start = 0.5 if init == "half" else 0.0
    bag_messages, messages = start * model.bag_couplings, start * couplings  # [bag, i, j]: from i to j

    def fields() -> Float[Tensor, "m b"]:
        incoming = torch.zeros_like(model.unary).flatten().index_add(0, target, messages)
        return model.unary + bag_messages.sum(1) + incoming.view_as(model.unary)

    done, change = 0, float("inf")
    while done < n_iters and change > tolerance:
        field = fields()
        bag_new = new_messages(field[:, :, None] - bag_messages.mT, bag_factors)
        opposite = messages.roll(len(messages) // 2)  # the message j -> i beside i -> j
        new = new_messages(field.flatten()[source] - opposite, factors)
        steps = bag_new.sub_(bag_messages).mul_(1 - damping), new.sub_(messages).mul_(1 - damping)
        bag_messages.add_(steps[0])
        messages.add_(steps[1])
        change = max(float(part.abs_().max()) if part.numel() else 0.0 for part in steps)
        done += 1
    return Beliefs(torch.sigmoid(fields()), done, change)


def exact_marginals(model: PairwiseModel) -> Float[Tensor, "m b"]:
    """Marginals by summing over all states.

    Raises:
        ValueError: for more than 20 instances.
    """
    n = model.unary.numel()
    if n > LARGEST_ENUMERATION:
        raise ValueError(f"enumeration is possible up to {LARGEST_ENUMERATION} instances, got {n}")
    states = (torch.arange(2**n)[:, None] >> torch.arange(n)) & 1
    states = states.to(model.unary)
    return (model.log_weight(states).softmax(0) @ states).view_as(model.unary)


def bag_residual(probs: Float[Tensor, "m b"], bag_sums: Float[Tensor, " m"]) -> float:
    r"""$\sum_B \bigl(\sum_{i \in B} p_i - s_B\bigr)^2$: how far beliefs are from the known sums, without labels."""
    return float((probs.sum(1) - bag_sums).square().sum())


def hard_labels(
    probs: Float[Tensor, "m b"], bag_sums: Float[Tensor, " m"], threshold: float | None
) -> Float[Tensor, "m b"]:
    r"""Pseudo-labels: $[p_i \ge t]$, or the $s_B$ largest beliefs of each bag where `threshold` is None."""
    if threshold is not None:
        return (probs >= threshold).to(probs)
    rank = probs.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank < bag_sums[:, None]).to(probs)


@dataclass(frozen=True)
class Choice:
    r"""The pair $(\lambda_s, \lambda_b)$ with the smallest bag residual.

    Args:
        pair: the pair.
        beliefs: what belief propagation found with it.
        residuals: bag residuals of all candidates.
        candidates: beliefs of all candidates, for diagnosis.
    """

    pair: tuple[float, float]
    beliefs: Beliefs
    residuals: list[float]
    candidates: list[Beliefs]


def choose_pair(
    edges: Int[Tensor, "2 e"],
    similarities: Float[Tensor, " e"],
    bag_sums: Float[Tensor, " m"],
    bag_size: int,
    pairs: Sequence[tuple[float, float]],
    *,
    n_iters: int = 100,
    damping: float = 0.5,
    init: str = "half",
) -> Choice:
    r"""Belief propagation with every candidate $(\lambda_s, \lambda_b)$, judged by bag residual; reads no labels.

    Raises:
        ValueError: for no pairs.
    """
    if not pairs:
        raise ValueError("choose_pair needs at least one pair (lam_s, lam_b), got none")
    found, residuals = [], []
    for lam_s, lam_b in pairs:
        model = pairwise_model(edges, similarities, bag_sums, bag_size, lam_s=lam_s, lam_b=lam_b)
        found.append(belief_propagation(model, n_iters=n_iters, damping=damping, init=init))
        residuals.append(bag_residual(found[-1].probs, bag_sums))
    best = residuals.index(min(residuals))
    return Choice(pairs[best], found[best], residuals, found)
