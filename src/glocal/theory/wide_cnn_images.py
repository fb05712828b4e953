"""Images as points of a product of spheres: square blocks in quad-tree order, for `wide_cnn` (arXiv:2208.01003)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glocal.data.types import ImageData, Splits
from glocal.theory.wide_cnn_regression import nested_predictions


def image_pool(data: ImageData | Splits) -> ImageData:
    """All labelled images in one set; of published parts, the training part comes first."""
    if isinstance(data, ImageData):
        return data
    images, labels = (
        torch.cat([getattr(part, name) for part in (data.train, data.test)]) for name in ("images", "labels")
    )
    return ImageData(images, labels, data.train.class_names)


def quad_tree_order(side: int) -> Int[Tensor, " cells"]:
    r"""Row-major indices of a square of cells, listed quadrant by quadrant (Morton order).

    Any $4^j$ consecutive cells that start at a multiple of $4^j$ form a square, so that filters $(\cdot, 4, 4, \dots)$
    read $2\times2$ neighbourhoods.

    Raises:
        ValueError: if the side is not a power of two.
    """
    if side < 1 or side & (side - 1):
        raise ValueError(f"side must be a power of two, got {side}: crop or pad the images, or change the block size")
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    key = torch.zeros_like(row)
    for bit in range(side.bit_length()):  # interleave the bits of row and column
        key |= (column >> bit & 1) << 2 * bit | (row >> bit & 1) << 2 * bit + 1
    return key.flatten().argsort()


def quad_tree_filters(channels: int, side: int, block: int) -> list[int]:
    r"""Filters $(c\,b^2, 4, \dots, 4)$ of the network whose last unit sees a whole image of $b \times b$ blocks."""
    return [channels * block**2] + [4] * ((side // block).bit_length() - 1)


def block_patches(
    images: Float[Tensor, "n c h w"],
    *,
    block: int = 2,
    offset: float = 1.0,
    order: Int[Tensor, " pixels"] | None = None,
) -> Float[Tensor, "n p s"]:
    r"""Square blocks of pixels as unit vectors, in quad-tree order.

    Args:
        images: square images with values in [0, 1].
        block: side of a block, in pixels; $s_1 = c \cdot \text{block}^2$.
        offset: constant added to every pixel first, so that empty blocks have a direction.
        order: permutation of the pixels before they are cut into blocks (the same for all images and channels).

    Raises:
        ValueError: if the images are not square, or their side is not a power of two times `block`.

    Source: ours; the paper treats abstract inputs.
    """
    n, channels, height, width = images.shape
    if height != width or height % block:
        raise ValueError(f"images must be square with a side divisible by block={block}, got {height} x {width}")
    pixels = images.double().flatten(2) + offset
    if order is not None:
        pixels = pixels[:, :, order.to(pixels.device)]
    side = height // block
    cells = pixels.view(n, channels, side, block, side, block).permute(0, 2, 4, 1, 3, 5).reshape(n, side * side, -1)
    cells = cells[:, quad_tree_order(side).to(cells.device)]
    return cells / cells.norm(dim=-1, keepdim=True)


def accuracies(
    train_kernel: Float[Tensor, "n n"],
    cross_kernel: Float[Tensor, "n m"],
    labels: Int[Tensor, " n"],
    test_labels: Int[Tensor, " m"],
    sizes: list[int],
    *,
    n_classes: int,
    ridge: float = 1e-10,
) -> Float[Tensor, " sizes"]:
    """Test accuracy of one-against-rest kernel regression on the first points, for every size."""
    onehot = torch.nn.functional.one_hot(labels, n_classes).to(train_kernel.dtype) - 1 / n_classes
    scores = nested_predictions(train_kernel, cross_kernel, onehot, sizes, ridge=ridge)
    return (scores.argmax(-1) == test_labels).to(train_kernel.dtype).mean(1)
