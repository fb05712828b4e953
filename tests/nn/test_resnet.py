"""The CIFAR residual networks: parameter counts of the paper, identity shortcuts, shapes."""

import pytest
import torch

from glocal.nn.resnet import BasicBlock, CifarResNet, resnet32
from glocal.seeding import torch_generator


@pytest.mark.parametrize(("n_layers", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_parameter_counts_are_those_of_table_6(n_layers: int, millions: float) -> None:
    count = sum(p.numel() for p in CifarResNet(n_layers, 10).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.05 if n_layers == 110 else 0.005)


def test_number_of_weighted_layers() -> None:
    model = resnet32(10)
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == 32


def test_block_with_zero_residual_is_the_shortcut() -> None:
    block = BasicBlock(4, 8, stride=2).eval()
    torch.nn.init.zeros_(block.norm2.weight)
    x = torch.rand(2, 4, 6, 6)
    out = block(x)
    assert out.shape == (2, 8, 3, 3)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])  # ReLU leaves non-negative inputs alone
    assert not out[:, :2].any()
    assert not out[:, 6:].any()


def test_resolutions_and_features() -> None:
    model = resnet32(0).eval()
    x = torch.rand(2, 3, 32, 32)
    assert model.blocks(model.stem(x)).shape == (2, 64, 8, 8)
    assert torch.equal(model(x), model.features(x))
    assert model(x).shape == (2, 64)


def test_first_stage_keeps_the_resolution() -> None:
    blocks = list(resnet32(10).blocks)
    assert [b.stride for b in blocks] == [1] * 5 + [2] + [1] * 4 + [2] + [1] * 4


def test_reset_parameters_follows_the_generator() -> None:
    a, b, c = (resnet32(5).reset_parameters(torch_generator(seed, "init")).head.weight for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_gradients_reach_the_stem() -> None:
    model = CifarResNet(20, 3)
    model(torch.rand(4, 3, 32, 32)).logsumexp(1).sum().backward()
    assert model.stem[0].weight.grad is not None
    assert model.stem[0].weight.grad.abs().sum() > 0


def test_wrong_depth_is_refused() -> None:
    with pytest.raises(ValueError, match=r"n_layers must be 6s \+ 2 .*, got 33"):
        CifarResNet(33)
