r"""Frozen features for an analytic head: a ResNet-32 trained on the base classes, a pre-trained DeiT-S, or the input.

n images, f features, k classes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from glocal.budget import Budget
from glocal.data import load, stratified_split
from glocal.nn.resnet import CifarResNet, resnet32
from glocal.seeding import torch_generator
from glocal.supervision.gacil_augment import crop_and_flip, trivial_augment

BACKBONES = ("identity", "resnet32", "deit_small")
Samples = tuple[Float[Tensor, "... f"], Int[Tensor, " ..."]]  # features and labels of one part


def raw_features(dataset: str, *, fake: bool = False) -> Samples:
    """A small embedded set as features of the identity backbone, scaled by constants, never by data statistics.

    Attributes of `letter` (0 to 15), `penbased` (0 to 100) and `optdigits` (0 to 16) are shifted and scaled to a
    range of a few units around zero; pixels of `mnist5k` are pooled to 8x8 in [0, 1], which is also the raster of
    `optdigits`.

    Args:
        dataset: one of the four.
        fake: random stand-in.

    Raises:
        ValueError: for any other set.
    """
    ranges = {"letter": (7.5, 2.5), "penbased": (50.0, 25.0), "optdigits": (0.0, 16.0)}
    if dataset == "mnist5k":
        data = load(dataset, fake=fake)
        pooled = F.avg_pool2d(data.images[:, :, 2:-2, 2:-2], 3)
        return pooled.flatten(1), data.labels
    if dataset not in ranges:
        raise ValueError(
            f"backbone='identity' needs dataset in {', '.join([*ranges, 'mnist5k'])}, got {dataset!r}: "
            "choose another backbone for images"
        )
    table = load(dataset, fake=fake)
    center, scale = ranges[dataset]
    return (table.x - center) / scale, table.labels


class FrozenBackbone(nn.Module):
    """A network that maps pixels in [0, 1] to features: resize, normalise by constants, extract.

    Args:
        network: maps normalised images to features.
        mean: of each channel.
        std: of each channel.
        side: resize images to so many pixels first; None keeps their size.
    """

    def __init__(
        self, network: nn.Module, mean: Float[Tensor, " c"], std: Float[Tensor, " c"], side: int | None = None
    ) -> None:
        super().__init__()
        self.network, self.side = network, side
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("std", std[:, None, None])

    mean: Tensor
    std: Tensor

    def normalized(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
        """What the network sees."""
        if self.side is not None:
            images = F.interpolate(images, size=(self.side, self.side), mode="bilinear", align_corners=False)
        return (images - self.mean) / self.std

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        """Features of a batch."""
        network: Any = self.network
        extract = network.features if isinstance(network, CifarResNet) else network
        return extract(self.normalized(images)).float()


def train_base(
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    n_classes: int,
    *,
    n_epochs: int = 300,
    max_steps: int | None = None,
    batch_size: int = 256,
    lr: float = 0.5,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    label_smoothing: float = 0.0,
    n_warmup: int = 10,
    is_augmented: bool = True,
    seed_generator: torch.Generator,
    device: str | torch.device = "cpu",
) -> FrozenBackbone:
    r"""Train a ResNet-32 on the base classes; its pooled features are then frozen.

    SGD with momentum; the learning rate rises linearly for `n_warmup` epochs and falls to zero along a cosine. The
    network of the last epoch is returned: no test image chooses the epoch. Images are normalised by the channel
    statistics of the base classes.

    Args:
        images: images of the base classes in [0, 1], on any device.
        labels: their classes, in `range(n_classes)`.
        n_classes: number of base classes.
        n_epochs: passes over the images.
        max_steps: optimiser steps after which to stop all the same (rehearsals).
        batch_size: images per step.
        lr: peak learning rate.
        momentum: of SGD.
        weight_decay: on all parameters.
        label_smoothing: share of the target spread over all classes.
        n_warmup: epochs of linear warm-up.
        is_augmented: padded crops, flips and `trivial_augment`.
        seed_generator: generator on the CPU for initialisation, order and augmentation.
        device: where to train.

    Returns:
        The network in evaluation mode, wrapped so that it maps raw pixels to its 64 features.

    Source: README of the authors' repository, "Training from scratch" and "Base training".
    """
    model = resnet32(n_classes).reset_parameters(seed_generator)
    frozen = FrozenBackbone(model, images.mean(dim=(0, 2, 3)).cpu(), images.std(dim=(0, 2, 3)).cpu()).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    per_epoch = max(1, len(labels) // batch_size)
    n_steps = n_epochs * per_epoch
    warm = max(1, min(n_warmup * per_epoch, n_steps // 2))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            (step + 1) / warm
            if step < warm
            else 0.5 * (1 + torch.cos(torch.tensor(torch.pi * (step - warm) / max(1, n_steps - warm))).item())
        ),
    )
    frozen.train()
    step = 0
    for _ in range(n_epochs):
        for index in torch.randperm(len(labels), generator=seed_generator).split(batch_size)[:per_epoch]:
            if max_steps is not None and step >= max_steps:
                return frozen.eval()
            batch = images[index.to(images.device)].to(device)
            if is_augmented:
                batch = trivial_augment(crop_and_flip(batch, generator=seed_generator), generator=seed_generator)
            target = labels[index.to(labels.device)].to(device)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(frozen.normalized(batch)), target, label_smoothing=label_smoothing).backward()
            optimizer.step()
            schedule.step()
            step += 1
    return frozen.eval()


def deit_small(*, device: str | torch.device = "cpu") -> FrozenBackbone:
    """DeiT-S/16 of timm with ImageNet-1k weights, 384 features; it has seen classes of every common benchmark.

    Raises:
        ImportError: if timm is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            "backbone='deit_small' needs timm, which is not installed: pip install -r requirements-full.txt, "
            "or choose backbone='resnet32'"
        ) from error
    network = timm.create_model("deit_small_patch16_224", pretrained=True, num_classes=0)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return FrozenBackbone(network, mean, std, side=224).to(device).eval()


