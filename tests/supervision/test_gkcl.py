"""Properties of generative kernel continual learning: heads, generator, and what a task may touch."""

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import laplacian_kernel, polynomial_kernel, rbf_kernel
from torch.distributions import Independent, Normal, kl_divergence

from glocal.nn.stack import NetworkStack
from glocal.nn.training import Recipe, minibatches
from glocal.seeding import torch_generator
from glocal.supervision import gkcl
from glocal.supervision import gkcl_baselines as baselines
from glocal.supervision import gkcl_data as data
from glocal.supervision import gkcl_experiment as experiment
from glocal.supervision import gkcl_heads as heads
from glocal.supervision import gkcl_networks as networks
from glocal.supervision import gkcl_setup as setup
from glocal.supervision.gkcl_generator import GeneratorSettings, Trace

SEEDS = 2
SETTINGS = setup.Settings(3, 8, (12,), (10,), 4, n_random=16)


def rand(*shape: int, name: str = "x") -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch_generator(0, name))


def draw(*names: str | int) -> torch.Generator:
    return torch_generator(7, *names)


def small_pool(*, likelihood: str = "bernoulli") -> data.Pool:
    labels = torch.arange(240) % 6
    centres = torch.rand(6, 36, generator=torch_generator(0, "centres"))
    x = (centres[labels] + 0.1 * torch.randn(240, 36, generator=torch_generator(0, "pool"))).clamp(0, 1)
    return data.Pool(x, labels, (1, 6, 6), likelihood)


def small_stream(kind: str = "rotated", n_tasks: int = 3) -> data.TaskStream:
    seeds = [torch_generator(1, seed) for seed in range(SEEDS)]
    return data.TaskStream(kind, small_pool(), n_tasks, (20, 5, 5, 10), n_classes=2, generators=seeds)


def small_generator(stream: data.TaskStream, weights: list[float] | None = None):
    return setup.make_generator(stream, SETTINGS, GeneratorSettings(), weights or [0.0], draw)


def batches_of(task: data.Task, n_steps: int = 3) -> torch.Tensor:
    return minibatches([torch.arange(task.x.shape[1])] * SEEDS, 8, n_steps, generators=[draw("order")])


# Check 1


def test_coefficients_equal_sklearn_and_the_linear_kernel_primal_ridge() -> None:
    h, onehot, queries = rand(12, 5), torch.eye(3, dtype=torch.float64).repeat_interleave(4, 0), rand(7, 5, name="q")
    ridge = torch.tensor(-0.3, dtype=torch.float64)  # its absolute value counts
    gram = gkcl.linear_kernel(h, h)
    alpha = gkcl.krr_coefficients(gram, onehot, ridge)
    reference = KernelRidge(alpha=0.31, kernel="precomputed").fit(gram.numpy(), onehot.numpy())
    assert torch.allclose(alpha, torch.from_numpy(reference.dual_coef_), atol=1e-8)
    primal = torch.linalg.solve(h.T @ h + 0.31 * torch.eye(5, dtype=torch.float64), h.T @ onehot)
    scalars = torch.tensor([-0.3, 2.0, 0.5], dtype=torch.float64)
    logits = gkcl.krr_logits(gkcl.linear_kernel(queries, h), gram, onehot, scalars)
    assert torch.allclose(logits, 2.0 * queries @ primal + 0.5, atol=1e-8)


def test_kernels_equal_sklearn() -> None:
    a, b = rand(6, 5), rand(4, 5, name="b")
    expected = {
        "linear": a @ b.T,
        "polynomial": torch.from_numpy(polynomial_kernel(a, b, degree=3, gamma=1.0, coef0=1.0)),
        "laplacian": torch.from_numpy(laplacian_kernel(a, b, gamma=0.25)),
        "gaussian": torch.from_numpy(rbf_kernel(a, b, gamma=0.5)),
    }
    assert set(expected) == set(gkcl.KERNELS)
    for name, value in expected.items():
        assert torch.allclose(gkcl.KERNELS[name](a, b), value, atol=1e-10), name


def test_fourier_features_estimate_the_gaussian_kernel() -> None:
    a = F.normalize(rand(6, 5), dim=-1)
    omega, phase = rand(5, 40_000, name="omega"), 2 * torch.pi * torch.rand(40_000, dtype=torch.float64)
    features = gkcl.fourier_features(a, omega, phase)
    assert torch.allclose(features @ features.T, gkcl.gaussian_kernel(a, a), atol=0.03)


