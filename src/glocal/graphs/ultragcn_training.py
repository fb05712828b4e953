"""Training of the UltraGCN chapter's embedding models: recipes, early stopping on validation recall, a fair clock."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from glocal.data.types import InteractionData, RatingData
from glocal.graphs.ranking import FullRanking, Interactions, Scorer, k_core, split_per_user
from glocal.graphs.ultragcn import MatrixFactorization, Neighbors, UltraGCNLoss, top_neighbors
from glocal.graphs.ultragcn_baselines import BPRLoss, LightGCN
from glocal.seeding import torch_generator

Objective = Callable[..., Tensor]
LOSSES = ("bce", "bpr")


@dataclass(frozen=True)
class Recipe:
    """What is trained and how; the defaults are the paper's for Gowalla. All models of the chapter are recipes.

    Args:
        loss: `"bce"` (weighted cross-entropy, many negatives) or `"bpr"` (pairwise, one negative).
        n_layers: LightGCN layers between the tables and the scores; 0 is matrix factorisation.
        dim: size of the embeddings.
        std: standard deviation of their initial values.
        lr: learning rate of Adam.
        batch_size: positive pairs per step.
        w: $(w_1, w_2, w_3, w_4)$ of `UltraGCNLoss`.
        n_negatives: negatives per pair or, shared, per batch.
        negative_weight: weight of the mean over the negatives.
        item_weight: weight of the item-item loss; 0 leaves it out.
        user_weight: weight of the user-user loss; 0 leaves it out.
        n_neighbors: length of the neighbour lists; None for all, without filtering.
        omega_form: `"code"` or `"paper"`, see `top_neighbors`.
        diagonal: whether an item may be its own neighbour.
        reg_weight: of the whole tables per batch (`"bce"`, a sum) or of a batch's embeddings (`"bpr"`, a mean).
        neg_mode: `"pair"` or `"shared"`.
        exclude_positives: redraw negatives that are positives.
        max_epochs: limit on the epochs.
        patience: epochs without better validation recall before stopping.
        eval_every: epochs between evaluations.
    """

    loss: str = "bce"
    n_layers: int = 0
    dim: int = 64
    std: float = 1e-4
    lr: float = 1e-4
    batch_size: int = 512
    w: tuple[float, float, float, float] = (1e-6, 1.0, 1e-6, 1.0)
    n_negatives: int = 1500
    negative_weight: float = 300.0
    item_weight: float = 5e-4
    user_weight: float = 0.0
    n_neighbors: int | None = 10
    omega_form: str = "code"
    diagonal: bool = True
    reg_weight: float = 1e-4
    neg_mode: str = "pair"
    exclude_positives: bool = False
    max_epochs: int = 2000
    patience: int = 150
    eval_every: int = 1

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        if self.loss == "bpr" and (self.item_weight or self.user_weight):
            raise ValueError("item_weight and user_weight must be 0 with loss='bpr', which has no such terms")

    def model(self, train: Interactions, generator: torch.Generator) -> MatrixFactorization:
        """The embeddings to train, on the device of `train`, with what propagation needs computed once."""
        if self.n_layers:
            return LightGCN(train, self.dim, self.std, self.n_layers, generator=generator)
        return MatrixFactorization(train.n_users, train.n_items, self.dim, self.std, generator=generator)

    def objective(self, train: Interactions) -> Objective:
        """The loss with its constants (degrees, neighbour lists) computed once."""
        if self.loss == "bpr":
            return BPRLoss(train.n_items, self.reg_weight)

        def lists(graph: Interactions) -> Neighbors:
            return top_neighbors(graph, self.n_neighbors, form=self.omega_form, diagonal=self.diagonal)

        return UltraGCNLoss(
            train,
            self.w,
            self.n_negatives,
            self.negative_weight,
            lists(train) if self.item_weight else None,
            self.item_weight,
            lists(train.swapped()) if self.user_weight else None,
            self.user_weight,
            self.reg_weight,
            self.neg_mode,
            self.exclude_positives,
        )


def implicit_splits(
    data: RatingData | InteractionData, *, seed: int, min_rating: float = 5.0, core: int = 5
) -> tuple[Interactions, Interactions, Interactions]:
    """Training, validation and test pairs of one seed.

    Ratings become positives from `min_rating` on, are cut to the `core`-core and split 80/10/10 per user.
    A published train/test split stays as it is; a tenth of each user's training items becomes validation.

    Args:
        data: explicit ratings, or pairs with a published split.
        seed: the split derives from it.
        min_rating: smallest rating that counts as a positive.
        core: smallest number of pairs of every user and item.
    """
    generator = torch_generator(seed, "split")
    if isinstance(data, RatingData):
        kept = data.ratings >= min_rating
        positives = k_core(torch.stack([data.users[kept], data.items[kept]], 1), core)
        train, val, test = split_per_user(positives, (0.1, 0.1), generator=generator)
        return train, val, test
    everything = Interactions.from_pairs(data.train, data.n_users, data.n_items)
    train, val = split_per_user(everything, (0.1,), generator=generator)
    return train, val, Interactions.from_pairs(data.test, data.n_users, data.n_items)


class Stopwatch:
    """Seconds of training: CPU time of the process on a CPU, synchronised wall time on a GPU.

    CPU time does not count the waiting of a busy machine. Use as a context manager; the times add up.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.is_cuda = torch.device(device).type == "cuda"
        self.seconds = 0.0

    def _now(self) -> float:
        if self.is_cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def __enter__(self) -> "Stopwatch":
        self._start = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += self._now() - self._start