@torch.no_grad()
def extract_features(
    model: nn.Module, images: Float[Tensor, "n c h w"], *, batch_size: int = 512, device: str | torch.device = "cpu"
) -> Float[Tensor, "n f"]:
    """Features of all images, in evaluation mode, without augmentation.

    Args:
        model: a `FrozenBackbone`, or any network whose output is the features.
        images: pixels in [0, 1].
        batch_size: images per pass.
        device: where the network lives; features come back there.

    Raises:
        ValueError: in training mode, where batch normalisation would mix the images of a batch.
    """
    if model.training:
        raise ValueError("extract_features needs evaluation mode, got a model in training mode: call model.eval()")
    return torch.cat([model(part.to(device)) for part in images.split(batch_size)])


def image_features(
    dataset: str,
    backbone: str,
    *,
    n_base: int,
    n_epochs: int,
    budget: Budget,
    seed: int,
    device: str | torch.device = "cpu",
) -> tuple[Samples, Samples]:
    """Frozen features of an image set's train and test part, under a random order of the classes.

    Classes are renamed by a random permutation of the seed; `resnet32` is then trained on those with new index below
    `n_base` and has never seen the others. `deit_small` is pre-trained elsewhere. A rehearsal keeps two training
    images and one test image per class and trains for two steps of four images.

    Args:
        dataset: name of a `Splits[ImageData]` set.
        backbone: `"resnet32"` or `"deit_small"`.
        n_base: number of base classes.
        n_epochs: epochs of base training.
        budget: limits of the run.
        seed: class order, initialisation, order of base training.
        device: where to compute; features and labels come back there.

    Raises:
        ValueError: for an unknown backbone.
    """
    if backbone not in BACKBONES[1:]:
        raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}, got {backbone!r}")
    splits = load(dataset, fake=budget.is_rehearsal)
    train, test = splits.train, splits.test
    if budget.is_rehearsal:
        generator = torch_generator(seed, "rehearsal")
        train = train.subset(stratified_split(train.labels, (2,), generator=generator)[0])
        test = test.subset(stratified_split(test.labels, (1,), generator=generator)[0])
    renamed = torch.randperm(len(train.class_names), generator=torch_generator(seed, "classes"))
    y_train, y_test = renamed[train.labels], renamed[test.labels]
    if backbone == "deit_small":
        model = deit_small(device=device)
    else:
        is_base = y_train < n_base
        model = train_base(
            train.images[is_base].to(device),
            y_train[is_base],
            n_base,
            n_epochs=n_epochs,
            max_steps=budget.steps(2) if budget.is_rehearsal else None,
            batch_size=budget.batch_size(256),
            seed_generator=torch_generator(seed, "base"),
            device=device,
        )
    return (
        (extract_features(model, train.images, device=device), y_train.to(device)),
        (extract_features(model, test.images, device=device), y_test.to(device)),
    )