# Check 2


@pytest.mark.parametrize("kernel", ["linear", "laplacian", "gaussian"])
def test_gradients_flow_through_the_solve_and_both_sides_of_the_kernel(kernel: str) -> None:
    onehot = torch.eye(2, dtype=torch.float64).repeat_interleave(2, 0)

    def logits(queries: torch.Tensor, support: torch.Tensor, scalars: torch.Tensor) -> torch.Tensor:
        k = gkcl.KERNELS[kernel]
        return gkcl.krr_logits(k(queries, support), k(support, support), onehot, scalars)

    scalars = torch.tensor([0.1, 1.3, 0.2], dtype=torch.float64)
    inputs = [part.requires_grad_() for part in (rand(3, 4), rand(4, 4, name="s"), scalars)]
    assert torch.autograd.gradcheck(logits, inputs, atol=1e-5)


# Check 3


def test_large_ridge_gives_the_class_mean_rule_and_orthonormal_supports_the_closed_form() -> None:
    h, queries = rand(12, 5), rand(7, 5, name="q")
    onehot = torch.eye(3, dtype=torch.float64).repeat_interleave(4, 0)
    alpha = gkcl.krr_coefficients(gkcl.linear_kernel(h, h), onehot, torch.tensor(1e9, dtype=torch.float64))
    assert torch.allclose(1e9 * alpha, onehot, atol=1e-6)
    means = h.reshape(3, 4, 5).mean(1)
    scalars = torch.tensor([1e9, 1.0, 0.0], dtype=torch.float64)
    logits = gkcl.krr_logits(gkcl.linear_kernel(queries, h), gkcl.linear_kernel(h, h), onehot, scalars)
    assert torch.equal(logits.argmax(1), (queries @ means.T).argmax(1))
    basis = torch.linalg.qr(rand(5, 3, name="basis")).Q.T
    one = gkcl.krr_logits(
        gkcl.linear_kernel(queries, basis),
        gkcl.linear_kernel(basis, basis),
        torch.eye(3, dtype=torch.float64),
        torch.tensor([0.49, 1.0, 0.0], dtype=torch.float64),
    )
    assert torch.allclose(one, queries @ basis.T / 1.5, atol=1e-10)


def test_rotating_all_features_changes_no_logit() -> None:
    h, queries, turn = rand(6, 5), rand(7, 5, name="q"), torch.linalg.qr(rand(5, 5, name="turn")).Q
    onehot, scalars = torch.eye(3, dtype=torch.float64).repeat_interleave(2, 0), gkcl.new_scalars(1, "cpu").double()[0]
    for moved in (lambda x: x, lambda x: x @ turn):
        a, b = moved(queries), moved(h)
        logits = gkcl.krr_logits(a @ b.T, b @ b.T, onehot, scalars)
        assert torch.allclose(logits, gkcl.krr_logits(queries @ h.T, h @ h.T, onehot, scalars), atol=1e-10)


# Check 4


def test_divergence_equals_torch_distributions() -> None:
    m, v, pm, pv = (rand(3, 5, name=name) for name in "abcd")
    q, p = (Independent(Normal(a, (0.5 * b).exp()), 1) for a, b in ((m, v), (pm, pv)))
    assert torch.allclose(gkcl.gaussian_kl(m, v, pm, pv), kl_divergence(q, p), atol=1e-6)


# Check 5


def test_contrastive_loss_equals_its_definition() -> None:
    z, codes = rand(2, 9, 4), torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
    unit, total = F.normalize(z[0], dim=-1), []
    for a in range(8):  # the last code has no positive
        scores = (unit[a] @ unit.T / 0.1).exp()
        everyone = scores.sum() - scores[a]
        positives = [p for p in range(9) if p != a and codes[0, p] == codes[0, a]]
        total.append(-sum(math.log(scores[p] / everyone) for p in positives) / len(positives))
    loss = gkcl.supervised_contrast(z, codes, 0.1)
    assert loss[0].item() == pytest.approx(sum(total) / len(total), abs=1e-9)
    assert loss[1].item() == 0.0


