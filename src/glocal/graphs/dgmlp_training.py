"""Joint training of the independent copies of a network, each with its own split, learning rate and penalty."""

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from glocal.graphs.dgmlp_networks import StackedNetwork
from glocal.graphs.dgmlp_reach import receptive_fields
from glocal.graphs.parts import Parts
from glocal.graphs.sparse import SparseOperator


@dataclass(frozen=True)
class StackFit:
    """What a joint training gave, one entry per copy; accuracies in [0, 1].

    Args:
        val: best validation accuracy over the epochs.
        test: test accuracy at that epoch; NaN without test nodes, as in a choice of hyperparameters.
        train: training accuracy after the last epoch.
        seconds: CPU seconds for all copies together.
    """

    val: Float[Tensor, " b"]
    test: Float[Tensor, " b"]
    train: Float[Tensor, " b"]
    seconds: float

    def split(self, n: int) -> list["StackFit"]:
        """The copies in `n` equal groups, in order; each group is charged an equal share of the time."""
        val, test, train = (part.view(n, -1) for part in (self.val, self.test, self.train))
        return [StackFit(*parts, seconds=self.seconds / n) for parts in zip(val, test, train, strict=True)]


def fit_stack(
    network: StackedNetwork,
    x: Float[Tensor, "c n f"],
    parts: Parts,
    *,
    operator: SparseOperator | None = None,
    lr: Float[Tensor, " b"] | float = 0.01,
    weight_decay: Float[Tensor, " b"] | float = 5e-4,
    epochs: int = 100,
    eval_every: int = 10,
    whole_graph: bool = False,
) -> StackFit:
    r"""Train all copies with Adam; each keeps its own epoch of best validation accuracy, then the test is read once.

    The sum of the copies' losses has separate gradients, and Adam works entry by entry, so this equals separate
    trainings.

    Args:
        network: the copies.
        x: features for each copy, or one set for all (`c = 1`), propagated for the first transformation. Only the
            labelled rows enter the training of a decoupled design, only their receptive fields that of another.
        parts: labels and splits.
        operator: see `StackedNetwork.forward`.
        lr: learning rate, one for all copies or one per copy.
        weight_decay: Adam's $L_2$ penalty on all parameters, one for all copies or one per copy.
        epochs: training steps, at least one.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
        whole_graph: compute all nodes in every training step instead of the receptive fields, as usual for a GCN.

    Raises:
        ValueError: for fewer than one epoch, or a missing operator.
    """
    if min(epochs, eval_every) < 1:
        raise ValueError(f"epochs and eval_every must be at least 1, got {epochs} and {eval_every}")
    start = time.process_time()
    b = len(parts.train)
    copies = torch.arange(b, device=x.device)[:, None]
    parameters, flat = list(network.parameters()), _joined(network)
    rates, decays = (
        torch.as_tensor(v, device=x.device, dtype=flat.dtype).expand(b)[:, None] for v in (lr, weight_decay)
    )
    moments = torch.zeros_like(flat), torch.zeros_like(flat)

    if not network.is_decoupled and operator is None:
        raise ValueError("operator must be given for a design that propagates after the first transformation")

    def rows_of(nodes: Tensor) -> Tensor:
        if not network.is_decoupled:
            return nodes
        return x[copies, nodes] if len(x) == b else x[0][nodes]

    def logits_of(rows: Tensor) -> Tensor:
        if network.is_decoupled:
            return network(rows)
        everything: Tensor = network(x.expand(b, -1, -1), operator)[copies, rows]
        return everything

    @torch.no_grad()
    def accuracy(rows: Tensor, nodes: Tensor) -> Tensor:
        network.eval()
        return (logits_of(rows).argmax(-1) == parts.y[nodes]).double().mean(1)

    train_rows, val_rows = rows_of(parts.train), rows_of(parts.val)
    targets = parts.y[parts.train]
    if network.is_decoupled or whole_graph or operator is None:
        field = None
    else:
        field = receptive_fields(operator, parts.train, network.reach)
        field_x = x.expand(b, -1, -1)[copies, field.nodes]

    def train_logits() -> Tensor:
        if field is None:
            return logits_of(train_rows)
        logits: Tensor = network(field_x, field.operator)[copies, field.targets]
        return logits

    best_val = torch.full((b,), -1.0, dtype=torch.float64, device=x.device)
    best = flat.clone()
    for epoch in range(1, epochs + 1):
        network.train()
        network.zero_grad()
        losses = F.cross_entropy(train_logits().transpose(1, 2), targets, reduction="none").mean(1)
        losses.sum().backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        _adam_step(flat, torch.cat([grad.flatten(1) for grad in grads], 1), moments, epoch, rates, decays)
        if epoch % eval_every and epoch < epochs:
            continue
        val = accuracy(val_rows, parts.val)
        best = torch.where((val > best_val)[:, None], flat, best)
        best_val = torch.maximum(best_val, val)
    train = accuracy(train_rows, parts.train)
    flat.copy_(best)
    test = accuracy(rows_of(parts.test), parts.test) if parts.test.numel() else torch.full_like(best_val, torch.nan)
    return StackFit(best_val, test, train, time.process_time() - start)


def tune(fits: list[StackFit]) -> StackFit:
    """For every copy the fit with the best validation accuracy; of equally good ones the first.

    Args:
        fits: the same copies under different settings.
    """
    val = torch.stack([fit.val for fit in fits])
    index, copies = val.argmax(0), torch.arange(val.shape[1], device=val.device)
    test, train = (torch.stack([getattr(fit, name) for fit in fits])[index, copies] for name in ("test", "train"))
    return StackFit(val.amax(0), test, train, sum(fit.seconds for fit in fits))


@torch.no_grad()
def _joined(network: nn.Module) -> Float[Tensor, "b p"]:
    """All parameters side by side, one row per copy; the parameters become views of the result."""
    parameters = list(network.parameters())
    flat = torch.cat([parameter.flatten(1) for parameter in parameters], 1)
    for parameter, part in zip(parameters, flat.split([p[0].numel() for p in parameters], 1), strict=True):
        parameter.data = part.view(parameter.shape)
    return flat


def _adam_step(
    flat: Float[Tensor, "b p"],
    gradient: Float[Tensor, "b p"],
    moments: tuple[Float[Tensor, "b p"], Float[Tensor, "b p"]],
    step: int,
    rates: Float[Tensor, "b 1"],
    decays: Float[Tensor, "b 1"],
) -> None:
    """One step of Adam in place, with a learning rate and an L2 penalty for every row, which torch's cannot have."""
    (first, second), (decay1, decay2) = moments, (0.9, 0.999)
    gradient.addcmul_(decays, flat)
    first.lerp_(gradient, 1 - decay1)
    second.mul_(decay2).addcmul_(gradient, gradient, value=1 - decay2)
    scale = (second / (1 - decay2**step)).sqrt_().add_(1e-8)
    flat.addcdiv_(first * (rates / (1 - decay1**step)), scale, value=-1)
