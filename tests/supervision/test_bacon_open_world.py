"""Properties of the baselines ORCA and OpenCon: each term against a known value, and what may not get a gradient."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from glocal.nn.networks import build
from glocal.nn.stack import NetworkStack
from glocal.nn.training import Recipe, train
from glocal.seeding import torch_generator
from glocal.supervision import (
    bacon,
    bacon_data,
    bacon_experiment,
    bacon_losses,
    bacon_methods,
    bacon_networks,
    bacon_training,
)
from glocal.supervision import bacon_open_world as open_world

SETTINGS = bacon_methods.Settings(widths=(16, 8), n_outputs=8, epoch_steps=2, est_freq=1, est_init=2, eval_init=2)
OPEN_CON = bacon_methods.OpenCon(n_embedding=6, ramp_epochs=2.0)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch_generator(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(noise(*shape, seed=seed), dim=-1)


def make_batch(given: torch.Tensor, k: int, epoch: int = 0, margin: float = 0.0) -> bacon_losses.Batch:
    """One network; the class sizes are not used."""
    b = given.shape[1]
    chances = torch.rand(1, b, k + b, generator=torch_generator(9))
    ones = torch.ones(1, k, dtype=torch.float64)
    margins = torch.tensor([margin], dtype=torch.float64)
    return bacon_losses.Batch(given, ones, margins, chances[..., :k], chances[..., k:], epoch)


# --- ORCA: the margin


def test_uncertainty_is_zero_when_certain_and_largest_when_uniform() -> None:
    certain, flat = 10 * torch.eye(4), torch.zeros(5, 4)
    assert open_world.uncertainty(certain, 0.1).item() == pytest.approx(0)
    assert open_world.uncertainty(flat, 0.1).item() == pytest.approx(0.75)
    one = torch.tensor([[0.0, 0.1 * math.log(3)]])  # probabilities 1/4 and 3/4
    assert open_world.uncertainty(one, 0.1).item() == pytest.approx(0.25)


def test_margin_by_hand() -> None:
    outputs = torch.tensor([[[0.2, 0.2], [0.5, 0.1]]])  # one view, two images
    labels = torch.tensor([0, -1])
    found = open_world.margin_cross_entropy(outputs, labels, torch.tensor(0.3), 0.1)
    assert found.item() == pytest.approx(math.log(1 + math.exp(-3)), abs=1e-6)  # the own logit is 3 larger
    plain = open_world.margin_cross_entropy(outputs, labels, torch.tensor(0.0), 0.1)
    assert plain.item() == pytest.approx(math.log(2), abs=1e-6)


def test_margin_weakens_the_pull_of_labels() -> None:
    outputs, labels = torch.zeros(1, 1, 3, requires_grad=True), torch.tensor([1])
    sizes = []
    for margin in (0.0, 0.2, 0.5):
        loss = open_world.margin_cross_entropy(outputs, labels, torch.tensor(margin), 0.1)
        sizes.append(torch.autograd.grad(loss, outputs)[0].norm().item())
    assert sizes[0] > sizes[1] > sizes[2] > 0


def test_the_margin_is_capped() -> None:
    outputs, features = noise(1, 2, 5, 4).tanh(), noise(1, 2, 5, 3, seed=1)
    given, settings = torch.tensor([[0, 1, 0, -1, -1]]), SETTINGS
    losses = [
        bacon_losses.orca_loss(outputs, features, make_batch(given, 4, margin=m), [method], settings).item()
        for m, method in (
            (0.9, bacon_methods.Orca()), (0.5, bacon_methods.Orca()), (0.9, bacon_methods.Orca(margin_cap=1.0))
        )
    ]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1])
    assert losses[0] > losses[2] + 1e-6


# --- ORCA: the pairs


def test_pairs_are_a_mate_of_the_class_or_the_nearest_neighbour() -> None:
    features = torch.tensor([[1.0, 0], [5, 0.1], [0, 1], [-0.1, 4], [-0.1, 3], [9, 0]])
    labels = torch.tensor([0, 1, 0, -1, -1, -1])
    found = open_world.pair_positives(features, labels, torch.rand(6, 6, generator=torch_generator(0)))
    assert found.tolist() == [2, 1, 0, 4, 3, 0]  # 1 is alone in its class; 5 has its neighbour at 0, whatever its norm


def test_mates_are_uniform_over_the_others_of_the_class() -> None:
    labels = torch.tensor([0, 0, 0, 1, -1])
    features, generator, hits = noise(5, 3), torch_generator(3), torch.zeros(5)
    for _ in range(600):
        hits[open_world.pair_positives(features, labels, torch.rand(5, 5, generator=generator))[0]] += 1
    assert hits[[0, 3, 4]].sum() == 0
    assert hits[1].item() == pytest.approx(300, abs=60)


def test_pair_objective_is_zero_for_agreeing_certain_pairs_and_hand_computed_otherwise() -> None:
    eye, positives = torch.eye(3), torch.tensor([1, 0, 2])
    assert open_world.pairwise_loss(eye, eye[positives], positives).item() == 0
    assert open_world.pairwise_loss(eye, eye, positives).item() > 5  # certain and different
    half = torch.full((2, 2), 0.5)
    quarter = torch.tensor([[0.25, 0.75], [0.75, 0.25]])
    found = open_world.pairwise_loss(quarter, torch.stack([quarter[0], half[0]]), torch.tensor([0, 1]))
    assert found.item() == pytest.approx(-(math.log(0.0625 + 0.5625) + math.log(0.5)) / 2, abs=1e-6)


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_equal_pairs_cost_more_the_less_certain_they_are(p: float) -> None:
    probs = torch.tensor([[p, 1 - p]])
    found = open_world.pairwise_loss(probs, probs, torch.tensor([0])).item()
    assert found == pytest.approx(-math.log(p**2 + (1 - p) ** 2), abs=1e-6)
    assert found > 0


def test_orca_is_the_sum_of_its_three_terms() -> None:
    outputs, features = noise(1, 2, 6, 4).tanh(), noise(1, 2, 6, 3, seed=1)
    given = torch.tensor([[0, 1, 0, -1, -1, -1]])
    batch = make_batch(given, 4, margin=0.2)
    found = bacon_losses.orca_loss(outputs, features, batch, [bacon_methods.Orca()], SETTINGS)
    one, two = outputs[0] * 10
    logits = one[:3].clone()
    logits[torch.arange(3), given[0, :3]] += 2
    expected = F.cross_entropy(logits, given[0, :3])
    p, partner = one.softmax(-1), two.softmax(-1)
    for i, j in enumerate(open_world.pair_positives(features[0, 0], given[0], batch.mates[0]).tolist()):
        expected = expected - (p[i] @ partner[j]).log() / 6
    mean = p.mean(0)
    expected = expected + (mean * (4 * mean).log()).sum()
    assert found.item() == pytest.approx(expected.item(), abs=1e-9)


def test_uniform_term_of_orca_is_zero_at_uniform_predictions() -> None:
    given = torch.full((1, 4), -1)
    features = noise(1, 2, 4, 3)
    free = bacon_methods.Orca(pair_weight=0.0)
    uniform = 2 * torch.eye(4, dtype=torch.float64).expand(1, 2, 4, 4)  # certain, each class once
    assert bacon_losses.orca_loss(uniform, features, make_batch(given, 4), [free], SETTINGS).item() == pytest.approx(
        0, abs=1e-6
    )
    collapsed = uniform[..., :1, :].expand(1, 2, 4, 4)
    found = bacon_losses.orca_loss(collapsed, features, make_batch(given, 4), [free], SETTINGS).item()
    assert found == pytest.approx(math.log(4), abs=1e-6)


def test_no_gradient_of_orca_reaches_the_features_by_the_neighbours() -> None:
    outputs, features = noise(1, 2, 5, 4).requires_grad_(), noise(1, 2, 5, 3, seed=1).requires_grad_()
    given = torch.tensor([[0, 1, -1, -1, -1]])
    bacon_losses.orca_loss(outputs, features, make_batch(given, 4), [bacon_methods.Orca()], SETTINGS).sum().backward()
    assert features.grad is None
    assert bool((outputs.grad[0, 0].abs().sum(-1) > 0).all())


# --- OpenCon: who is novel


@pytest.mark.parametrize("share", [0.7, 0.5, 0.95])
def test_threshold_is_the_percentile_of_the_labelled_scores(share: float) -> None:
    scores, labels = noise(3, 40), torch.where(noise(3, 40, seed=1) > 0.3, 0, -1)
    found = open_world.novel_rows(scores, labels, share)
    for row, given, mask in zip(scores.numpy(), labels.numpy(), found.numpy(), strict=True):
        threshold = np.percentile(row[given >= 0], 100 * (1 - share))
        np.testing.assert_array_equal(mask, (given < 0) & (row < threshold))


def test_labelled_images_are_never_novel_and_no_labels_mean_no_threshold() -> None:
    scores = torch.tensor([-5.0, 1, 2, 3, -1, 9])
    labels = torch.tensor([0, 0, 1, 1, -1, -1])
    assert open_world.novel_rows(scores, labels, 0.7).tolist() == [False] * 4 + [True, False]
    assert not bool(open_world.novel_rows(scores, torch.full((6,), -1), 0.7).any())
    alone = torch.tensor([0, -1, -1, -1, -1, -1])
    assert open_world.novel_rows(scores, alone, 0.7).tolist() == [False] * 6
    assert open_world.novel_rows(-scores, alone, 0.7).tolist() == [False] + [True] * 5


def test_standardised_similarities_have_mean_zero_variance_one_and_the_same_nearest_prototype() -> None:
    cosines = noise(6, 5)
    found = open_world.standardize(cosines)
    torch.testing.assert_close(found.mean(-1), torch.zeros(6).double())
    torch.testing.assert_close(found.var(-1), torch.ones(6).double())
    assert torch.equal(found.argmax(-1), cosines.argmax(-1))


# --- OpenCon: the composition and the prototypes


def test_composition_term_is_zero_exactly_at_the_expected_composition() -> None:
    target = torch.tensor([0.5, 0.5, 1, 1, 1]) / 4
    assert open_world.composition_divergence(target, 2, 0.5).item() == pytest.approx(0, abs=1e-6)
    flat = open_world.composition_divergence(torch.full((5,), 0.2), 2, 0.5)
    assert flat.item() == pytest.approx(0.4 * math.log(0.2 / 0.125) + 0.6 * math.log(0.2 / 0.25), abs=1e-6)
    assert open_world.composition_divergence(torch.full((5,), 0.2), 2, 0.0).item() == pytest.approx(0, abs=1e-6)


def brute_prototypes(mu: torch.Tensor, z: torch.Tensor, classes: torch.Tensor, momentum: float) -> torch.Tensor:
    """One image after the other."""
    mu = mu.clone()
    for row, k in zip(z, classes.tolist(), strict=True):
        if k >= 0:
            mu[k] = F.normalize(momentum * mu[k] + (1 - momentum) * row, dim=-1)
    return mu


def test_prototypes_move_image_by_image_and_stay_on_the_sphere() -> None:
    mu, z = unit(2, 4, 6), unit(2, 12, 6, seed=1)
    classes = torch.randint(-1, 3, (2, 12), generator=torch_generator(2))  # class 3 has no image
    found = open_world.moved_prototypes(mu, z, classes, 0.9)
    for s in range(2):
        torch.testing.assert_close(found[s], brute_prototypes(mu[s], z[s], classes[s], 0.9))
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(2, 4).double())
    torch.testing.assert_close(found[:, 3], mu[:, 3])
    assert torch.equal(open_world.moved_prototypes(mu, z, torch.full((2, 12), -1), 0.9), mu)
    torch.testing.assert_close(open_world.moved_prototypes(mu, z, classes, 1.0), mu)


# --- OpenCon: the loss


def brute_open_con(z, mu, given, n_known, method, epoch) -> torch.Tensor:
    """The loss pair by pair, as loops over anchors; rows [view 1; view 2]."""
    b, k = len(given), len(mu)
    cosines = z[:b] @ mu.T
    scores = (cosines - cosines.mean(-1, keepdim=True)) / cosines.std(-1, keepdim=True)
    best = scores[:, :n_known].amax(-1)
    threshold = np.percentile(best[given >= 0].numpy(), 100 * (1 - method.known_share))
    novel = (given < 0) & (best < threshold)
    classes = torch.where(given >= 0, given, cosines.argmax(-1))

    def supcon(rows: list[int], same, tau: float) -> torch.Tensor:
        losses = []
        for a in rows:
            others = [c for c in rows if c != a]
            log_probs = (z[others] @ z[a] / tau).log_softmax(0)
            losses.append(-log_probs[torch.tensor([bool(same(a % b, c % b)) for c in others])].mean())
        return torch.stack(losses).mean()

    def rows(mask: torch.Tensor) -> list[int]:
        return [a for a in range(2 * b) if mask[a % b]]

    loss = method.weight_labelled * supcon(rows(given >= 0), lambda i, j: given[i] == given[j], method.tau_labelled)
    loss += method.weight_unlabelled * supcon(rows(given < 0), lambda i, j: i == j, method.tau_unlabelled)
    ramp = min(1.0, epoch / method.ramp_epochs)
    loss += ramp * method.weight_novel * supcon(rows(novel), lambda i, j: classes[i] == classes[j], method.tau_novel)
    mean = (10 * cosines).softmax(-1)[given < 0].mean(0)
    q = torch.tensor([0.5] * n_known + [1.0] * (k - n_known), dtype=torch.float64)
    return loss + method.weight_composition * (mean * (mean * q.sum() / q).log()).sum()


@pytest.mark.parametrize("epoch", [0, 1, 9])
def test_open_con_is_the_sum_of_its_terms(epoch: int) -> None:
    z, mu = unit(1, 20, 6), unit(1, 5, 6, seed=1)
    given = torch.tensor([[0, 1, -1, 0, -1, -1, 1, -1, -1, -1]])
    found, classes = bacon_losses.open_con_loss(z, mu, make_batch(given, 5, epoch), [OPEN_CON], 2)
    expected = brute_open_con(z[0], mu[0], given[0], 2, OPEN_CON, epoch)
    assert found.item() == pytest.approx(expected.item(), abs=1e-9)
    nearest = (z[0, :10] @ mu[0].T).argmax(-1)
    for label, near, moved in zip(given[0].tolist(), nearest.tolist(), classes[0].tolist(), strict=True):
        assert moved == (label if label >= 0 else near if near >= 2 else -1)
    assert -1 in classes[0, given[0] < 0].tolist()
    assert classes.max() >= 2


def test_prototypes_get_no_gradient_and_embeddings_do() -> None:
    z, mu = unit(1, 12, 6).requires_grad_(), unit(1, 5, 6, seed=1).requires_grad_()
    given = torch.tensor([[0, 1, -1, -1, -1, -1]])
    bacon_losses.open_con_loss(z, mu, make_batch(given, 5, 3), [OPEN_CON], 2)[0].sum().backward()
    assert mu.grad is None
    assert bool((z.grad[0].abs().sum(-1) > 0).all())


@pytest.mark.parametrize("given", [[-1] * 4, [0, 1, 0, 1]])
def test_batches_of_one_kind_give_finite_losses(given: list[int]) -> None:
    labels = torch.tensor([given])
    z, outputs = unit(1, 8, 6).requires_grad_(), noise(1, 2, 4, 5, seed=1).requires_grad_()
    found, _ = bacon_losses.open_con_loss(z, unit(1, 5, 6, seed=2), make_batch(labels, 5, 3), [OPEN_CON], 2)
    orca = bacon_losses.orca_loss(outputs, noise(1, 2, 4, 3), make_batch(labels, 5), [bacon_methods.Orca()], SETTINGS)
    (found + orca).sum().backward()
    assert bool(z.grad.isfinite().all() and outputs.grad.isfinite().all())


def test_networks_side_by_side_must_have_equal_settings() -> None:
    methods = [OPEN_CON, replace(OPEN_CON, momentum=0.5)]
    z, mu, given = unit(2, 8, 6), unit(2, 5, 6), torch.tensor([[0, 1, -1, -1]] * 2)
    chances = torch.rand(2, 4, 9, generator=torch_generator(9))
    batch = bacon_losses.Batch(given, torch.ones(2, 5), torch.zeros(2), chances[..., :5], chances[..., 5:], 0)
    with pytest.raises(ValueError, match="equal settings"):
        bacon_losses.open_con_loss(z, mu, batch, methods, 2)


# --- networks and training


def make_network(method: bacon_methods.AnyMethod) -> torch.nn.Module:
    block = build(lambda: bacon_networks.ResidualBlock(8), generator=torch_generator(0, "block")).requires_grad_(False)
    backbone = bacon_networks.Backbone(lambda x: x.flatten(1), block, 8)
    return bacon_networks.make_network(method, backbone, 4, SETTINGS, generator=torch_generator(0))


def test_heads_of_the_cosine_methods_start_alike() -> None:
    orca, sim = make_network(bacon_methods.Orca()), make_network(bacon_methods.Method())
    x = noise(5, 8).float()
    torch.testing.assert_close(orca.class_outputs(x), sim.class_outputs(x))
    torch.testing.assert_close(orca(x), torch.cat([orca.class_outputs(x), orca.features(x)], -1))


def test_nearest_prototype_is_the_prediction_of_open_con() -> None:
    network, x = make_network(OPEN_CON), noise(5, 8).float()
    distances = torch.cdist(network(x), network.head.prototypes.weight)
    assert torch.equal(network.class_outputs(x).argmax(-1), distances.argmin(-1))
    torch.testing.assert_close(network.head.prototypes.weight.norm(dim=-1), torch.ones(4))
    assert [n for n, p in network.named_parameters() if not p.requires_grad] == ["head.prototypes.weight"]


def test_an_update_moves_prototypes_by_the_average_only() -> None:
    stack = NetworkStack([make_network(OPEN_CON)])
    before, x = stack.state(), noise(1, 12, 8).float()
    given = torch.tensor([[0, 1, -1, -1, 0, -1]])
    single = bacon_losses.Batch(given, torch.ones(1, 4), torch.zeros(1), torch.rand(1, 6, 4), torch.rand(1, 6, 6), 0)
    losses = bacon_losses.stack_losses(stack, x, single, [OPEN_CON], SETTINGS, 2)
    z = stack(x).detach()
    classes = bacon_losses.open_con_loss(z, before["head.prototypes.weight"], single, [OPEN_CON], 2)[1]
    expected = brute_prototypes(before["head.prototypes.weight"][0], z[0, :6], classes[0], 0.9)
    losses.sum().backward()
    torch.testing.assert_close(stack.weights["head.prototypes.weight"][0], expected)
    assert stack.weights["head.prototypes.weight"].grad is None
    assert all(w.grad is not None for name, w in stack.weights.items() if name != "head.prototypes.weight")


def test_a_class_branch_alone_needs_no_contrastive_one() -> None:
    with pytest.raises(ValueError, match="has_contrastive=False"):
        bacon_methods.Method(has_contrastive=False)
    methods = bacon_methods.baselines(bacon_methods.Method(), OPEN_CON)
    assert {m.kind for m in methods.values()} == set(bacon_methods.KINDS)


def small_task():
    labels = torch.arange(4).repeat_interleave(60)
    images = torch.rand(240, 1, 3, 3, generator=torch_generator(0)) * 0.3
    images[torch.arange(240), 0, labels // 3, labels % 3] += 1.5
    problems = [
        bacon_data.draw_problem(
            labels, 2, largest=40, imbalance=2.0, n_test=10, generator=torch_generator(0, "problem", q)
        )
        for q in (0, 1)
    ]
    views = bacon_data.digit_views(0.05, 0.0)
    backbones = bacon_networks.pretrain(
        images, [p.train for p in problems], views, Recipe(5, 1e-3, batch_size=16, optimizer="adam"),
        hidden=16, n_features=8, generators=[torch_generator(0, "trunk", q) for q in (0, 1)],
    )  # fmt: skip
    return images, problems, backbones, views


@pytest.mark.parametrize("method", [bacon_methods.Orca(), OPEN_CON], ids=["ORCA", "OpenCon"])
def test_separated_novel_classes_are_discovered(method: bacon_methods.AnyMethod) -> None:
    stack, generator = NetworkStack([make_network(method)]), torch_generator(0, "data")
    truth, given = torch.arange(4).repeat_interleave(10), torch.full((1, 40), -1)
    given[0, :5], given[0, 10:15] = 0, 1
    centres = 2 * torch.eye(4, 8)[truth]

    def draw(copies: int) -> torch.Tensor:
        return centres.repeat(copies, 1)[None] + 0.3 * torch.randn(1, 40 * copies, 8, generator=generator)

    def loss_at(step: int) -> torch.Tensor:
        x = draw(2)
        margin = open_world.uncertainty(stack(x, method="class_outputs")[:, :40][given < 0][None], 0.1)
        chances = torch.rand(1, 40, 44, generator=generator)
        batch = bacon_losses.Batch(given, torch.ones(1, 4), margin, chances[..., :4], chances[..., 4:], step)
        return bacon_losses.stack_losses(stack, x, batch, [method], SETTINGS, 2)

    train([weight for weight in stack.parameters() if weight.requires_grad], loss_at, Recipe(60, 0.1))
    preds = stack(draw(1), method="class_outputs")[0].argmax(-1).numpy()
    np.testing.assert_array_equal(bacon.class_accuracy(preds, truth.numpy(), 4), 1)


def test_orca_and_open_con_learn_the_same_alone_and_beside_others() -> None:
    images, problems, backbones, views = small_task()
    methods = bacon_methods.baselines(bacon_methods.Method(), OPEN_CON)
    recipe = Recipe(4, 0.05, batch_size=16)
    found = bacon_experiment.compare(images, problems, backbones, methods, views, SETTINGS, recipe, seed=1)
    some = {name: methods[name] for name in ("ORCA", "OpenCon")}
    alone = bacon_experiment.compare(images, problems, backbones, some, views, SETTINGS, recipe, group=1, seed=1)
    for name in some:
        np.testing.assert_allclose(found[name].head, alone[name].head, atol=0.11)  # one image of ten may flip
        np.testing.assert_array_equal(found[name].priors, 1)  # nothing is estimated
    assert alone["ORCA"].kmeans.shape == (2, 4)


def test_the_margin_of_orca_is_the_uncertainty_on_unlabelled_images_once_per_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, problems, backbones, views = small_task()
    seen: list[float] = []
    original = bacon_training.stack_losses

    def spy(stack, tokens, batch, *rest):
        seen.append(batch.margins.item())
        if len(seen) == 3:  # start of the second pass
            free = images[problems[0].train[problems[0].given == bacon.UNLABELLED]]
            outputs = stack.single(0).class_outputs(bacon_training.plain_inputs(free, backbones[0], views))
            assert batch.margins.item() == pytest.approx(open_world.uncertainty(outputs, 0.1).item(), abs=1e-5)
        return original(stack, tokens, batch, *rest)

    monkeypatch.setattr(bacon_training, "stack_losses", spy)
    rows = [bacon_methods.Row(0, bacon_methods.Orca())]
    recipe = Recipe(4, 0.1, batch_size=len(problems[0].train) // 2)  # two updates a pass
    bacon_training.fit(images, problems, backbones, rows, views, SETTINGS, recipe, seed=0)
    assert 0 < seen[0] == seen[1] != seen[2] == seen[3] < 1