def test_contrastive_term_is_a_switch_and_leaves_the_decoder_alone() -> None:
    stream = small_stream()
    task = stream.task(0)
    x, codes = task.x[:, :12].repeat(2, 1, 1), task.y[:, :12].repeat(2, 1)
    noise = torch.randn(SEEDS, 12, 4, generator=draw("noise")).repeat(2, 1, 1)
    generator = small_generator(stream, [0.0, 3.0])
    loss = generator.objective(x, codes, noise, 0)
    mean = generator.stack(x, method="encode").chunk(2, -1)[0]
    contrast = gkcl.supervised_contrast(mean, codes, 0.1)
    assert torch.allclose(loss[2:] - loss[:2], 3 * contrast[:2], atol=1e-3)
    contrast.sum().backward()
    gradients = {name: w.grad for name, w in generator.stack.weights.items()}
    assert all(g is None or not g.any() for name, g in gradients.items() if name.startswith("decoder"))
    assert any(g is not None and g.any() for name, g in gradients.items() if name.startswith("encoder"))


# Check 6


def test_learning_a_task_leaves_scalars_and_priors_of_earlier_tasks_bit_identical() -> None:
    stream = small_stream()
    generator = small_generator(stream)
    learners = setup.make_learners(stream, SETTINGS, [heads.Learner(), heads.Learner("vrf", "real")], draw)
    for t in range(3):
        owned = (generator.prior_means, generator.prior_log_vars, learners.scalars)
        before = [part[i].detach().clone() for part in owned for i in range(t)]
        coming = generator.prior_means[t].detach().clone()
        task = stream.task(t)
        adam = Recipe(3, 1e-2, optimizer="adam", schedule="constant")
        trace = generator.train_task(t, task, batches_of(task), adam, m=2, generator=draw("g", t))
        learners.train_task(t, task, batches_of(task), trace, SETTINGS.recipe(t), m=2, generator=draw("h", t))
        after = [part[i] for part in owned for i in range(t)]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert not torch.equal(coming, generator.prior_means[t])
        assert not torch.equal(learners.scalars[t], gkcl.new_scalars(len(learners.stack), "cpu"))


def test_only_the_generator_sees_replayed_samples() -> None:
    stream = small_stream()
    generator = small_generator(stream)
    learner = setup.make_learners(stream, SETTINGS, [heads.Learner()], draw)
    task = stream.task(1)
    adam = Recipe(3, 1e-2, optimizer="adam", schedule="constant")
    trace = generator.train_task(1, task, batches_of(task), adam, m=2, generator=draw("g"))
    assert [tuple(codes.shape) for codes in trace.codes] == [(SEEDS, 8)] * 3
    assert all(bool((codes < stream.n_classes).all()) for codes in trace.codes)  # earlier tasks only
    assert all(not samples.requires_grad for samples in [*trace.replayed, *trace.supports])
    weights, states = learner.stack.state(), []
    for replayed in (trace.replayed, [torch.full_like(x, torch.nan) for x in trace.replayed]):
        learner.stack.load(weights)
        learner.scalars = [gkcl.new_scalars(SEEDS, "cpu")]
        spoilt = Trace(trace.supports, replayed, trace.codes)
        learner.train_task(1, task, batches_of(task), spoilt, SETTINGS.recipe(1), m=2, generator=draw("h"))
        states.append(learner.stack.state())
    assert all(torch.equal(states[0][name], states[1][name]) for name in weights)


# Check 7


def test_supports_are_deterministic_and_have_the_right_labels() -> None:
    stream = small_stream("split")
    generator = small_generator(stream)
    noise = generator.noise(5, generator=draw("noise"))
    first, second = (generator.support(1, noise) for _ in range(2))
    assert first.shape == (SEEDS, 2, 5, 36)
    assert torch.equal(first, second)
    assert torch.allclose(generator.support(1, noise[:, :, :2]), first[:, :, :2])
    for y in range(2):  # class y of task 1 is code 2 + y
        codes = torch.full((SEEDS, 5), 2 + y)
        assert torch.allclose(generator.generate(codes, noise[:, y]), first[:, y])
    assert bool(((first >= 0) & (first <= 1)).all())


# Check 8


