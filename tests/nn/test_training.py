"""Stacks of networks, the training loop with a fixed budget, and the samplers of batches."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from glocal.nn.networks import MLP, ConvNet, build
from glocal.nn.stack import NetworkStack, accuracy, predict
from glocal.nn.training import Recipe, fit_classifiers, minibatches, train
from glocal.seeding import torch_generator


def generators(n: int, name: str = "weights") -> list[torch.Generator]:
    return [torch_generator(0, name, k) for k in range(n)]


def small_mlp() -> MLP:
    return MLP(5, [7, 6], 3)


def toy_data(n: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 5, generator=torch_generator(0, "x"))
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()


def test_build_draws_from_its_generator_only() -> None:
    before = torch.random.get_rng_state()
    first, second = (build(small_mlp, generator=torch_generator(3)) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other = build(small_mlp, generator=torch_generator(4))
    assert not torch.equal(first.head.weight, other.head.weight)
    bound = 5**-0.5
    weight = first.body[1].weight
    assert bool((weight.abs() <= bound).all())
    assert float(weight.detach().abs().max()) > 0.8 * bound


def test_build_refuses_layers_that_it_cannot_draw() -> None:
    with pytest.raises(TypeError, match="PReLU"):
        build(lambda: nn.Sequential(nn.Linear(2, 2), nn.PReLU()), generator=torch_generator(0))


def test_convnet_shapes_and_limits() -> None:
    network = build(lambda: ConvNet((1, 14, 10), [4, 8], 10), generator=torch_generator(0))
    x = torch.rand(3, 1, 14, 10)
    assert network(x).shape == (3, 10)
    assert network.features(x).shape == (3, 8 * 3 * 2)
    with pytest.raises(ValueError, match="nothing"):
        ConvNet((1, 8, 4), [4, 4, 4], 10)


def test_stack_equals_its_networks() -> None:
    networks = [build(small_mlp, generator=g) for g in generators(4)]
    stack = NetworkStack(networks)
    x, _ = toy_data()
    for method in ("forward", "features"):
        alone = torch.stack([getattr(net, method)(x) for net in networks])
        torch.testing.assert_close(stack(x[None], method=method), alone)
        torch.testing.assert_close(stack(x.expand(4, -1, -1), method=method), alone)
        torch.testing.assert_close(predict(stack, x[None], method=method, batch_size=7), alone.detach())
    torch.testing.assert_close(stack.single(2)(x), networks[2](x))
    torch.testing.assert_close(stack.select([3, 3])(x[None])[1], networks[3](x))


def test_stack_state_and_foreign_weights() -> None:
    stack = NetworkStack.build(small_mlp, generators(2))
    x, _ = toy_data()
    before, saved = stack(x[None]).detach(), stack.state()
    with torch.no_grad():
        for tensor in stack.parameters():
            tensor.mul_(2.0)
    assert not torch.allclose(stack(x[None]), before)
    torch.testing.assert_close(stack(x[None], weights=saved), before)
    torch.testing.assert_close(stack.load(saved)(x[None]), before)


def test_stack_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="at least one"):
        NetworkStack([])
    with pytest.raises(ValueError, match="buffers"):
        NetworkStack([nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))])
    with pytest.raises(ValueError, match="1 or 2 networks"):
        NetworkStack.build(small_mlp, generators(2))(torch.zeros(3, 4, 5))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_training_a_stack_equals_training_each_network_alone(optimizer: str) -> None:
    x, labels = toy_data()
    recipe = Recipe(12, 0.05, batch_size=16, optimizer=optimizer, weight_decay=1e-2, schedule="steps")
    subsets = [torch.arange(60), torch.arange(20), torch.arange(30, 60)]
    stack = NetworkStack.build(small_mlp, generators(3))
    fit_classifiers(stack, x, labels, subsets, recipe, generators=generators(3, "order"))
    for k, subset in enumerate(subsets):
        alone = NetworkStack.build(small_mlp, [generators(3)[k]])
        fit_classifiers(alone, x, labels, [subset], recipe, generators=[generators(3, "order")[k]])
        for name, tensor in stack.weights.items():
            torch.testing.assert_close(tensor[k], alone.weights[name][0])


def test_training_with_plain_gradient_descent_matches_autograd_by_hand() -> None:
    w = torch.tensor([2.0, -1.0], requires_grad=True)
    recipe = Recipe(3, 0.1, momentum=0.0, weight_decay=0.5, schedule="constant")
    history = train([w], lambda step: (w**2).sum(), recipe)
    expected = torch.tensor([2.0, -1.0]) * (1 - 0.1 * 2.5) ** 3
    torch.testing.assert_close(w.detach(), expected)
    assert history.shape == (3,)
    torch.testing.assert_close(history[0], torch.tensor(5.0))


def test_each_network_may_have_its_own_labels() -> None:
    x, labels = toy_data()
    both = torch.stack([labels, 2 - labels])
    stack = NetworkStack.build(small_mlp, generators(1) * 1 + generators(1))
    recipe = Recipe(150, 0.1, batch_size=60)
    fit_classifiers(stack, x, both, [torch.arange(60)] * 2, recipe, generators=generators(1, "order"))
    assert float(accuracy(predict(stack, x[None]), both).min()) > 0.95
    assert accuracy(predict(stack, x[None]), labels)[1] < 0.8


def test_schedules() -> None:
    cosine = Recipe(100, 0.2)
    assert cosine.lr_at(0) == 0.2
    assert cosine.lr_at(50) == pytest.approx(0.1)
    steps = Recipe(100, 0.2, schedule="steps", milestones=(0.3, 0.6), decay=0.1)
    assert [steps.lr_at(t) for t in (0, 29, 30, 60)] == pytest.approx([0.2, 0.2, 0.02, 0.002])
    assert Recipe(100, 0.2, schedule="constant").lr_at(99) == 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [({"optimizer": "lion"}, "sgd, adam, adamw"), ({"schedule": "linear"}, "constant, cosine"), ({"lr": 0.0}, "lr")],
)
def test_recipe_refuses_unknown_settings(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**({"n_steps": 10, "lr": 0.1} | change))


def test_divergence_is_an_error_that_names_the_step() -> None:
    w = torch.tensor([1.0], requires_grad=True)
    recipe = Recipe(5, 1e30, momentum=0.0, schedule="constant")
    with pytest.raises(FloatingPointError, match="from step 1 on"):
        train([w], lambda step: (w**4).sum(), recipe)


def test_minibatches_pass_through_every_subset_evenly() -> None:
    subsets = [torch.arange(10), torch.tensor([3, 5, 9])]
    batches = minibatches(subsets, 4, 15, generators=generators(2))
    assert batches.shape == (15, 2, 4)
    for k, subset in enumerate(subsets):
        order = batches[:, k].flatten()
        counts = torch.bincount(order, minlength=10)[subset]
        assert int(counts.sum()) == 60
        assert int(counts.max() - counts.min()) <= 1
        assert sorted(order[: len(subset)].tolist()) == subset.tolist()
    with pytest.raises(ValueError, match="empty"):
        minibatches([torch.arange(0)], 4, 2, generators=generators(1))
    with pytest.raises(ValueError, match="one generator per subset"):
        minibatches(subsets, 4, 2, generators=generators(3))


def test_after_step_sees_every_update() -> None:
    seen: list[int] = []
    w = torch.tensor([1.0], requires_grad=True)
    train([w], lambda step: F.relu(w).sum(), Recipe(4, 0.1), after_step=seen.append)
    assert seen == [0, 1, 2, 3]
