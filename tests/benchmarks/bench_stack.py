"""What training the seeds of an experiment side by side buys: `make bench`, not part of `make test`.

Each group compares one stack of eight networks with the same eight networks trained one after the other, for the same
number of updates, on one thread.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from glocal.nn.networks import MLP, ConvNet, build
from glocal.nn.stack import NetworkStack
from glocal.nn.training import Recipe, fit_classifiers, minibatches, train
from glocal.seeding import torch_generator

N_NETWORKS = 8
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "mlp 16-96-96-10, batch 32": (lambda: MLP(16, [96, 96], 10), (16,), 32),
    "mlp 64-96-96-10, batch 128": (lambda: MLP(64, [96, 96], 10), (64,), 128),
    "mlp 196-256-256-10, batch 128": (lambda: MLP(196, [256, 256], 10), (196,), 128),
    "convnet 8-16 on 14x14, batch 32": (lambda: ConvNet((1, 14, 14), [8, 16], 10), (1, 14, 14), 32),
}


def data(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch_generator(0, "data")
    return torch.randn(512, *shape, generator=generator), torch.randint(10, (512,), generator=generator)


def fit_stacked(make: Callable[[], nn.Module], shape: tuple[int, ...], recipe: Recipe) -> None:
    """Train all networks in one stack."""
    x, labels = data(shape)
    seeds = range(N_NETWORKS)
    stack = NetworkStack.build(make, [torch_generator(seed) for seed in seeds])
    orders = [torch_generator(seed, "order") for seed in seeds]
    fit_classifiers(stack, x, labels, [torch.arange(512)] * N_NETWORKS, recipe, generators=orders)


def batch_loss(network: nn.Module, x: Tensor, labels: Tensor, batches: Tensor, step: int) -> Tensor:
    return F.cross_entropy(network(x[batches[step]]), labels[batches[step]])


def fit_singly(make: Callable[[], nn.Module], shape: tuple[int, ...], recipe: Recipe) -> None:
    """Train the same networks one after the other, as ordinary modules."""
    x, labels = data(shape)
    for seed in range(N_NETWORKS):
        network = build(make, generator=torch_generator(seed))
        order = [torch_generator(seed, "order")]
        batches = minibatches([torch.arange(512)], recipe.batch_size, recipe.n_steps, generators=order)[:, 0]
        train(network.parameters(), partial(batch_loss, network, x, labels, batches), recipe)


@pytest.mark.parametrize("fit", [fit_singly, fit_stacked], ids=["one by one", "stacked"])
@pytest.mark.parametrize("case", list(CASES))
def bench_eight_networks(benchmark: BenchmarkFixture, case: str, fit: Callable[..., None]) -> None:
    make, shape, batch_size = CASES[case]
    benchmark.group = case
    benchmark.pedantic(fit, args=(make, shape, Recipe(40, 0.05, batch_size=batch_size)), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("stacked", [False, True], ids=["one by one, plain modules", "stacked"])
def bench_forward_only(benchmark: BenchmarkFixture, stacked: bool) -> None:
    benchmark.group = "forward pass, mlp 64-96-96-10 on 1000 examples"
    stack = NetworkStack.build(lambda: MLP(64, [96, 96], 10), [torch_generator(seed) for seed in range(N_NETWORKS)])
    singles = [stack.single(k) for k in range(N_NETWORKS)]
    x = torch.randn(1000, 64, generator=torch_generator(0))

    @torch.no_grad()
    def forward() -> None:
        if stacked:
            stack(x[None])
        else:
            for network in singles:
                network(x)

    benchmark(forward)
