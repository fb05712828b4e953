"""One stream of tasks from the first to the last: generator, kernel learners and rivals on the same batches.

The generator learns from no head, and no head changes a generator. So both steps of a mini-batch may be taken task by
task: first all generator steps, which leave a trace of the supports drawn on the way, then all kernel steps on it.

s seeds, t tasks, p budgets m, v generators, k classes, m samples per class, d values.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from glocal.nn.stack import predict
from glocal.nn.training import Recipe, minibatches
from glocal.supervision.gkcl import scatter_ratio
from glocal.supervision.gkcl_baselines import FAMILIES, Rival, Rivals, head_of, replay_batches
from glocal.supervision.gkcl_data import Task, TaskStream
from glocal.supervision.gkcl_generator import Generator, GeneratorSettings, Trace
from glocal.supervision.gkcl_heads import KernelLearners, Learner
from glocal.supervision.gkcl_setup import Draw, Settings, make_classifiers, make_generator, make_learners

Matrix = Float[Tensor, "s t t"]


@dataclass
class Outcome:
    """What a stream leaves behind; accuracies are shares.

    Attributes:
        matrices: $a_{l,t}$ of every learner, by (learner, samples per class in training); 0 above the diagonal.
        sweep: accuracy on every task after the last one, by the same key, for every budget of the evaluation.
        controls: matrices of the same networks with other supports: `real` ones, `generated` ones, or generated ones
            `kept` since their task.
        rivals: matrices of the methods with task heads.
        samples: supports of every task generated after the last one.
        fidelity: share of samples of task t, generated after task l, that the joint network puts into their class.
        scatter: spread of latent means between codes over that within, for every generator.
        generator: the generator after the last task.
    """

    generator: Generator
    matrices: dict[tuple[Learner, int], Matrix] = field(default_factory=dict)
    sweep: dict[tuple[Learner, int], Float[Tensor, "s p t"]] = field(default_factory=dict)
    controls: dict[tuple[str, Learner, int], Matrix] = field(default_factory=dict)
    rivals: dict[Rival, Matrix] = field(default_factory=dict)
    samples: list[Float[Tensor, "v k m d"]] = field(default_factory=list)
    fidelity: Float[Tensor, "v t t"] | None = None
    scatter: Float[Tensor, " v"] | None = None


def run(
    stream: TaskStream,
    settings: Settings,
    objective: GeneratorSettings,
    *,
    groups: Mapping[int, Sequence[Learner]],
    budgets: Sequence[int],
    draw: Draw,
    contrast_weights: Sequence[float] = (0.0,),
    rivals: Sequence[Rival] = (),
    n_tasks: int | None = None,
    part: str = "test",
    with_controls: bool = False,
) -> Outcome:
    """Train everything on a stream.

    Args:
        stream: the tasks.
        settings: networks and budgets.
        objective: of the generator.
        groups: kernel learners by the number m of samples per class in their training.
        budgets: the m of the evaluation, increasing; the largest at least that of any training.
        draw: random generators by name, on the stream's device.
        contrast_weights: weights of the contrastive term, one generator each.
        rivals: methods with task heads; their memory is that of the first group.
        n_tasks: tasks to stop after; all by default.
        part: `test` or `val`, the samples that are evaluated.
        with_controls: whether the first group is also evaluated with other supports than its own.
    """
    n_tasks = n_tasks or stream.n_tasks
    tasks = [stream.task(t) for t in range(n_tasks)]
    generator = make_generator(stream, settings, objective, contrast_weights, draw)
    learners = {m: make_learners(stream, settings, each, draw) for m, each in groups.items()}
    families = {family: [rival for rival in rivals if rival.family == family] for family in FAMILIES}
    contestants = {
        family: Rivals(each, make_classifiers(stream, settings, len(each), draw), stream.n_seeds, stream.n_tasks)
        for family, each in families.items()
        if each
    }
    outcome, first_m = Outcome(generator), next(iter(groups))
    noise = [generator.noise(max(budgets), generator=draw("evaluation", t)) for t in range(n_tasks)]
    kept: list[Tensor] = []
    history = []
    for now, task in enumerate(tasks):
        orders = [draw("order", now, seed) for seed in range(stream.n_seeds)]
        everything = [torch.arange(task.x.shape[1], device=task.x.device)] * stream.n_seeds
        batches = minibatches(everything, settings.batch_size, settings.n_steps, generators=orders)
        n_adam = objective.steps_ratio * settings.n_steps
        adam = Recipe(n_adam, settings.vae_lr, optimizer="adam", schedule="constant")
        shown = minibatches(everything, settings.vae_batch_size or settings.batch_size, n_adam, generators=orders)
        trace = generator.train_task(now, task, shown, adam, m=max(groups), generator=draw("generator", now))
        if any(learner.support == "finished" for each in groups.values() for learner in each):
            chance = draw("finished", now)
            trace.finished = [
                generator.support(now, generator.noise(max(groups), generator=chance)) for _ in trace.supports
            ]
        for m, each in learners.items():
            chance = draw("heads", now)
            each.train_task(now, task, batches, trace, settings.recipe(now), m=m, generator=chance)
        _train_rivals(contestants, now, tasks, batches, trace, settings, first_m, draw)
        supports = [generator.support(t, noise[t]) for t in range(now + 1)]
        kept.append(supports[now])
        history.append(supports)
        for t in range(now + 1):
            x, y = (tasks[t].x_test, tasks[t].y_test) if part == "test" else (tasks[t].x_val, tasks[t].y_val)
            for m, each in learners.items():
                h = each.features(x)
                versions = {"own": each.select_supports(tasks[t].coreset[:, :, :m], supports[t][:, :, :m])}
                if with_controls and m == first_m:
                    versions["real"] = each.tile(tasks[t].coreset[:, :, :m])
                    versions["generated"] = each.generated_supports(supports[t][:, :, :m])
                    versions["kept"] = each.generated_supports(kept[t][:, :, :m])
                for name, chosen in versions.items():
                    _write(outcome, name, each, m, now, t, _accuracy(each, t, h, y, chosen), n_tasks)
                if now == n_tasks - 1:
                    most = max(budgets)
                    chosen = each.select_supports(tasks[t].coreset[:, :, :most], supports[t])
                    _sweep(outcome, each, m, t, h, y, chosen, budgets, n_tasks)
            for group in contestants.values():
                values = group.accuracy(t, x, y).split(stream.n_seeds)
                for rival, value in zip(group.rivals, values, strict=True):
                    matrix = outcome.rivals.setdefault(rival, torch.zeros(stream.n_seeds, n_tasks, n_tasks))
                    matrix[:, now, t] = value.cpu()
    outcome.samples = supports
    if "joint" in contestants and part == "test":
        outcome.fidelity = _fidelity(contestants["joint"], history)
    outcome.scatter = _scatter(generator, tasks)
    return outcome


def _accuracy(learners: KernelLearners, t: int, h: Tensor, y: Tensor, support: Tensor) -> Float[Tensor, " r"]:
    """Accuracy with a support set given as samples."""
    k, m = support.shape[1:3]
    features = learners.features(support.flatten(1, 2))
    return learners.accuracy(t, h, y, features.reshape(len(features), k, m, -1))


def _write(
    outcome: Outcome, name: str, each: KernelLearners, m: int, now: int, t: int, values: Tensor, n_tasks: int
) -> None:
    """File the accuracies of every learner under the task learnt and the task tested."""
    for learner, value in zip(each.learners, values.split(each.n_seeds), strict=True):
        blank = torch.zeros(each.n_seeds, n_tasks, n_tasks)
        if name == "own":
            matrix = outcome.matrices.setdefault((learner, m), blank)
        else:
            matrix = outcome.controls.setdefault((name, learner, m), blank)
        matrix[:, now, t] = value.cpu()


def _sweep(
    outcome: Outcome,
    each: KernelLearners,
    m: int,
    t: int,
    h: Tensor,
    y: Tensor,
    support: Tensor,
    budgets: Sequence[int],
    n_tasks: int,
) -> None:
    """Evaluate one task at every budget; smaller supports are parts of larger ones."""
    k, q = support.shape[1:3]
    features = each.features(support.flatten(1, 2)).reshape(len(support), k, q, -1)
    for column, budget in enumerate(budgets):
        values = each.accuracy(t, h, y, features[:, :, :budget]).split(each.n_seeds)
        for learner, value in zip(each.learners, values, strict=True):
            table = outcome.sweep.setdefault((learner, m), torch.zeros(each.n_seeds, len(budgets), n_tasks))
            table[:, column, t] = value.cpu()


def _train_rivals(
    contestants: Mapping[str, Rivals],
    now: int,
    tasks: Sequence[Task],
    batches: Tensor,
    trace: Trace,
    settings: Settings,
    m: int,
    draw: Draw,
) -> None:
    """One task of every family."""
    task, rows = tasks[now], torch.arange(batches.shape[1], device=batches.device)[:, None]
    b = batches.shape[2]

    def current(step: int) -> tuple[Tensor, Tensor, Tensor]:
        index = batches[step]
        return task.x[rows, index], task.y[rows, index], torch.full_like(index, now)

    chance = draw("rivals", now)
    everything = _from_all_tasks(tasks, 2 * b, chance) if "joint" in contestants else current
    for family, each in contestants.items():
        second = None
        if family == "replay" and now:
            coresets = [earlier.coreset[:, :, :m] for earlier in tasks[:now]]
            second = replay_batches(trace, coresets, b, generator=chance)
        each.train_task(now, everything if family == "joint" else current, second, settings.recipe(now))
        each.consolidate(now, task, settings.n_fisher)


def _from_all_tasks(
    tasks: Sequence[Task], n: int, generator: torch.Generator
) -> Callable[[int], tuple[Tensor, Tensor, Tensor]]:
    """Batches of joint training: equally many samples of every task on average."""
    s, size = tasks[0].y.shape
    device = tasks[0].x.device
    rows = torch.arange(s, device=device)[:, None]
    x, y = torch.stack([task.x for task in tasks]), torch.stack([task.y for task in tasks])

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        which = torch.randint(len(tasks), (s, n), generator=generator, device=device)
        index = torch.randint(size, (s, n), generator=generator, device=device)
        return x[which, rows, index], y[which, rows, index], which

    return batch


@torch.no_grad()
def _fidelity(joint: Rivals, history: Sequence[Sequence[Float[Tensor, "v k m d"]]]) -> Float[Tensor, "v t t"]:
    """Agreement of generated labels with the joint network of the same seed."""
    n_tasks, s = len(history), joint.n_seeds
    first = history[0][0]
    found = torch.zeros(len(first), n_tasks, n_tasks)
    labels = torch.arange(first.shape[1], device=first.device).repeat_interleave(first.shape[2])
    for now, supports in enumerate(history):
        for t, support in enumerate(supports):
            for variant, samples in enumerate(support.flatten(1, 2).split(s)):
                outputs = predict(joint.stack, joint.tile(samples), batch_size=1024)[:s]
                task = torch.full(samples.shape[:2], t, device=samples.device)
                logits = head_of(outputs, task, joint.n_tasks)
                agrees = (logits.argmax(-1) == labels).float().mean(1)
                found[variant * s : (variant + 1) * s, now, t] = agrees.cpu()
    return found


@torch.no_grad()
def _scatter(generator: Generator, tasks: Sequence[Task]) -> Float[Tensor, " v"]:
    """Scatter ratio of the latent means of test samples of all tasks."""
    x = torch.cat([task.x_test for task in tasks], 1)
    k = generator.n_classes
    codes = generator.tile(torch.cat([t * k + task.y_test for t, task in enumerate(tasks)], 1))
    encoded = predict(generator.stack, generator.tile(x), method="encode", batch_size=1024)
    means = encoded.chunk(2, -1)[0]
    return torch.tensor([scatter_ratio(mean, code) for mean, code in zip(means, codes, strict=True)])