def keep_freed_memory(megabytes: int = 28) -> None:
    """Make glibc keep freed blocks of up to this size, by allocating and freeing one.

    Otherwise it returns every freed temporary of a training step to the kernel and pays for the page faults
    of the next one, which doubles the CPU time of models as small as ours. Other C libraries ignore it.
    """
    block = torch.empty(megabytes * 2**20, dtype=torch.uint8)
    del block


class Adam:
    """Adam for one table, without weight decay: `torch.optim.Adam` minus its bookkeeping.

    The steps of this chapter take a millisecond or two, of which the general class would use a quarter.
    """

    def __init__(self, table: nn.Parameter, lr: float) -> None:
        self.table, self.lr, self.n_steps = table, lr, 0
        self.mean, self.square = torch.zeros_like(table), torch.zeros_like(table)

    @torch.no_grad()
    def step(self, loss: Float[Tensor, ""]) -> None:
        """Update the table by the gradient of `loss`."""
        (gradient,) = torch.autograd.grad(loss, self.table)
        self.n_steps += 1
        self.mean.lerp_(gradient, 0.1)
        self.square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        root = (self.square / (1 - 0.999**self.n_steps)).sqrt_().add_(1e-8)
        self.table.addcdiv_(self.mean, root, value=-self.lr / (1 - 0.9**self.n_steps))


@dataclass(frozen=True)
class Fit:
    """A trained model: the embeddings of its best validation epoch and the way there.

    Args:
        users: embeddings of the users at the best epoch.
        items: embeddings of the items at the best epoch.
        recall: validation Recall@k at each evaluation.
        ndcg: validation NDCG@k at each evaluation.
        epochs: epoch of each evaluation, from 1.
        seconds: training time up to each evaluation, preparation included, evaluation excluded.
    """

    users: Float[Tensor, "users d"]
    items: Float[Tensor, "items d"]
    recall: Float[np.ndarray, " evals"]
    ndcg: Float[np.ndarray, " evals"]
    epochs: Float[np.ndarray, " evals"]
    seconds: Float[np.ndarray, " evals"]

    @property
    def best(self) -> int:
        """Index of the evaluation with the best validation recall, the first of equals."""
        return int(self.recall.argmax())

    @property
    def scorer(self) -> Scorer:
        """Scores of all items for a chunk of users, from the best epoch's embeddings."""
        return inner_products(self.users, self.items)

    def first(self, target: float) -> int:
        """Index of the first evaluation whose validation NDCG@k reaches `target`.

        Raises:
            ValueError: if it is never reached.
        """
        reached = np.flatnonzero(self.ndcg >= target)
        if not len(reached):
            raise ValueError(f"target must be at most the best validation NDCG {self.ndcg.max():.4f}, got {target:.4f}")
        return int(reached[0])


