r"""Several networks of one architecture side by side: the seeds of an experiment, trained in one loop.

The weights of $s$ networks are stacked along a leading axis and the forward pass is mapped over it
(`torch.func.stack_module_state` and `vmap`), so that $s$ small matrix products become one batched product. Networks do
not mix: the gradient of the *sum* of their losses is, for each of them, the gradient of its own loss.
`tests/benchmarks` measures what this buys.

s networks, n examples, k outputs.
"""

from collections.abc import Callable, Sequence
from copy import copy, deepcopy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from glocal.nn.networks import build

Weights = dict[str, Tensor]


class _Method(nn.Module):
    """A network of which a method other than `forward` is called."""

    def __init__(self, network: nn.Module, method: str) -> None:
        super().__init__()
        self.network, self.method = network, method

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self.network, self.method)(x)


class NetworkStack:
    """Networks of one architecture with stacked weights.

    Args:
        networks: the networks; their weights are copied.

    Attributes:
        weights: by name, one tensor with leading axis s, leaves that require gradients.
        network: the architecture, without weights.

    Raises:
        ValueError: for no network, or networks with buffers such as running statistics, which `vmap` cannot update.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        if not networks:
            raise ValueError("a stack needs at least one network, got none")
        if any(True for _ in networks[0].buffers()):
            raise ValueError(
                "networks with buffers cannot be stacked: use GroupNorm or LayerNorm, or train them singly"
            )
        self.weights: Weights = stack_module_state(list(networks))[0]
        self.network = deepcopy(networks[0]).to("meta")

    @classmethod
    def build(cls, make: Callable[[], nn.Module], generators: Sequence[torch.Generator]) -> "NetworkStack":
        """One network per generator, each with initial weights from its own; see `glocal.nn.networks.build`."""
        return cls([build(make, generator=generator) for generator in generators])

    def __len__(self) -> int:
        """Number of networks."""
        return len(next(iter(self.weights.values())))

    def parameters(self) -> list[Tensor]:
        """The stacked weights, as an optimiser wants them."""
        return list(self.weights.values())

    def __call__(
        self, x: Tensor, *, method: str = "forward", weights: Weights | None = None
    ) -> Float[Tensor, "s n *_"]:
        """Outputs of all networks.

        Args:
            x: either [s, n, ...], own examples for each network, or [1, n, ...], the same for all.
            method: the method of the network to call, for example `features`.
            weights: stacked weights to use instead of the stack's own, such as an average of two checkpoints.

        Raises:
            ValueError: if the leading axis of `x` is neither 1 nor s.
        """
        if len(x) not in (1, len(self)):
            raise ValueError(f"x must lead with an axis of 1 or {len(self)} networks, got shape {tuple(x.shape)}")
        shared = len(x) == 1
        module = _Method(self.network, method)
        named = {f"network.{name}": tensor for name, tensor in (weights or self.weights).items()}
        call = vmap(lambda w, part: functional_call(module, w, (part,)), in_dims=(0, None if shared else 0))
        return call(named, x[0] if shared else x)

    def state(self) -> Weights:
        """A detached copy of the weights."""
        return {name: tensor.detach().clone() for name, tensor in self.weights.items()}

    def load(self, state: Weights) -> "NetworkStack":
        """Overwrite the weights, for example with an earlier `state`. Returns the stack."""
        with torch.no_grad():
            for name, tensor in self.weights.items():
                tensor.copy_(state[name])
        return self

    def select(self, index: Sequence[int]) -> "NetworkStack":
        """A new stack of copies of the networks at `index`; an index may repeat."""
        stack = copy(self)
        stack.weights = {name: w.detach()[list(index)].requires_grad_() for name, w in self.weights.items()}
        return stack

    def single(self, index: int) -> nn.Module:
        """A copy of one network as an ordinary module."""
        network = deepcopy(self.network).to_empty(device=self.parameters()[0].device)
        network.load_state_dict({name: tensor[index] for name, tensor in self.weights.items()})
        return network


@torch.no_grad()
def predict(
    stack: NetworkStack, x: Tensor, *, method: str = "forward", batch_size: int = 4096
) -> Float[Tensor, "s n *_"]:
    """Outputs without gradients, in batches along the second axis; `x` as for a call of the stack."""
    return torch.cat([stack(part, method=method) for part in x.split(batch_size, dim=1)], dim=1)


def accuracy(logits: Float[Tensor, "s n k"], labels: Tensor) -> Float[Tensor, " s"]:
    """Share of right predictions of each network; `labels` is [n] or [s, n]."""
    return (logits.argmax(-1) == labels).to(logits.dtype).mean(-1)