def test_with_a_perfect_generator_gkcl_is_kcl() -> None:
    stream = small_stream()
    learners = [heads.Learner("linear", "generated"), heads.Learner("linear", "real")]
    make = lambda: networks.make_classifier((1, 6, 6), [12], 18, is_conv=False).double()  # noqa: E731
    stack = NetworkStack.build(make, [draw("net", seed) for _ in range(2) for seed in range(SEEDS)])
    both = heads.KernelLearners(learners, stack, SEEDS, 6)
    tasks = [stream.task(t) for t in range(2)]
    double = [data.Task(*(v.double() if v.is_floating_point() else v for v in vars(task).values())) for task in tasks]
    for t, task in enumerate(double):
        trace = Trace([task.coreset[:, :, :3]] * 3)
        both.train_task(t, task, batches_of(task), trace, SETTINGS.recipe(t), m=3, generator=draw("h"))
    for name, weight in both.stack.weights.items():
        assert torch.allclose(weight[:SEEDS], weight[SEEDS:], atol=1e-10), name
    h = both.features(double[0].x_test)
    support = both.features(double[0].coreset[:, :, :3].flatten(1, 2))
    logits, _ = both.logits(0, h, support)
    assert torch.allclose(logits[:SEEDS], logits[SEEDS:], atol=1e-10)


# Streams, measures, baselines


def test_streams_rotate_permute_and_split() -> None:
    rotated, permuted, split = (small_stream(kind) for kind in data.STREAMS)
    assert torch.allclose(permuted.task(1).x.sort(-1).values, permuted.task(0).x.sort(-1).values)
    assert not torch.equal(permuted.task(1).x, permuted.task(0).x)
    assert torch.equal(rotated.task(0).x, permuted.task(0).x)
    classes = [set(split.orders[0][2 * t : 2 * t + 2].tolist()) for t in range(3)]
    assert set.union(*classes) == set(range(6))
    task = split.task(2)
    assert task.coreset.shape == (SEEDS, 2, 5, 36)
    assert torch.bincount(task.y[0]).tolist() == [20, 20]
    members = [{tuple(row.tolist()) for row in part[0]} for part in (task.x, task.x_test, task.coreset.flatten(1, 2))]
    assert not members[0] & members[1]
    assert not members[0] & members[2]  # a coreset is never trained on as a query


def test_rotation_by_a_right_angle_is_exact_and_bad_streams_are_refused() -> None:
    images = torch.rand(3, 1, 6, 6, generator=draw("images"))
    assert torch.allclose(data.rotate(images, 90.0), images.rot90(1, (2, 3)), atol=1e-5)
    seeds = [draw("seed")]
    with pytest.raises(ValueError, match="kind must be one of rotated, permuted, split, got 'turned'"):
        data.TaskStream("turned", small_pool(), 2, (20, 5, 5, 10), generators=seeds)
    table = data.Pool(torch.rand(60, 4), torch.arange(60) % 3, (4,), "gaussian")
    with pytest.raises(ValueError, match="only images can be rotated"):
        data.TaskStream("rotated", table, 2, (10, 2, 2, 2), generators=seeds)
    with pytest.raises(ValueError, match="4 tasks of 2 classes need more than the 6"):
        data.TaskStream("split", small_pool(), 4, (20, 5, 5, 10), n_classes=2, generators=seeds)


def test_measures_on_known_matrices() -> None:
    matrix = torch.tensor([[0.9, 0.0, 0.0], [0.7, 0.8, 0.0], [0.5, 0.9, 1.0]])
    assert gkcl.average_accuracy(matrix).item() == pytest.approx(0.8)
    assert gkcl.forgetting(matrix).item() == pytest.approx((0.4 - 0.1) / 2)
    assert gkcl.forgetting(matrix[:1, :1]).item() == 0.0
    curve = torch.tensor([0.5, 0.7, 0.8])
    assert gkcl.budget_for([1, 4, 16], curve, 0.6) == pytest.approx(2.0)
    assert gkcl.budget_for([1, 4, 16], curve, 0.4) == 1.0
    assert gkcl.budget_for([1, 4, 16], curve, 0.9) == math.inf
    z = torch.tensor([[-2.0], [0.0], [4.0], [6.0]])
    assert gkcl.scatter_ratio(z, torch.tensor([0, 0, 1, 1])) == pytest.approx(9.0)


