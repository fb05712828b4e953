r"""Runs on the full training data: the networks that score the examples, at several times of their training.

R repetitions, K runs in each, n training examples, k classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from glocal.nn.networks import MLP
from glocal.nn.stack import NetworkStack, Weights
from glocal.supervision import data_diet as diet
from glocal.supervision import data_diet_training as training
from glocal.supervision.data_diet_baselines import rank_correlation
from glocal.supervision.data_diet_data import Trainer


@dataclass(frozen=True)
class Chunk:
    """Networks that were trained side by side: the repetition of each, and their weights at the steps kept."""

    stack: NetworkStack
    reps: list[int]
    states: dict[int, Weights]


@dataclass(frozen=True)
class Runs:
    """K runs per repetition on all training data.

    Args:
        trainer: how they were trained.
        n_runs: K.
        chunks: the networks, repetition by repetition.
        forgetting: flips of each run at the end of its training; None if they were not counted.
    """

    trainer: Trainer
    n_runs: int
    chunks: list[Chunk]
    forgetting: Float[Tensor, "R K n"] | None = None

    def network(self, rep: int, run: int, step: int) -> nn.Module:
        """One network as it was after `step` updates, in evaluation mode."""
        position = rep * self.n_runs + run
        for chunk in self.chunks:
            if position < len(chunk.reps):
                return chunk.stack.load(chunk.states[step]).single(position).eval()
            position -= len(chunk.reps)
        raise IndexError(f"there is no run {run} of repetition {rep}: each repetition has {self.n_runs} runs")

    @torch.no_grad()
    def features(self, rep: int, step: int) -> Float[Tensor, "n f"]:
        """Penultimate features of the training examples of a repetition, by its first run."""
        network = self.network(rep, 0, step)
        parts = self.trainer.study.train[rep].split(1000)
        return torch.cat([network.features(self.trainer.study.x[part]) for part in parts])  # type: ignore[operator]

    def logits(self, step: int, *, is_test: bool = False) -> Float[Tensor, "R K n k"]:
        """Outputs after `step` updates on the training (or test) examples, in evaluation mode."""
        study, parts = self.trainer.study, []
        for chunk in self.chunks:
            index = (study.test if is_test else study.train)[chunk.reps]
            parts.append(training.logits_on(chunk.stack.load(chunk.states[step]), study.x, index))
        return torch.cat(parts).unflatten(0, (-1, self.n_runs))

    def run_scores(self, step: int, kind: str = "el2n") -> Float[Tensor, "R K n"]:
        """Scores of the single runs after `step` updates; `kind` is `grand` or one of `data_diet.OUTPUT_SCORES`."""
        study = self.trainer.study
        if kind != "grand":
            return diet.output_score(self.logits(step), study.labels[study.train][:, None], kind)
        parts = []
        for chunk in self.chunks:
            stack = chunk.stack.load(chunk.states[step])
            x, labels = study.x[study.train], study.labels[study.train]
            if isinstance(stack.network, MLP):
                for k, rep in enumerate(chunk.reps):
                    parts.append(diet.grand_dense(stack.select([k]), x[rep : rep + 1], labels[rep : rep + 1])[0])
            else:
                for k, rep in enumerate(chunk.reps):
                    parts.append(diet.grand(stack.single(k).eval(), x[rep], labels[rep], chunk=64))
        return torch.stack(parts).unflatten(0, (-1, self.n_runs))

    def scores(self, step: int, kind: str = "el2n") -> Float[Tensor, "R n"]:
        """Mean over the runs of a repetition, taken before any ranking."""
        return self.run_scores(step, kind).mean(1)

    def accuracy(self, step: int) -> Float[Tensor, "R K"]:
        """Test accuracy in per cent after `step` updates."""
        study = self.trainer.study
        right = self.logits(step, is_test=True).argmax(-1) == study.clean[study.test][:, None]
        return 100 * right.double().mean(-1)


def run_on_all(
    trainer: Trainer,
    n_runs: int,
    steps: Sequence[int],
    *,
    purpose: str = "score",
    is_counting: bool = False,
) -> Runs:
    """Train K networks per repetition on all its data up to the last of `steps` and keep their weights there.

    Args:
        trainer: data, architecture and recipe; a prefix of the recipe is trained if the last step comes earlier.
        n_runs: K, independent initialisations and data orders.
        steps: numbers of updates after which weights are kept; 0 is the initialisation.
        purpose: names the streams of randomness.
        is_counting: count forgetting events on the way.
    """
    study, wanted = trainer.study, set(steps)
    keys = [(rep, k) for rep in range(len(study.train)) for k in range(n_runs)]
    chunks, counts = [], []
    for start in range(0, len(keys), trainer.side_by_side):
        part = keys[start : start + trainer.side_by_side]
        reps = [rep for rep, _ in part]
        stack = trainer.stack(purpose, part)
        states = {0: stack.state()} if 0 in wanted else {}
        counter = diet.ForgettingCounter(len(part), len(study.x), device=study.x.device) if is_counting else None

        def keep(step: int, stack: NetworkStack = stack, states: dict[int, Weights] = states) -> None:
            if step + 1 in wanted:
                states[step + 1] = stack.state()

        def watch(index: Int[Tensor, "s b"], logits: Tensor, counter: diet.ForgettingCounter | None = counter) -> None:
            if counter is not None:
                counter.visit(index, logits, study.labels[index])

        if max(wanted) > 0:
            recipe = training.truncated(trainer.recipe, max(wanted))
            batches = training.batches_for(
                list(study.train[reps]), recipe, generators=trainer.generators(f"{purpose} order", part)
            )
            trainer.fit(stack, batches, recipe, watch=watch, after_step=keep)
        chunks.append(Chunk(stack, reps, states))
        if counter is not None:
            counts.append(counter.scores().gather(1, study.train[reps]))
    forgetting = torch.cat(counts).unflatten(0, (-1, n_runs)) if counts else None
    return Runs(trainer, n_runs, chunks, forgetting)


def reliability(scores: Float[Tensor, "K n"], held_out: Float[Tensor, " n"], k: int) -> list[float]:
    """Rank correlation of means over disjoint groups of `k` runs with a held-out score."""
    groups = scores[: len(scores) // k * k].unflatten(0, (-1, k)).mean(1)
    return [rank_correlation(group, held_out) for group in groups]
