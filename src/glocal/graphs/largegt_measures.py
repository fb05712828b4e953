"""Measurements on LargeGT: how far it sees, how well the codebook stands for all nodes, what sampling on-line costs."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor

from glocal.graphs.largegt import LargeGT
from glocal.graphs.largegt_global import Codebook, GlobalModule
from glocal.graphs.largegt_tokens import TokenBank, adjacency, hop_features, two_hop_samples
from glocal.graphs.largegt_training import Loader


@torch.no_grad()
def all_queries(model: LargeGT, bank: TokenBank, *, chunk: int = 8192) -> Float[Tensor, "n w"]:
    r"""Global queries $q_i$ of all nodes in evaluation mode, the memory of exact global attention.

    Args:
        model: with a global module.
        bank: features and encodings.
        chunk: nodes at a time.

    Raises:
        ValueError: for a model without a global module.
    """
    far, was_training = _global_module(model), model.training
    model.eval()
    rows = zip(bank.hops[:, 0].split(chunk), bank.encoding.split(chunk), strict=True)
    memory = torch.cat([far.queries(x.to(bank.device), p.to(bank.device)) for x, p in rows])
    model.train(was_training)
    return memory


@torch.no_grad()
def codebook_errors(
    model: LargeGT,
    memory: Float[Tensor, "n w"],
    sizes: Sequence[int],
    *,
    passes: int = 4,
    batch_size: int = 250,
    decay: float = 0.9,
    generator: torch.Generator,
) -> Float[np.ndarray, " sizes"]:
    r"""$\lVert \tilde h - h \rVert_F / \lVert h - \bar h \rVert_F$: attention to codebooks against exact attention.

    Every codebook starts at random nodes and sees all queries `passes` times.

    Args:
        model: with a global module; its weights stay.
        memory: queries of all nodes, see `all_queries`.
        sizes: values of $M$.
        passes: over all nodes.
        batch_size: nodes per update.
        decay: of the moving average; lower than in training because there are few updates.
        generator: source of the codebooks' starts and of the order of nodes.

    Raises:
        ValueError: for a model without a global module.
    """
    far, was_training = _global_module(model), model.training
    model.eval()
    exact, errors = far.attend(memory, memory, None), []
    for size in sizes:
        codebook = Codebook(len(memory), size, memory.shape[1], decay=decay, generator=generator).to(memory.device)
        codebook.start(memory)
        for _ in range(passes):
            for nodes in torch.randperm(len(memory), generator=generator, device=memory.device).split(batch_size):
                codebook.update(memory[nodes], nodes)
        errors.append((far.attend(memory, codebook.centroids, codebook.counts) - exact).norm())
    model.train(was_training)
    return (torch.stack(errors) / (exact - exact.mean(0)).norm()).cpu().numpy()


@torch.no_grad()
def hops_seen(token_hops: int, *, generator: torch.Generator, n_nodes: int = 11) -> int:
    """On a path, the largest distance at which a change of a node's features changes the output of the middle node.

    Every two-hop neighbour is in the sample. Random weights, evaluation mode, local branch only.

    Args:
        token_hops: tokens per sampled node, 1 to 3.
        generator: source of weights and features.
        n_nodes: length of the path; the result is at most half of it.
    """
    middle, path = n_nodes // 2, torch.arange(n_nodes - 1)
    edge_index = torch.stack([torch.cat([path, path + 1]), torch.cat([path + 1, path])])
    samples = two_hop_samples(adjacency(edge_index, n_nodes), 9, generator=np.random.default_rng(0))
    model = LargeGT(4, 3, n_nodes, conv_type="local", width=8, init_std=None, generator=generator).eval()
    x = torch.randn(n_nodes, 4, generator=generator, device=generator.device).cpu()

    def output(features: Tensor) -> Tensor:
        bank = TokenBank(
            hop_features(edge_index, features),
            torch.from_numpy(samples),
            torch.zeros(n_nodes, 1),
            token_hops,
            device=str(generator.device),
        )
        logits: Tensor = model(*bank(torch.tensor([middle])))
        return logits

    before = output(x)
    changed = [j for j in range(n_nodes) if not torch.equal(output(x + torch.eye(n_nodes)[j, :, None]), before)]
    return max(abs(j - middle) for j in changed)


def least_seconds(
    cases: Sequence[Callable[[], Float[np.ndarray, " parts"]]], rounds: int
) -> Float[np.ndarray, "cases parts"]:
    """Least time of every part of every case over `rounds` rounds, after one round to warm up.

    A round visits all cases in turn, so that a slow phase of the machine meets all of them.

    Args:
        cases: functions that do some work and return the seconds that its parts took.
        rounds: visits per case that count.

    Raises:
        ValueError: for fewer than one round.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}: the first one that counts follows the warm-up")
    return np.array([[case() for case in cases] for _ in range(rounds + 1)])[1:].min(0)


def resampled(bank: TokenBank, graph: csr_matrix, *, generator: np.random.Generator) -> Loader:
    """A loader like `bank` that draws the two-hop samples of every batch anew: what LargeGT avoids.

    Args:
        bank: stored tokens.
        graph: from `adjacency`.
        generator: source of the samples.
    """

    def load(nodes: Int[Tensor, " b"]) -> tuple[Tensor, Tensor, Tensor]:
        drawn = two_hop_samples(graph, bank.samples.shape[1], nodes=nodes.cpu().numpy(), generator=generator)
        tokens = bank.hops[torch.from_numpy(drawn).long(), : bank.token_hops].flatten(1, 2)
        return tokens.to(bank.device), bank.encoding[nodes.cpu()].to(bank.device), nodes.to(bank.device)

    return load


def _global_module(model: LargeGT) -> GlobalModule:
    if model.far is None:
        raise ValueError("model must have a global module, got conv_type='local'")
    return model.far