def test_memory_counts_every_parameter() -> None:
    stream = small_stream()
    generator = small_generator(stream)
    network = (36 * 10 + 10) + (10 * 8 + 8) + (4 * 10 + 10) + (10 * 36 + 36)
    assert generator.n_bytes() == 4 * (network + 3 * 2 * 6 * 4)
    assert generator.n_bytes() - generator.n_bytes(2) == 4 * 2 * 6 * 4
    assert gkcl.coreset_bytes(5, 10, 20, 196) == 196_000


def test_fisher_information_equals_a_loop_and_ewc_stays_closer() -> None:
    stream = small_stream()
    task = stream.task(0)
    rivals = [baselines.Rival("fine-tuning"), baselines.Rival("ewc", weight=1e4)]
    group = baselines.Rivals(rivals, setup.make_classifiers(stream, SETTINGS, 2, draw), SEEDS, 3)
    x, y = group.tile(task.x[:, :4]), group.tile(task.y[:, :4])
    found = baselines.squared_gradients(group.stack, x, y, 0, 3)["head.weight"][1]
    network, expected = group.stack.single(1), 0.0
    for i in range(4):
        network.zero_grad()
        F.cross_entropy(network(x[1, i : i + 1]).unflatten(-1, (3, -1))[:, 0], y[1, i : i + 1]).backward()
        expected = expected + network.head.weight.grad.square() / 4
    assert torch.allclose(found, expected, atol=1e-7)
    start, batches = group.stack.state(), batches_of(task)
    rows = torch.arange(SEEDS)[:, None]

    def batch(t: int):
        own = stream.task(t)
        return lambda step: (own.x[rows, batches[step]], own.y[rows, batches[step]], torch.full((SEEDS, 8), t))

    group.consolidate(0, task, 20)
    group.train_task(1, batch(1), None, SETTINGS.recipe(0))
    weights = {name: group.stack.weights[name] - start[name] for name in start}
    moved = torch.stack([(w.square() * group.importance[name]).flatten(1).sum(1) for name, w in weights.items()]).sum(0)
    assert bool((moved[SEEDS:] < moved[:SEEDS]).all())


@pytest.mark.parametrize("kind", data.STREAMS)
def test_a_whole_stream_runs_and_fills_its_matrices(kind: str) -> None:
    stream = small_stream(kind)
    learners = [
        heads.Learner(),
        heads.Learner("laplacian", "real"),
        heads.Learner("vrf", "real"),
        heads.Learner(variant=1),
    ]
    rivals = [baselines.Rival(m) for family in baselines.FAMILIES.values() for m in family]
    options = {"groups": {2: learners}, "budgets": [1, 2, 4], "contrast_weights": [0.0, 1.0], "rivals": rivals}
    options["with_controls"] = True
    outcome = experiment.run(stream, SETTINGS, GeneratorSettings(), draw=draw, **options)
    for matrix in [*outcome.matrices.values(), *outcome.rivals.values(), *outcome.controls.values()]:
        assert matrix.shape == (SEEDS, 3, 3)
        assert not matrix.triu(1).any()
        assert bool((matrix[:, -1] > 0).any())
    key = (learners[1], 2)
    assert torch.equal(outcome.matrices[key][:, -1], outcome.sweep[key][:, 1])  # trained and evaluated at m = 2
    assert torch.equal(outcome.matrices[key], outcome.controls["real", *key])
    assert outcome.fidelity.shape == (2 * SEEDS, 3, 3)
    again = experiment.run(stream, SETTINGS, GeneratorSettings(), draw=draw, **options)
    assert torch.equal(again.matrices[key], outcome.matrices[key])


def test_learning_rate_factors_scale_the_rate() -> None:
    stream = small_stream()
    task = stream.task(0)
    states = []
    for factor, lr in ((0.5, 0.2), (1.0, 0.1)):
        learner = setup.make_learners(stream, SETTINGS, [heads.Learner("linear", "real", lr_factor=factor)], draw)
        recipe = Recipe(3, lr, momentum=0.8, schedule="constant")
        trace = Trace([task.coreset[:, :, :2]] * 3)
        learner.train_task(0, task, batches_of(task), trace, recipe, m=2, generator=draw("h"))
        states.append(learner.stack.state())
    for name in states[0]:
        assert torch.allclose(states[0][name], states[1][name], atol=1e-6)


