r"""Generative kernel continual learning: kernel ridge heads, their kernels, the contrastive term, the measures.

Every task has a kernel ridge regression head on a support set in the features of a shared network. Nothing of a head is
stored but three scalars: its coefficients are solved for again whenever the features have moved. In kernel continual
learning the support is a coreset of real samples, in its generative version it comes from a generator.

... any batch axes, n queries, m support samples, f features, k classes, b samples of a batch, t tasks.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

JITTER = 0.01  # added to the learnt ridge, part of the method


def linear_kernel(a: Float[Tensor, "... n f"], b: Float[Tensor, "... m f"]) -> Float[Tensor, "... n m"]:
    r"""$\langle a, b\rangle$."""
    return a @ b.transpose(-1, -2)


def polynomial_kernel(a: Float[Tensor, "... n f"], b: Float[Tensor, "... m f"]) -> Float[Tensor, "... n m"]:
    r"""$(\langle a, b\rangle + 1)^3$."""
    return (linear_kernel(a, b) + 1) ** 3


def laplacian_kernel(a: Float[Tensor, "... n f"], b: Float[Tensor, "... m f"]) -> Float[Tensor, "... n m"]:
    r"""$\exp(-\frac14\lVert a - b\rVert_1)$, which the code of the predecessor calls RBF."""
    return torch.exp(-0.25 * torch.cdist(a, b, p=1.0))


def gaussian_kernel(a: Float[Tensor, "... n f"], b: Float[Tensor, "... m f"]) -> Float[Tensor, "... n m"]:
    r"""$\exp(-\frac12\lVert a - b\rVert_2^2)$."""
    squares = a.square().sum(-1)[..., :, None] + b.square().sum(-1)[..., None, :]
    return torch.exp(linear_kernel(a, b) - 0.5 * squares)


def fourier_features(
    x: Float[Tensor, "... n f"], omega: Float[Tensor, "... f features"], phase: Float[Tensor, " features"]
) -> Float[Tensor, "... n features"]:
    r"""Random Fourier features $\sqrt{2/D}\cos(\omega^\top x + \beta)$; their inner products estimate a kernel.

    With $\omega \sim N(0, I)$ and $\beta$ uniform on $[0, 2\pi]$ that kernel is `gaussian_kernel`.
    """
    return (2 / omega.shape[-1]) ** 0.5 * torch.cos(x @ omega + phase)


KERNELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": linear_kernel,
    "polynomial": polynomial_kernel,
    "laplacian": laplacian_kernel,
    "gaussian": gaussian_kernel,
}
VARIATIONAL = "vrf"  # the kernel with learnt random features, see `gkcl_heads`


def krr_coefficients(
    gram: Float[Tensor, "... m m"], onehot: Float[Tensor, "... m k"], ridge: Float[Tensor, "..."]
) -> Float[Tensor, "... m k"]:
    r"""Dual coefficients $\alpha = (K + (|\lambda| + 0.01)I)^{-1}Y$; gradients flow through the solve.

    Args:
        gram: kernel matrix $K$ of the support.
        onehot: its labels $Y$.
        ridge: $\lambda$, one per problem, of either sign.

    Source: kernel head; the jitter is that of the predecessor's code.
    """
    diagonal = (ridge.abs() + JITTER)[..., None].expand(gram.shape[:-1])
    return torch.linalg.solve(gram + torch.diag_embed(diagonal), onehot)


def krr_logits(
    cross: Float[Tensor, "... n m"],
    gram: Float[Tensor, "... m m"],
    onehot: Float[Tensor, "... m k"],
    scalars: Float[Tensor, "... 3"],
) -> Float[Tensor, "... n k"]:
    r"""Logits $f(x) = g\,\alpha^\top k(\hat X, x) + b$ of a kernel head.

    Args:
        cross: kernel between queries and support.
        gram: kernel of the support with itself.
        onehot: labels of the support.
        scalars: ridge $\lambda$, gain $g$ and bias $b$ of each head, trainable.
    """
    ridge, gain, bias = scalars.unbind(-1)
    regression = cross @ krr_coefficients(gram, onehot, ridge)
    return gain[..., None, None] * regression + bias[..., None, None]


def new_scalars(n: int, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Float[Tensor, "n 3"]:
    r"""Start values of the scalars of n heads: $\lambda = 0.1$, $g = 1$, $b = 0$."""
    return torch.tensor([0.1, 1.0, 0.0], device=device, dtype=dtype).repeat(n, 1)


def gaussian_kl(
    mean: Float[Tensor, "... f"],
    log_var: Float[Tensor, "... f"],
    prior_mean: Float[Tensor, "... f"],
    prior_log_var: Float[Tensor, "... f"],
) -> Float[Tensor, "..."]:
    r"""$\mathrm{KL}(N(\mu, \mathrm{diag}\,\sigma^2)\,\|\,N(m, \mathrm{diag}\,s^2))$ in nats, from log variances."""
    distance = (mean - prior_mean).square() / prior_log_var.exp()
    return 0.5 * (prior_log_var - log_var + (log_var - prior_log_var).exp() + distance - 1).sum(-1)


def supervised_contrast(
    z: Float[Tensor, "... b f"], codes: Int[Tensor, "... b"], temperature: float
) -> Float[Tensor, "..."]:
    r"""Supervised contrastive loss of unit vectors: each code is pulled to the others of its class.

    $\frac1{|A|}\sum_{a \in A}\frac{-1}{|P(a)|}\sum_{p \in P(a)}\log\frac{e^{z_a\cdot z_p/\tau}}{\sum_{b \ne a}
    e^{z_a\cdot z_b/\tau}}$ with $P(a)$ the others with the code of $a$, and $A$ the anchors with $P(a) \ne \emptyset$.

    Args:
        z: latent means; normalised here.
        codes: label of each, here the pair of task and class.
        temperature: $\tau$.

    Returns:
        One value per batch; 0 if no code occurs twice.

    Source: Khosla et al., NeurIPS 2020, equation 2, averaged over anchors.
    """
    unit = F.normalize(z, dim=-1)
    similarity = unit @ unit.transpose(-1, -2) / temperature
    itself = torch.eye(z.shape[-2], dtype=torch.bool, device=z.device)
    log_probs = similarity - similarity.masked_fill(itself, -torch.inf).logsumexp(-1, keepdim=True)
    positive = ((codes[..., :, None] == codes[..., None, :]) & ~itself).to(z.dtype)
    n_positive = positive.sum(-1)
    per_anchor = -(positive * log_probs).sum(-1) / n_positive.clamp(min=1)
    return per_anchor.sum(-1) / (n_positive > 0).sum(-1).clamp(min=1)


def scatter_ratio(z: Float[Tensor, "n f"], codes: Int[Tensor, " n"]) -> float:
    """Spread between the class means over the mean spread within classes, as traces of covariances."""
    groups = [z[codes == code] for code in codes.unique()]
    means = torch.stack([group.mean(0) for group in groups])
    within = torch.stack([group.var(0, unbiased=False).sum() for group in groups]).mean()
    return float(means.var(0, unbiased=False).sum() / within)


def support_error(support: Float[Tensor, "... k m d"], class_means: Float[Tensor, "... k d"]) -> Float[Tensor, "..."]:
    r"""Squared distance between the mean of m supports and their class mean, over the spread between classes.

    $\sum_c\lVert\frac1m\sum_i\hat x_{c,i} - \mu_c\rVert^2 / \sum_c\lVert\mu_c - \bar\mu\rVert^2$. For m independent
    samples of a class it falls as 1/m; a generator whose samples are alike has a floor, its bias.

    Args:
        support: samples, class by class.
        class_means: $\mu_c$.
    """
    spread = (class_means - class_means.mean(-2, keepdim=True)).square().sum((-2, -1))
    return (support.mean(-2) - class_means).square().sum((-2, -1)) / spread


def average_accuracy(matrix: Float[Tensor, "... t t"]) -> Float[Tensor, "..."]:
    r"""$A_T = \frac1T\sum_t a_{T,t}$ from $a_{l,t}$, the accuracy on task t after training on task l."""
    return matrix[..., -1, :].mean(-1)


def forgetting(matrix: Float[Tensor, "... t t"]) -> Float[Tensor, "..."]:
    r"""$F = \frac1{T-1}\sum_{t<T}\max_{t \le l < T}a_{l,t} - a_{T,t}$; 0 for a single task."""
    n_tasks = matrix.shape[-1]
    if n_tasks == 1:
        return torch.zeros_like(matrix[..., 0, 0])
    drops = [matrix[..., t:-1, t].amax(-1) - matrix[..., -1, t] for t in range(n_tasks - 1)]
    return torch.stack(drops, -1).mean(-1)


def budget_for(m: list[int], accuracy: Float[Tensor, " points"], target: float) -> float:
    """Smallest budget at which a curve of accuracies reaches `target`, interpolated over the logarithm of the budget.

    Args:
        m: budgets, increasing.
        accuracy: the curve.
        target: accuracy to reach.

    Returns:
        The budget; the first one if the curve starts above the target, infinity if it never gets there.
    """
    logs = torch.tensor(m, dtype=torch.float64).log()
    for right in range(len(m)):
        if float(accuracy[right]) >= target:
            if right == 0:
                return float(m[0])
            low, high = float(accuracy[right - 1]), float(accuracy[right])
            share = (target - low) / (high - low)
            return float((logs[right - 1] + share * (logs[right] - logs[right - 1])).exp())
    return float("inf")


def coreset_bytes(n_tasks: int, n_classes: int, m: int, n_values: int, value_bytes: int = 1) -> int:
    """Memory of a stored coreset of m samples per class: `n_values` numbers of `value_bytes` bytes each."""
    return n_tasks * n_classes * m * n_values * value_bytes
