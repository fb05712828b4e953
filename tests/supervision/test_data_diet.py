"""Properties of the scores, the subsets, the noise, the barrier and the kernel of the data diet."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from glocal.data.sampling import permute_labels
from glocal.nn.networks import MLP, ConvNet, build
from glocal.nn.stack import NetworkStack, predict
from glocal.nn.training import Recipe, train
from glocal.seeding import torch_generator
from glocal.supervision import data_diet as diet
from glocal.supervision import data_diet_baselines as baselines
from glocal.supervision import data_diet_dense as dense
from glocal.supervision import data_diet_geometry as geometry
from glocal.supervision import data_diet_training as training
from glocal.supervision.data_diet_data import Study, Trainer, make_study, with_noise
from glocal.supervision.data_diet_resnet import CifarStemResNet
from glocal.supervision.data_diet_runs import reliability, run_on_all


def generators(n: int, name: str = "weights") -> list[torch.Generator]:
    return [torch_generator(0, name, k) for k in range(n)]


def toy(n: int = 40, d: int = 6, k: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    x = 2 * torch.randn(n, d, generator=torch_generator(0, "x"))
    return x, torch.randint(k, (n,), generator=torch_generator(0, "y"))


def network() -> MLP:
    return build(lambda: MLP(6, [8, 7], 4), generator=torch_generator(0, "net")).eval()


def small_study(n_reps: int = 2) -> Study:
    return make_study("penbased", 300, 200, n_reps, seed=0)


def trainer(study: Study, n_steps: int = 30, arch: str = "mlp") -> Trainer:
    make = training.architecture(arch, study.x.shape[1:], study.n_classes, [16])
    return Trainer(study, make, Recipe(n_steps, 0.1, 32, weight_decay=5e-4, schedule="steps"), seed=0)


def test_grand_of_the_last_layer_is_el2n() -> None:
    """Check 1."""
    x, y = toy()
    net = network()
    score = diet.el2n(net(x).detach()[None], y)
    torch.testing.assert_close(diet.grand(net, x, y, only=["head.bias"]), score, atol=1e-6, rtol=0)
    length = (1 + net.features(x).square().sum(1)).sqrt().detach()
    last = diet.grand(net, x, y, only=["head.bias", "head.weight"])
    torch.testing.assert_close(last, score * length, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("arch", ["mlp", "cnn", "resnet"])
def test_grand_equals_a_loop_of_backward_passes(arch: str) -> None:
    """Check 2, batch norm in evaluation mode included."""
    makes = {
        "mlp": lambda: MLP(64, [8, 7], 4),
        "cnn": lambda: ConvNet((1, 8, 8), [3, 4], 4),
        "resnet": lambda: CifarStemResNet(18, 4, n_channels=1),
    }
    net = build(makes[arch], generator=torch_generator(1)).eval()
    n = 3 if arch == "resnet" else 12
    x = torch.randn(n, 1, 8, 8, generator=torch_generator(2))
    y = torch.arange(n) % 4
    loop = []
    for x_i, y_i in zip(x, y, strict=True):
        net.zero_grad()
        F.cross_entropy(net(x_i[None]), y_i[None]).backward()
        loop.append(torch.cat([p.grad.flatten() for p in net.parameters()]).norm())
    torch.testing.assert_close(diet.grand(net, x, y, chunk=5), torch.stack(loop), atol=1e-5, rtol=1e-5)


def test_dense_shortcut_equals_the_gradients() -> None:
    stack = NetworkStack.build(lambda: MLP(6, [8, 7], 4), generators(3))
    x, y = toy()
    expected = torch.stack([diet.grand(stack.single(k).eval(), x, y) for k in range(3)])
    torch.testing.assert_close(diet.grand_dense(stack, x[None], y[None]), expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(TypeError, match="use grand"):
        diet.grand_dense(NetworkStack.build(lambda: ConvNet((1, 4, 4), [2], 4), generators(1)), x[None], y[None])


def test_grand_refuses_training_mode_and_unknown_parameters() -> None:
    x, y = toy()
    net = network()
    with pytest.raises(ValueError, match=r"network\.eval"):
        diet.grand(net.train(), x, y)
    with pytest.raises(ValueError, match=r"head\.bias"):
        diet.grand(net.eval(), x, y, only=["tail.bias"])


def test_output_scores_take_their_known_values() -> None:
    """Check 3: right, wrong and uniform predictions of ten classes."""
    logits = torch.zeros(1, 3, 10)
    logits[0, 0, 2] = logits[0, 1, 5] = 200.0
    labels = torch.tensor([2, 2, 2])
    torch.testing.assert_close(diet.el2n(logits, labels), torch.tensor([0.0, math.sqrt(2), math.sqrt(0.9)]))
    assert diet.el2n(logits, labels)[2].item() == pytest.approx(0.94868, abs=1e-5)
    expected = {
        "l1": [0.0, 2.0, 1.8],
        "margin_max": [-1.0, 1.0, 0.0],
        "margin_sum": [-1.0, 1.0, 0.8],
        "loss": [0.0, 200.0, math.log(10)],
    }
    for kind, values in expected.items():
        torch.testing.assert_close(diet.output_score(logits, labels, kind)[0], torch.tensor(values))
    with pytest.raises(ValueError, match="el2n, l1"):
        diet.output_score(logits, labels, "l2")


def test_the_mean_over_runs_comes_before_the_ranking() -> None:
    logits = torch.randn(3, 20, 4, generator=torch_generator(0))
    labels = torch.arange(20) % 4
    single = torch.stack([diet.el2n(run[None], labels) for run in logits])
    torch.testing.assert_close(diet.el2n(logits, labels), single.mean(0))


def test_softmax_regression_on_orthonormal_inputs_ranks_alike() -> None:
    """Check 4."""
    net = build(lambda: MLP(12, [], 4), generator=torch_generator(3)).eval()
    x = torch.linalg.qr(torch.randn(12, 12, generator=torch_generator(4))).Q
    y = torch.arange(12) % 4
    grand, score = diet.grand(net, x, y), diet.el2n(net(x).detach()[None], y)
    assert spearmanr(grand.numpy(), score.numpy()).statistic == pytest.approx(1.0)
    torch.testing.assert_close(grand, score * math.sqrt(2))


def test_grand_is_bounded_by_el2n_and_logit_gradients() -> None:
    """Exercise 1: GraNd <= sqrt(k) max_c |psi_c| EL2N."""
    x, y = toy(8)
    net = network()
    size = torch.stack([geometry.logit_kernel(net, x_i[None]).diagonal().amax().sqrt() for x_i in x])
    bound = size * 2 * diet.el2n(net(x).detach()[None], y)
    assert bool((diet.grand(net, x, y) <= bound * (1 + 1e-5)).all())


def test_forgetting_counts_flips_of_each_network() -> None:
    """Check 5: wrong, right, wrong, right, right, wrong is 2; never right is infinite."""
    counter = diet.ForgettingCounter(2, 4)
    sequence = [False, True, False, True, True, False]
    for is_right in sequence:
        logits = torch.zeros(2, 2, 2)
        logits[0, 0] = torch.tensor([1.0, 0.0]) if is_right else torch.tensor([0.0, 1.0])
        logits[0, 1] = torch.tensor([0.0, 1.0])  # always wrong
        logits[1] = torch.tensor([1.0, 0.0])  # always right
        counter.visit(torch.tensor([[2, 0], [2, 0]]), logits, torch.zeros(2, 2, dtype=torch.long))
    scores = counter.scores()
    assert scores[0].tolist() == [math.inf, math.inf, 2.0, math.inf]
    assert scores[1, [0, 2]].tolist() == [0.0, 0.0]


def test_windows_and_hardest_agree() -> None:
    """Check 6."""
    scores = torch.rand(50, generator=torch_generator(5))
    for m in (1, 20, 50):
        hardest = diet.keep_hardest(scores, m)
        assert torch.equal(hardest, diet.keep_window(scores, m, 50 - m))
        assert set(hardest.tolist()) == set(scores.topk(m).indices.tolist())
        assert set(diet.keep_easiest(scores, m).tolist()) == set(scores.topk(m, largest=False).indices.tolist())
        subsets = [
            hardest,
            baselines.random_subset(50, m, generator=torch_generator(0)),
            baselines.balanced_subset(torch.arange(50) % 5, m, generator=torch_generator(0)),
            baselines.k_centre(torch.randn(50, 3, generator=torch_generator(6)), m, generator=torch_generator(0)),
        ]
        assert all(len(subset) == len(subset.unique()) == m for subset in subsets)
    with pytest.raises(ValueError, match="lower m or offset"):
        diet.keep_window(scores, 20, 31)
    with pytest.raises(ValueError, match="between 1 and"):
        baselines.random_subset(5, 6, generator=torch_generator(0))


def test_noise_keeps_the_histogram_and_touches_the_chosen_only() -> None:
    """Check 7, on the sampler and on a study whose test labels stay clean."""
    labels = torch.arange(1000) % 10
    noisy = permute_labels(labels, 0.1, generator=torch_generator(0))
    chosen = torch.randperm(1000, generator=torch_generator(0))[:100]
    assert torch.equal(noisy.bincount(), labels.bincount())
    untouched = torch.ones(1000, dtype=torch.bool)
    untouched[chosen] = False
    assert torch.equal(noisy[untouched], labels[untouched])
    assert 80 <= int((noisy != labels).sum()) <= 100
    study = with_noise(small_study(), 0.2, seed=0)
    assert torch.equal(study.labels[study.test], study.clean[study.test])
    for rep in range(2):
        changed = study.is_changed[rep]
        assert 0.1 < changed.double().mean().item() <= 0.2
        own, true = study.labels[study.train[rep]], study.clean[study.train[rep]]
        assert torch.equal(own.bincount(), true.bincount())
    assert not torch.equal(study.is_changed[0], study.is_changed[1])


def test_barrier_and_velocity_vanish_where_they_must() -> None:
    """Check 8, and known values away from zero."""
    x, y = toy()
    stack = NetworkStack.build(lambda: MLP(6, [8], 4), generators(2))
    one = stack.state()
    errors = geometry.errors_on_path(stack, one, one, x[None], y.expand(2, -1))
    assert geometry.error_barrier(errors).tolist() == [0.0, 0.0]
    # w and -w: half way all logits are equal and the first class wins, whose share is the accuracy
    other = {name: -tensor for name, tensor in one.items()}
    errors = geometry.errors_on_path(stack, one, other, x[None], y.expand(2, -1))
    right = (predict(stack, x[None]).argmax(-1) == y).float().mean(1)
    torch.testing.assert_close(errors[:, -1], 1 - right)
    torch.testing.assert_close(errors[:, 5], (y != 0).float().mean().expand(2))
    assert geometry.error_barrier(torch.tensor([0.1, 0.6, 0.3])).item() == pytest.approx(0.4)
    kernel = geometry.logit_kernel(network(), x[:5])
    assert geometry.kernel_velocity(kernel, 3.7 * kernel) == pytest.approx(0, abs=1e-7)
    assert geometry.kernel_velocity(torch.eye(2), torch.ones(2, 2)) == pytest.approx(1 - 1 / math.sqrt(2))


def test_logit_kernel_is_the_gram_matrix_in_any_chunks() -> None:
    x, _ = toy(5)
    net = network()
    rows = []
    for x_i in x:
        for c in range(4):
            gradients = torch.autograd.grad(net(x_i[None])[0, c], list(net.parameters()))
            rows.append(torch.cat([g.flatten() for g in gradients]))
    expected = torch.stack(rows) @ torch.stack(rows).T
    for chunk in (2, 64):
        torch.testing.assert_close(geometry.logit_kernel(net, x, chunk=chunk), expected, atol=1e-5, rtol=1e-5)


def test_dense_kernels_equal_the_gram_matrices() -> None:
    stack = NetworkStack.build(lambda: MLP(6, [8, 7], 4), generators(3))
    x = torch.randn(3, 5, 6, generator=torch_generator(0))
    expected = torch.stack([geometry.logit_kernel(stack.single(k), x[k]) for k in range(3)])
    torch.testing.assert_close(geometry.dense_logit_kernels(stack, x), expected, atol=1e-5, rtol=1e-5)
    before, after = stack.state(), {name: 1.5 * tensor for name, tensor in stack.state().items()}
    assert geometry.velocities(stack, before, before, x) == pytest.approx([0, 0, 0], abs=1e-7)
    moved = torch.stack([geometry.logit_kernel(stack.load(after).single(k), x[k]) for k in range(3)])
    speeds = [geometry.kernel_velocity(a, b) for a, b in zip(expected, moved, strict=True)]
    assert geometry.velocities(stack, before, after, x) == pytest.approx(speeds, rel=1e-3)
    assert min(speeds) > 1e-4
    images = NetworkStack.build(lambda: ConvNet((1, 4, 4), [2], 4), generators(2))
    pictures = torch.randn(2, 3, 1, 4, 4, generator=torch_generator(0))
    assert geometry.velocities(images, images.state(), images.state(), pictures) == pytest.approx([0, 0], abs=1e-7)
    with pytest.raises(TypeError, match="use logit_kernel"):
        geometry.dense_logit_kernels(images, pictures)


def test_deciles_are_tenths_of_the_ranking() -> None:
    scores = torch.arange(100.0).flip(0)
    easy, hard = geometry.score_deciles(scores, [0, 9], 4, generator=torch_generator(0))
    assert len(easy) == len(hard) == 4
    assert bool((scores[easy] < 10).all())
    assert bool((scores[hard] >= 90).all())
    with pytest.raises(ValueError, match=r"0\.\.9"):
        geometry.score_deciles(scores, [10], 4, generator=torch_generator(0))


def test_children_share_the_path_until_they_part() -> None:
    study = small_study(1)
    fitter = trainer(study, 20)
    first, second = (
        training.batches_for(list(study.train), fitter.recipe, generators=generators(1, name)) for name in "ab"
    )
    family = torch.cat([first, geometry.spawn_batches(first, second, 10)], dim=1)
    stack, gaps = fitter.stack("parent", [(0, 0), (0, 0)]), []

    def gap(step: int) -> None:
        gaps.append(max(float((w[0] - w[1]).abs().max().detach()) for w in stack.weights.values()))

    fitter.fit(stack, family, after_step=gap)
    assert max(gaps[:10]) < 1e-6 < 1e-4 < min(gaps[10:])
    with pytest.raises(ValueError, match="between 0 and the 20"):
        geometry.spawn_batches(first, second, 21)


def test_every_subset_gets_the_same_number_of_steps() -> None:
    """Check 8: the number of updates and examples seen does not depend on the share kept."""
    recipe = Recipe(25, 0.1, 16, schedule="steps")
    subsets = [torch.arange(n) for n in (400, 200, 3)]
    batches = training.batches_for(subsets, recipe, generators=generators(3))
    assert batches.shape == (25, 3, 16)
    assert [len(batches[:, k].unique()) for k in range(3)] == [400, 200, 3]
    fitter = trainer(small_study(1))
    stack = fitter.stack("x", [(0, 0)])
    with pytest.raises(ValueError, match="recipe's 30 steps"):
        fitter.fit(stack, batches[:, :1])


def test_dense_training_equals_the_graph_of_autograd() -> None:
    """Weights, losses and logits of `fit_dense` against `train` on the same batches; two subsets."""
    x, y = toy(200)
    recipe = Recipe(12, 0.1, 16, weight_decay=0.01, schedule="steps")
    batches = training.batches_for([torch.arange(200), torch.arange(50)], recipe, generators=generators(2, "order"))
    stacks = [training.build_stack(lambda: MLP(6, [8, 7], 4), generators(2)) for _ in range(2)]
    seen: list[list[torch.Tensor]] = [[], []]

    def loss_at(step: int) -> torch.Tensor:
        logits = stacks[1](x[batches[step]])
        seen[1].append(logits.detach())
        return F.cross_entropy(logits.mT, y[batches[step]], reduction="none").mean(1)

    def watch(index: torch.Tensor, logits: torch.Tensor) -> None:
        assert torch.equal(index, batches[len(seen[0])])
        seen[0].append(logits)

    history = training.fit(stacks[0], x, y, batches, recipe, watch=watch)
    torch.testing.assert_close(history, train(stacks[1].parameters(), loss_at, recipe))
    torch.testing.assert_close(torch.stack(seen[0]), torch.stack(seen[1]), atol=1e-5, rtol=1e-4)
    for name, weight in stacks[0].weights.items():
        torch.testing.assert_close(weight, stacks[1].weights[name], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        dense.dense_logits(stacks[0], x[None]), predict(stacks[1], x[None]), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(
        training.logits_on(stacks[0], x, batches[0]), dense.dense_logits(stacks[0], x[batches[0]])
    )
    wild = replace(recipe, lr=1e30)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        training.fit(stacks[0], x, y, batches, wild)


def test_stacks_hold_the_networks_that_are_built_singly() -> None:
    alone = [build(lambda: MLP(6, [8], 4), generator=g) for g in generators(3)]
    stack = training.build_stack(lambda: MLP(6, [8], 4), generators(3))
    for k, net in enumerate(alone):
        assert all(torch.equal(stack.weights[name][k], p) for name, p in net.named_parameters())
    fitter = trainer(small_study())
    twice = fitter.stack("x", [(0, 0), (1, 0), (0, 0)])
    weight = twice.weights["head.weight"]
    assert torch.equal(weight[0], weight[2])
    assert not torch.equal(weight[0], weight[1])
    torch.testing.assert_close(weight[1:2], fitter.stack("x", [(1, 0)]).weights["head.weight"])
    deep = training.build_stack(lambda: CifarStemResNet(18, 10), generators(1)).select([0, 0])
    assert len(deep) == 2
    assert isinstance(deep, training.ModuleStack)
    assert deep.modules[0] is not deep.modules[1]


def test_truncated_recipe_is_a_prefix() -> None:
    recipe = Recipe(100, 0.1, schedule="steps")
    part = training.truncated(recipe, 70)
    assert [part.lr_at(step) for step in range(70)] == pytest.approx([recipe.lr_at(step) for step in range(70)])
    with pytest.raises(ValueError, match="stepwise"):
        training.truncated(Recipe(100, 0.1, schedule="cosine"), 10)


def test_runs_score_the_stated_moments() -> None:
    study = small_study()
    runs = run_on_all(trainer(study, 60), 2, [0, 10, 60], is_counting=True)
    fresh = trainer(study, 60).stack("score", [(1, 0)])
    torch.testing.assert_close(runs.logits(0)[1, 0], predict(fresh, study.x[study.train[1]][None])[0])
    per_run = runs.run_scores(10)
    torch.testing.assert_close(runs.scores(10), per_run.mean(1))
    assert not torch.allclose(per_run[:, 0], per_run[:, 1])
    assert float(runs.accuracy(60).mean()) > 70 > 30 > float(runs.accuracy(0).mean())
    assert runs.forgetting is not None
    assert runs.forgetting.shape == (2, 2, study.n_train)
    assert float((runs.forgetting == 0).double().mean()) > 0.2
    grand = runs.run_scores(60, "grand")
    index, last = study.train[1], runs.network(1, 1, 60)
    expected = diet.grand(last, study.x[index], study.labels[index])
    torch.testing.assert_close(grand[1, 1], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(last(study.x[index]).detach(), runs.logits(60)[1, 1])
    head = runs.network(1, 0, 60).head
    torch.testing.assert_close(head(runs.features(1, 60)).detach(), runs.logits(60)[1, 0])
    with pytest.raises(IndexError, match="2 runs"):
        runs.network(2, 0, 60)


def test_early_scores_find_wrong_labels() -> None:
    study = with_noise(make_study("optdigits", 1000, 500, 1, seed=0), 0.1, seed=0)
    runs = run_on_all(trainer(study, 60), 2, [0, 60])
    scores, is_wrong = runs.scores(60)[0], study.is_changed[0]
    value = baselines.detection_auroc(scores, is_wrong)
    assert value > 0.95
    assert value == pytest.approx(roc_auc_score(is_wrong.numpy(), scores.numpy()))
    assert 0.35 < baselines.detection_auroc(runs.scores(0)[0], is_wrong) < 0.65
    with pytest.raises(ValueError, match="both groups"):
        baselines.detection_auroc(scores, torch.zeros_like(is_wrong))


def test_rank_correlation_equals_scipy_and_averaging_helps() -> None:
    a, b = torch.randn(2, 80, generator=torch_generator(0))
    a = a.round()  # ties
    assert baselines.rank_correlation(a, b) == pytest.approx(spearmanr(a.numpy(), b.numpy()).statistic)
    noise = torch.randn(8, 400, generator=torch_generator(1))
    truth = torch.randn(400, generator=torch_generator(2))
    values = [sum(found := reliability(truth + noise, truth, k)) / len(found) for k in (1, 2, 4)]
    assert values[0] < values[1] < values[2]


def test_k_centre_is_the_greedy_farthest_point_order() -> None:
    features = torch.randn(30, 2, generator=torch_generator(7))
    picks = baselines.k_centre(features, 12, generator=torch_generator(0)).tolist()
    distance = torch.cdist(features, features)
    for size in range(1, 12):
        gap = distance[:, picks[:size]].amin(1)
        assert picks[size] == int(gap.argmax())


def test_balanced_subset_is_balanced() -> None:
    labels = torch.tensor([0] * 50 + [1] * 20 + [2] * 30)
    kept = baselines.balanced_subset(labels, 31, generator=torch_generator(0))
    assert sorted(labels[kept].bincount().tolist()) == [10, 10, 11]
    shares = baselines.class_shares(labels, 3)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64))


def test_networks_with_batch_norm_train_singly_like_a_plain_loop() -> None:
    study = make_study("cifar10", 40, 20, 2, seed=0, fake=True)
    study = replace(study, x=study.x[:, :, ::4, ::4].contiguous())  # 8x8 pixels: quick
    recipe = Recipe(2, 0.05, 4, schedule="steps")
    subsets = [study.train[0][:9], study.train[1][5:]]
    batches = training.batches_for(subsets, recipe, generators=generators(2, "order"))
    stack = training.build_stack(lambda: CifarStemResNet(18, 10), generators(2))
    assert isinstance(stack, training.ModuleStack)
    alone = build(lambda: CifarStemResNet(18, 10), generator=generators(2)[1]).train()
    with pytest.raises(ValueError, match="precision must be float32 or bfloat16, got 'half'"):
        training.fit(stack, study.x, study.labels, batches, recipe, precision="half")
    training.fit(stack, study.x, study.labels, batches, recipe, precision="bfloat16")  # on a CPU the same as float32
    optimizer = recipe.make_optimizer(alone.parameters())
    for step in range(2):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(step)
        index = batches[step, 1]
        optimizer.zero_grad()
        F.cross_entropy(alone(study.x[index]), study.labels[index]).backward()
        optimizer.step()
    x = study.x[:3]
    torch.testing.assert_close(predict(stack, x[None])[1], alone.eval()(x).detach(), atol=1e-3, rtol=1e-3)
    assert not stack.single(0).training
    state = stack.state()
    assert "blocks.0.1.running_mean" in state
    torch.testing.assert_close(stack(x[None], weights=state), stack(x[None]))
    errors = geometry.errors_on_path(
        stack, state, state, study.x[study.test[:, :2]], study.labels[study.test[:, :2]], 2
    )
    assert geometry.error_barrier(errors).tolist() == [0.0, 0.0]
    stack.load({name: torch.zeros_like(tensor) for name, tensor in state.items()})
    assert not bool(stack(x[None]).any())


def test_crop_and_flip_moves_pixels_only() -> None:
    images = torch.arange(2 * 64.0).reshape(2, 1, 8, 8).repeat(30, 1, 1, 1)
    moved = training.crop_and_flip(images, generator=torch_generator(0))
    assert moved.shape == images.shape
    assert len({tuple(picture.flatten().tolist()) for picture in moved}) > 40
    still = training.crop_and_flip(images, generator=torch_generator(0), margin=0)
    is_same = (still == images).flatten(1).all(1)
    is_mirrored = (still == images.flip(3)).flatten(1).all(1)
    assert bool((is_same | is_mirrored).all())
    assert 10 < int(is_mirrored.sum()) < 50
    centre = F.pad(images[:1], (4, 4, 4, 4), mode="reflect")
    windows = [centre[0, 0, i : i + 8, j : j + 8] for i in range(9) for j in range(9)]
    assert any(torch.equal(moved[0, 0], view) or torch.equal(moved[0, 0], view.flip(1)) for view in windows)


def test_architectures_and_resnets_have_the_known_sizes() -> None:
    sizes = {18: 11_173_962, 50: 23_520_842}
    for depth, size in sizes.items():
        with torch.device("meta"):
            net = CifarStemResNet(depth, 10)
        assert sum(p.numel() for p in net.parameters()) == size
    with pytest.raises(ValueError, match="18 or 50"):
        CifarStemResNet(34)
    with pytest.raises(ValueError, match="mlp, wide"):
        training.architecture("vgg", (3, 8, 8), 10)
    with pytest.raises(ValueError, match="use mlp or wide"):
        training.architecture("cnn", (16,), 10)


def test_studies_are_split_anew_and_standardised() -> None:
    study = small_study()
    assert not set(study.train[0].tolist()) & set(study.test[0].tolist())
    n = len(study.x) // 2
    assert set((study.train[1] - n).tolist()) != set(study.train[0].tolist())
    for index in study.train:
        torch.testing.assert_close(study.x[index].mean(0), torch.zeros(16), atol=1e-4, rtol=0)
        torch.testing.assert_close(study.x[index].std(0), torch.ones(16), atol=1e-4, rtol=0)


def test_retraining_is_paired_across_rules() -> None:
    study = small_study()
    everything = [torch.arange(study.n_train)] * 2
    found = trainer(study).accuracies({"a": everything, "b": everything, "small": [e[:20] for e in everything]})
    assert found["a"].shape == (2,)
    assert found["a"] == pytest.approx(found["b"])
    assert float((found["a"] - found["small"]).min()) > 5