def common_target(one: Fit, other: Fit, fraction: float = 0.95) -> float:
    """A validation NDCG that both fits reach: `fraction` of the lower of their two maxima."""
    return fraction * float(min(one.ndcg.max(), other.ndcg.max()))


def fit(
    recipe: Recipe,
    train: Interactions,
    val: Interactions,
    *,
    seed: int,
    k: int = 20,
    max_steps: int | None = None,
    max_chunks: int | None = None,
) -> Fit:
    """Train a recipe with Adam until validation Recall@k has not improved for `patience` epochs.

    The clock runs while graphs and weights are prepared and during the steps, not during evaluation.

    Args:
        recipe: model, loss and hyperparameters.
        train: positive pairs, reshuffled in every epoch; their device is the device of the training.
        val: held-out pairs that choose the epoch.
        seed: initial values, order of the pairs and negatives derive from it.
        k: length of the ranked list.
        max_steps: limit on the steps per epoch (rehearsals).
        max_chunks: limit on the chunks of users evaluated (rehearsals).
    """
    device = train.pairs.device
    keep_freed_memory()
    watch = Stopwatch(device)
    generator = torch_generator(seed, "train", device=device)
    with watch:
        model = recipe.model(train, torch_generator(seed, "init", device=device))
        objective = recipe.objective(train)
        optimizer = Adam(model.table, recipe.lr)
    ranking = FullRanking(train, val, max_chunks=max_chunks)
    all_users, all_items = train.pairs.T.contiguous()
    history: list[tuple[float, float, float, float]] = []
    best_epoch, best_recall = 0, -1.0
    for epoch in range(1, recipe.max_epochs + 1):
        with watch:
            order = torch.randperm(len(train), generator=generator, device=device)
            batches = zip(*(side[order].split(recipe.batch_size) for side in (all_users, all_items)), strict=True)
            for users, items in islice(batches, max_steps):
                optimizer.step(objective(model, users, items, generator=generator))
        if epoch % recipe.eval_every and epoch < recipe.max_epochs:
            continue
        with torch.no_grad():
            user_table, item_table = (table.clone() for table in model())
        latest = (user_table, item_table)
        metrics = ranking(inner_products(*latest), k)
        recall, ndcg = float(metrics.recall.mean()), float(metrics.ndcg.mean())
        history.append((recall, ndcg, float(epoch), watch.seconds))
        if recall > best_recall:
            best_epoch, best_recall, kept = epoch, recall, latest
        elif epoch - best_epoch >= recipe.patience:
            break
    return Fit(*kept, *np.array(history).T)


def inner_products(users: Float[Tensor, "users d"], items: Float[Tensor, "items d"]) -> Scorer:
    """Inner products of the embeddings as scores of all items for a chunk of users."""
    return lambda part: users[part] @ items.T


def tune(
    recipes: dict[str, Recipe], train: Interactions, val: Interactions, *, seed: int, k: int = 20
) -> dict[str, float]:
    """Best validation Recall@k of each recipe, best recipe first: how the chapter's settings were chosen.

    Args:
        recipes: candidates by name, usually a small grid around one method.
        train: positive pairs.
        val: held-out pairs.
        seed: one seed that is not among those that are reported.
        k: length of the ranked list.
    """
    scores = {name: float(fit(r, train, val, seed=seed, k=k).recall.max()) for name, r in recipes.items()}
    return dict(sorted(scores.items(), key=lambda entry: -entry[1]))