def test_photograph_networks_have_the_right_shapes() -> None:
    x = torch.rand(2, 3 * 32 * 32, generator=draw("photos"))
    vae = networks.make_vae((3, 32, 32), [4], 6, is_conv=True)
    assert vae.encode(x).shape == (2, 12)
    assert vae.decode(torch.zeros(2, 6)).shape == x.shape
    classifier = networks.make_classifier((3, 32, 32), [4], 10, is_conv=True)
    assert classifier.features(x).shape == (2, 32)
    assert classifier(x).shape == (2, 10)
    with pytest.raises(ValueError, match="doubles one pixel five times"):
        networks.make_vae((1, 28, 28), [4], 6, is_conv=True)


def test_support_error_on_known_numbers() -> None:
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])  # spread between classes: 1 + 1
    support = torch.tensor([[[-1.0, 1.0], [-1.0, -1.0]], [[1.0, 2.0], [3.0, 0.0]]])  # means (-1, 0) and (2, 1)
    assert gkcl.support_error(support, means).item() == pytest.approx((0 + 2) / 2)
    assert gkcl.support_error(support[:, :1], means).item() == pytest.approx((1 + 4) / 2)
    samples = means[:, None] + rand(2, 4000, 2).float()
    errors = [float(gkcl.support_error(samples.unflatten(1, (-1, m)).transpose(0, 1), means).mean()) for m in (1, 4)]
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.1)


def test_controls_train_with_the_supports_they_name() -> None:
    stream = small_stream()
    task = stream.task(0)
    learners = [heads.Learner(support=support) for support in heads.SUPPORTS]
    group = setup.make_learners(stream, SETTINGS, learners, draw)
    running, finished = torch.full((SEEDS, 2, 3, 36), 7.0), torch.full((SEEDS, 2, 3, 36), 9.0)
    real = torch.rand(SEEDS, 6, 5, 36, generator=draw("reserve"))
    task = data.Task(**(vars(task) | {"coreset": real}))
    trace = Trace([running.repeat(1, 3, 1, 1)], finished=[finished.repeat(1, 3, 1, 1)])
    chance = draw("fresh")
    found = dict(zip(heads.SUPPORTS, group.training_supports(task, trace, 0, 2, chance).split(SEEDS), strict=True))
    assert bool((found["generated"] == 7).all())
    assert bool((found["finished"] == 9).all())
    assert torch.equal(found["real"], real[:, :, :2])
    is_known = (found["fresh"][:, :, :, None] == real[:, :, None]).all(-1)  # each is another one of its class
    assert bool((is_known.sum((2, 3)) == 2).all())
    assert bool((is_known.sum(2) <= 1).all())
    again = group.training_supports(task, trace, 0, 2, chance).split(SEEDS)[heads.SUPPORTS.index("fresh")]
    assert not torch.equal(again, found["fresh"])


def test_variational_features_have_no_divergence_when_both_laws_agree() -> None:
    stream = small_stream()
    group = setup.make_learners(stream, SETTINGS, [heads.Learner("vrf", "real")], draw)
    features = group.random_features
    assert features is not None
    h, other = (F.normalize(torch.rand(SEEDS, 6, 12, generator=draw(name)), dim=-1) for name in ("h", "other"))
    assert bool((features.kernels(h, other, generator=None)[2] > 0).all())
    features.prior.load(features.posterior.state())
    cross, gram, divergence = features.kernels(h, h, generator=None)
    assert torch.allclose(divergence, torch.zeros(SEEDS), atol=1e-6)
    assert torch.allclose(cross, gram)
    assert torch.allclose(gram, gram.transpose(1, 2), atol=1e-6)


def test_errors_name_the_choices() -> None:
    with pytest.raises(ValueError, match=r"kernel must be one of linear, .*vrf, got 'rbf'"):
        heads.Learner("rbf")
    with pytest.raises(ValueError, match="support must be one of generated, real, fresh, finished, got 'stored'"):
        heads.Learner(support="stored")
    with pytest.raises(ValueError, match="method must be one of fine-tuning, ewc"):
        baselines.Rival("lwf")
    with pytest.raises(ValueError, match="likelihood must be one of bernoulli, gaussian, got 'laplace'"):
        GeneratorSettings(likelihood="laplace")
    stack = setup.make_classifiers(small_stream(), SETTINGS, 2, draw)
    with pytest.raises(ValueError, match="one family"):
        baselines.Rivals([baselines.Rival("ewc"), baselines.Rival("joint")], stack, SEEDS, 3)
