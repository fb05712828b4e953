"""Properties of BaCon: the losses against known values and oracles, the prior estimate, the re-sampling, the split."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Categorical, kl_divergence

from glocal.nn.networks import build
from glocal.nn.training import Recipe
from glocal.seeding import torch_generator
from glocal.supervision import (
    bacon,
    bacon_clustering,
    bacon_data,
    bacon_experiment,
    bacon_losses,
    bacon_methods,
    bacon_networks,
    bacon_training,
    bacon_vit,
)

SETTINGS = bacon_methods.Settings(widths=(16, 8), n_outputs=8, epoch_steps=2, est_freq=1, est_init=2, eval_init=2)
METHODS = bacon_methods.baselines(bacon_methods.Method(), bacon_methods.OpenCon(n_embedding=6))


def embeddings(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch_generator(seed), dtype=torch.float64), dim=-1)


def everyone(b: int) -> torch.Tensor:
    return torch.ones(b, dtype=torch.bool)


def brute_supcon(z: torch.Tensor, labels: torch.Tensor, tau: float) -> torch.Tensor:
    """Khosla's supervised contrastive loss, written as loops over anchors."""
    losses = []
    for a in range(len(z)):
        others = [b for b in range(len(z)) if b != a]
        log_probs = (z[others] @ z[a] / tau).log_softmax(0)
        losses.append(-log_probs[labels[others] == labels[a]].mean())
    return torch.stack(losses).mean()


# --- Check 1: the prior regulariser


@pytest.mark.parametrize("power", [0.0, 1.0, 1.1])
def test_regularizer_vanishes_at_the_prior_and_is_positive_elsewhere(power: float) -> None:
    counts = torch.tensor([40.0, 20.0, 5.0], dtype=torch.float64)
    target = counts**power / (counts**power).sum()
    p = torch.tensor(power, dtype=torch.float64)
    assert bacon.prior_regularizer(target, counts, p).item() == pytest.approx(0, abs=1e-6)
    assert bacon.prior_regularizer(target.flip(0) + torch.tensor([0.1, 0.0, 0.0]), counts, p).item() > 1e-3
    assert bacon.prior_regularizer(target, 7 * counts, p).item() == pytest.approx(0, abs=1e-6)


def test_regularizer_is_simgcds_at_power_zero_and_a_kl_divergence_otherwise() -> None:
    p_bar = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], dtype=torch.float64)
    counts = torch.tensor([[3.0, 2.0, 9.0], [30.0, 1.0, 2.0]], dtype=torch.float64)
    found = bacon.prior_regularizer(p_bar, counts, torch.tensor([0.0, 1.1], dtype=torch.float64))
    assert found[0].item() == pytest.approx((math.log(3) + (p_bar[0] * p_bar[0].log()).sum()).item(), abs=1e-9)
    ratio = p_bar[1] / counts[1] ** 1.1
    uniform = Categorical(torch.ones(3, dtype=torch.float64))
    assert found[1].item() == pytest.approx(kl_divergence(Categorical(ratio / ratio.sum()), uniform).item(), abs=1e-9)


# --- Checks 2 and 3: the contrastive losses


def soft_loss(z: torch.Tensor, s: torch.Tensor, keep: torch.Tensor, tau: float) -> torch.Tensor:
    return bacon.contrastive_loss(z, (bacon.similarities(z) / tau).exp(), s, keep, tau)


def brute_soft_loss(z: torch.Tensor, s: torch.Tensor, keep: torch.Tensor, tau: float) -> torch.Tensor:
    """The formula of the docstring, pair by pair."""
    b, losses = len(s), []
    rows = [a for a in range(2 * b) if keep[a % b]]
    for a in rows:
        others = [c for c in rows if c != a]
        log_probs = (z[others] @ z[a] / tau).log_softmax(0)
        w = torch.stack([torch.ones(()).double() if c % b == a % b else s[c % b] @ s[a % b] for c in others])
        losses.append(-(w * log_probs).sum() / w.sum())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("tau", [0.07, 1.0])
def test_soft_loss_and_its_gradient_are_those_of_the_formula(tau: float) -> None:
    z, s = embeddings(12, 5).requires_grad_(), torch.rand(6, 3, generator=torch_generator(2)).double().softmax(-1)
    keep = torch.tensor([True, False, True, True, False, True])
    found, expected = soft_loss(z, s, keep, tau), brute_soft_loss(z, s, keep, tau)
    assert found.item() == pytest.approx(expected.item(), abs=1e-9)
    torch.testing.assert_close(torch.autograd.grad(found, z)[0], torch.autograd.grad(expected, z)[0])


def test_soft_loss_with_onehot_labels_is_supcon() -> None:
    labels = torch.tensor([0, 0, 1, 2, 1])
    z = embeddings(10, 6)
    found = soft_loss(z, F.one_hot(labels).double(), everyone(5), 0.07)
    assert found.item() == pytest.approx(brute_supcon(z, labels.repeat(2), 0.07).item(), abs=1e-6)


def test_soft_loss_with_disjoint_labels_is_simclr() -> None:
    z = embeddings(8, 6)
    logits = (z @ z.T / 0.07).fill_diagonal_(-torch.inf)
    expected = F.cross_entropy(logits, torch.arange(8).roll(4)).item()
    assert soft_loss(z, torch.eye(4).double(), everyone(4), 0.07).item() == pytest.approx(expected, abs=1e-6)
    assert soft_loss(z, torch.zeros(4, 1).double(), everyone(4), 0.07).item() == pytest.approx(expected, abs=1e-6)


def test_two_equal_images_of_one_class_lose_log_three() -> None:
    z = torch.ones(4, 3).double() / 3**0.5
    assert soft_loss(z, torch.ones(2, 1).double(), everyone(2), 0.07).item() == pytest.approx(math.log(3), abs=1e-9)


def test_images_that_are_not_kept_do_not_exist() -> None:
    z, s = embeddings(12, 5), torch.rand(6, 3, generator=torch_generator(2)).double().softmax(-1)
    keep = torch.tensor([True, False, True, True, False, True])
    subset = soft_loss(z[keep.repeat(2)], s[keep], everyone(4), 0.2)
    assert soft_loss(z, s, keep, 0.2).item() == pytest.approx(subset.item(), abs=1e-9)
    assert soft_loss(z, s, ~everyone(6), 0.2).item() == 0


def test_single_precision_survives_opposite_embeddings() -> None:
    z = F.normalize(torch.tensor([[1.0, 0], [-1, 0.01], [1, 0.01], [-1, 0]]), dim=-1).requires_grad_()
    loss = soft_loss(z, torch.zeros(2, 1), everyone(2), 0.07)
    loss.backward()
    assert 0 <= loss.item() < 1e-4
    assert bool(z.grad.isfinite().all())


# --- Check 4: the prior estimate


def labelled_clusters() -> tuple[np.ndarray, np.ndarray]:
    """Clusters of sizes 40, 20, 10, 5; clusters 1 and 2 are the known classes 1 and 0, partly labelled."""
    clusters = np.repeat([0, 1, 2, 3], [40, 20, 10, 5])
    labels = np.full(75, -1)
    labels[40:50], labels[60:65] = 1, 0
    return clusters, labels


def test_prior_of_separated_clusters_is_exact_and_ignores_cluster_ids() -> None:
    clusters, labels = labelled_clusters()
    for seed in range(5):
        ids = np.random.default_rng(seed).permutation(4)
        found = bacon.prior_from_clusters(ids[clusters], labels, 2, 4)
        np.testing.assert_array_equal(found, [10, 20, 40, 5])


def test_known_sizes_follow_the_number_of_labels_not_the_matched_cluster() -> None:
    clusters, labels = labelled_clusters()
    labels[:] = -1
    labels[40:43], labels[60:70] = 1, 0  # class 0 now has more labels, but the smaller cluster
    np.testing.assert_array_equal(bacon.prior_from_clusters(clusters, labels, 2, 4), [20, 10, 40, 5])


def test_slots_find_their_true_classes_by_content_not_by_size() -> None:
    clusters, labels = labelled_clusters()
    truth = np.repeat([3, 1, 0, 2], [40, 20, 10, 5])  # the largest cluster is novel class 3, the smallest class 2
    for ids in (np.arange(4), np.array([3, 1, 2, 0])):  # slots go by size, not by the number of the cluster
        assert bacon.slot_classes(ids[clusters], labels, truth, 2, 4).tolist() == [0, 1, 3, 2]
        other = np.repeat([2, 1, 0, 3], [40, 20, 10, 5])
        assert bacon.slot_classes(ids[clusters], labels, other, 2, 4).tolist() == [0, 1, 2, 3]


def test_prior_from_features_through_kmeans() -> None:
    clusters, labels = labelled_clusters()
    centres = torch.eye(4)[torch.from_numpy(clusters)]
    noise = 0.05 * torch.randn(75, 4, generator=torch_generator(0))
    found = bacon.prior_from_clusters(bacon.kmeans(5 * (centres + noise), 4), labels, 2, 4)
    np.testing.assert_array_equal(found, [10, 20, 40, 5])


def test_an_empty_cluster_counts_as_one() -> None:
    found = bacon.prior_from_clusters(np.array([0, 0, 1, 1, 1]), np.array([0, -1, -1, -1, -1]), 1, 3)
    np.testing.assert_array_equal(found, [2, 3, 1])


# --- Check 5: re-sampling


def soft_batch(b: int = 60, k: int = 4) -> torch.Tensor:
    return (3 * torch.randn(b, k, generator=torch_generator(5))).softmax(-1)


def chances(b: int = 60, k: int = 4) -> torch.Tensor:
    return torch.rand(b, k, generator=torch_generator(0))


def test_no_exponents_keep_everybody() -> None:
    labels = torch.full((60,), -1)
    rates = bacon.keep_rates(labels, torch.tensor([9.0, 4.0, 2.0, 1.0]), torch.tensor(0.0), torch.tensor(0.0))
    assert bool(bacon.keep_confident(soft_batch(), labels, rates, chances()).all())


def test_rates_depend_on_the_labels_of_the_batch() -> None:
    counts = torch.tensor([16.0, 4.0, 1.0])
    rates = bacon.keep_rates(torch.tensor([-1, 0, 0]), counts, torch.tensor(0.0), torch.tensor(0.5))
    torch.testing.assert_close(rates, torch.tensor([1.0, 0.5, 1.0]))


def test_kept_number_has_the_right_mean_and_the_kept_are_the_most_confident() -> None:
    soft, labels = soft_batch(), torch.full((60,), -1)
    labels[:6] = 2
    rates = torch.tensor([0.25, 0.5, 0.75, 1.0])
    confidence, preds = soft.max(-1)
    generator, totals = torch_generator(1), torch.zeros(4)
    is_free = labels == -1
    for _ in range(600):
        keep = bacon.keep_confident(soft, labels, rates, torch.rand(60, 4, generator=generator))
        assert bool(keep[:6].all())
        for c in range(4):
            mine = is_free & (preds == c)
            totals[c] += keep[mine].sum()
            if keep[mine].any() and not keep[mine].all():
                assert confidence[mine & keep].min() >= confidence[mine & ~keep].max()
    expected = torch.stack([(is_free & (preds == c)).sum() * rates[c] for c in range(4)])
    torch.testing.assert_close(totals / 600, expected, rtol=0.05, atol=0)


def test_resampling_of_a_stack_treats_rows_alike_at_rate_one_or_zero() -> None:
    soft, labels = torch.stack([soft_batch(), soft_batch().flip(0)]), torch.full((2, 60), -1)
    rates = torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0]])
    keep = bacon.keep_confident(soft, labels, rates, chances().expand(2, 60, 4))
    assert bool(keep[0].all())
    assert not bool(keep[1].any())


# --- soft labels, self-distillation, Check 8


def test_logit_adjustment_divides_by_the_prior() -> None:
    outputs = torch.zeros(2, 3, 2)
    soft = bacon.soft_labels(outputs, torch.tensor([9.0, 1.0]), 0.1, torch.tensor(0.5))
    torch.testing.assert_close(soft, torch.tensor([0.25, 0.75]).expand(3, 2))
    plain = bacon.soft_labels(outputs, torch.tensor([9.0, 1.0]), 0.1, torch.tensor(0.0))
    torch.testing.assert_close(plain, torch.full((3, 2), 0.5))


def test_self_distillation_is_cross_entropy_with_the_other_view() -> None:
    o = torch.randn(2, 4, 3, generator=torch_generator(3), requires_grad=True)
    found = bacon.self_distillation(o, 0.1, 0.05)
    one = F.cross_entropy(o[1] / 0.1, (o[0].detach() / 0.05).softmax(-1))
    two = F.cross_entropy(o[0] / 0.1, (o[1].detach() / 0.05).softmax(-1))
    torch.testing.assert_close(found, (one + two) / 2)
    torch.testing.assert_close(torch.autograd.grad(found, o)[0], torch.autograd.grad((one + two) / 2, o)[0])


def test_cross_entropy_ignores_unlabelled_rows_and_survives_a_batch_without_labels() -> None:
    o = torch.randn(2, 4, 3, generator=torch_generator(3))
    labels = torch.tensor([2, -1, 0, -1])
    expected = sum(F.cross_entropy(view[labels >= 0] / 0.1, labels[labels >= 0]) for view in o) / 2
    torch.testing.assert_close(bacon.known_cross_entropy(o, labels, 0.1), expected)
    assert bacon.known_cross_entropy(o, torch.full((4,), -1), 0.1).item() == 0


def test_teacher_temperature_schedule() -> None:
    found = [bacon.teacher_temperature(epoch) for epoch in (0.0, 15.0, 30.0, 200.0)]
    assert found == pytest.approx([0.07, 0.055, 0.04, 0.04])


# --- Check 6: evaluation


def test_hungarian_accuracy_invariances() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 20)
    preds = np.where(rng.random(120) < 0.7, labels, rng.integers(0, 6, 120))
    ids = rng.permutation(6)
    one, two = bacon.class_accuracy(preds, labels, 6), bacon.class_accuracy(ids[preds], labels, 6)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(bacon.class_accuracy(ids[labels], labels, 6), np.ones(6))
    assert one.mean() == pytest.approx((one[:4].mean() * 4 + one[4:].mean() * 2) / 6)


def test_one_assignment_does_not_give_a_cluster_to_an_old_and_a_new_class() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    assert bacon.class_accuracy(np.zeros(5, dtype=int), labels, 2).tolist() == [1, 0]


def test_groups_by_size() -> None:
    groups = bacon_training.rank_groups([5, 30, 10, 7, 1, 3], 3)
    assert groups["old, many"].nonzero()[0].tolist() == [1]
    assert groups["new, few"].nonzero()[0].tolist() == [4]
    assert groups["new"].sum() == 3


# --- Check 7 and the training


def make_branches(is_shared: bool = False, seed: int = 0) -> bacon_networks.Branches:
    block = build(lambda: bacon_networks.ResidualBlock(8), generator=torch_generator(seed, "block"))
    backbone = bacon_networks.Backbone(lambda x: x.flatten(1), block, 8)
    method = bacon_methods.Method(power=0.0, has_soft=False, is_shared=is_shared)
    return bacon_networks.make_network(method, backbone, 4, SETTINGS, generator=torch_generator(seed))


def branch_losses(
    outputs: torch.Tensor,
    z: torch.Tensor,
    given: torch.Tensor,
    counts: torch.Tensor,
    method: bacon_methods.Method,
    epoch: int,
):
    """Losses of both branches for one network with six images."""
    batch = bacon_losses.Batch(given, counts, torch.zeros(1), chances(6)[None], chances(6, 6)[None], epoch)
    outputs = outputs.unflatten(1, (2, 6))
    pseudo = bacon_losses.pseudo_label_loss(outputs, batch, [method], SETTINGS)
    return pseudo, bacon_losses.contrastive_branch_loss(outputs, z, batch, [method], SETTINGS)


@pytest.mark.parametrize("is_soft", [False, True])
def test_no_gradient_crosses_the_branches(is_soft: bool) -> None:
    for which, untouched in ((0, "contrastive_"), (1, "class_")):
        branches = make_branches()
        x = torch.randn(12, 8, generator=torch_generator(1))
        outputs, z = branches.class_outputs(x), branches.contrastive_head(branches.features(x))
        torch.testing.assert_close(branches(x), torch.cat([outputs, z], -1))
        given = torch.tensor([[0, 1, -1, -1, -1, -1]])
        counts = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
        losses = branch_losses(outputs[None], z[None], given, counts, bacon_methods.Method(), int(is_soft))
        losses[which].sum().backward()
        for name, parameter in branches.named_parameters():
            assert (parameter.grad is None) == name.startswith(untouched), name


def test_warmup_and_methods_decide_the_contrastive_loss() -> None:
    both = make_branches()(torch.randn(12, 8, generator=torch_generator(1))).detach()[None]
    given = torch.tensor([[0, 1, 0, -1, -1, -1]])

    def loss_cl(method: bacon_methods.Method, epoch: int) -> float:
        counts = torch.tensor([[9.0, 3.0, 2.0, 1.0]])
        return branch_losses(both[..., :4], both[..., 4:], given, counts, method, epoch)[1].item()

    ours, gcd = bacon_methods.Method(), bacon_methods.Method(has_soft=False)
    assert loss_cl(ours, 0) == pytest.approx(loss_cl(gcd, 1))
    assert loss_cl(ours, 1) != pytest.approx(loss_cl(gcd, 1))


def small_task(n_problems: int = 1):
    labels = torch.arange(4).repeat_interleave(40)
    images = torch.rand(160, 1, 3, 3, generator=torch_generator(0)) * 0.3
    images[torch.arange(160), 0, labels // 3, labels % 3] += 1.5
    problems = [
        bacon_data.draw_problem(
            labels, 2, largest=24, imbalance=3.0, n_test=10, generator=torch_generator(0, "problem", q)
        )
        for q in range(n_problems)
    ]
    views = bacon_data.digit_views(0.05, 0.0)
    backbones = bacon_networks.pretrain(
        images, [p.train for p in problems], views, Recipe(5, 1e-3, batch_size=16, optimizer="adam"),
        hidden=16, n_features=8, generators=[torch_generator(0, "trunk", q) for q in range(n_problems)],
    )  # fmt: skip
    return images, problems, backbones, views


def test_fit_and_evaluate_run_and_estimates_are_clusters_of_the_training_set() -> None:
    images, problems, backbones, views = small_task(2)
    rows = [bacon_methods.Row(q, METHODS[name]) for name in ("BaCon", "oracle prior") for q in (0, 1)]
    fitted = bacon_training.fit(
        images, problems, backbones, rows, views, SETTINGS, Recipe(6, 0.05, batch_size=16), seed=3
    )
    assert fitted.priors.shape == (3, 4, 4)
    np.testing.assert_array_equal(fitted.priors[:, :2].sum(-1), len(problems[0].train))
    for e in range(3):
        np.testing.assert_array_equal(fitted.priors[e, 2], bacon_training.true_counts(problems[0]))
    found = bacon_training.evaluate(fitted, images, problems, backbones, views, SETTINGS, seed=3)
    assert found["kmeans"].shape == found["head"].shape == (4, 4)
    again = bacon_training.fit(
        images, problems, backbones, rows, views, SETTINGS, Recipe(6, 0.05, batch_size=16), seed=3
    )
    for (one, _), (two, _) in zip(fitted.stacks, again.stacks, strict=True):
        for name, tensor in one.weights.items():
            torch.testing.assert_close(tensor, two.weights[name])


def test_a_method_learns_the_same_alone_and_beside_other_architectures() -> None:
    images, problems, backbones, views = small_task(2)
    recipe = Recipe(4, 0.05, batch_size=16)
    mixed = [bacon_methods.Row(q, METHODS[n]) for q in (0, 1) for n in ("SimGCD", "BaCon")]
    together = bacon_training.fit(images, problems, backbones, mixed, views, SETTINGS, recipe, seed=3)
    assert [where for _, where in together.stacks] == [[1, 3], [0, 2]]
    for (stack, where), index in ((together.stacks[1], 2), (together.stacks[0], 3)):
        alone = bacon_training.fit(images, problems, backbones, [mixed[index]], views, SETTINGS, recipe, seed=3)
        for name, tensor in stack.weights.items():
            torch.testing.assert_close(
                tensor[where.index(index)], alone.stacks[0][0].weights[name][0], atol=1e-4, rtol=1e-3
            )
    both = bacon_training.evaluate(together, images, problems, backbones, views, SETTINGS, seed=3)
    single = bacon_training.evaluate(alone, images, problems, backbones, views, SETTINGS, seed=3)
    for rule in ("kmeans", "pinned", "head"):
        np.testing.assert_allclose(both[rule][3], single[rule][0], atol=0.11)  # one image of ten may flip


def test_gcd_is_the_contrastive_branch_without_the_soft_loss_whatever_the_prior() -> None:
    images, problems, backbones, views = small_task()
    gcd = replace(METHODS["GCD"], power=1.1)
    rows = [bacon_methods.Row(0, gcd), bacon_methods.Row(0, replace(gcd, power=0.0, tau_adj=0.0))]
    weights = (
        bacon_training.fit(images, problems, backbones, rows, views, SETTINGS, Recipe(6, 0.05, batch_size=16), seed=3)
        .stacks[0][0]
        .weights
    )
    torch.testing.assert_close(
        weights["contrastive_block.inner.weight"][0], weights["contrastive_block.inner.weight"][1]
    )
    assert not torch.allclose(weights["class_block.inner.weight"][0], weights["class_block.inner.weight"][1])


def test_problems_of_different_sizes_train_side_by_side_as_alone() -> None:
    images, problems, backbones, views = small_task(2)
    labels = torch.arange(4).repeat_interleave(40)
    larger = bacon_data.draw_problem(labels, 2, largest=24, imbalance=1.0, n_test=10, generator=torch_generator(0))
    ours = {"BaCon": bacon_methods.Method()}
    recipe = Recipe(4, 0.05, batch_size=16)
    both = bacon_experiment.compare(
        images, [larger, problems[1]], backbones, ours, views, SETTINGS, recipe, seed=0
    )["BaCon"]  # fmt: skip
    alone = bacon_experiment.compare(images, [larger], backbones, ours, views, SETTINGS, recipe, seed=0)["BaCon"]
    np.testing.assert_array_equal(both.priors.sum(-1)[0], [96, len(problems[1].train)])
    np.testing.assert_allclose(both.priors[:, 0], alone.priors[:, 0], atol=2)
    np.testing.assert_allclose(both.kmeans[0], alone.kmeans[0], atol=0.11)


def test_an_unknown_prior_is_refused() -> None:
    with pytest.raises(ValueError, match="estimated, oracle"):
        bacon_methods.Method(prior="guess")


# --- data


def test_problem_is_long_tailed_half_labelled_and_has_a_balanced_disjoint_test_set() -> None:
    labels = torch.arange(10).repeat_interleave(300)
    p = bacon_data.draw_problem(labels, 5, largest=240, imbalance=20.0, n_test=50, generator=torch_generator(0))
    assert p.counts == (240, 113, 53, 25, 12) * 2
    assert p.train_labels.bincount().tolist() == list(p.counts)
    assert p.given[p.given >= 0].bincount().tolist() == [120, 56, 26, 12, 6]
    assert bool((p.given[p.given >= 0] == p.train_labels[p.given >= 0]).all())
    assert p.test_labels.bincount().tolist() == [50] * 10
    assert not set(p.test.tolist()) & set(p.train.tolist())
    same_class = labels[p.train] * 10 + p.train_labels
    assert len(same_class.unique()) == 10  # a permutation of the classes
    is_labelled = p.given >= 0
    assert p.sampling_weights[is_labelled].sum().item() == pytest.approx(p.sampling_weights[~is_labelled].sum().item())


def test_one_tail_over_all_classes_and_a_published_test_part() -> None:
    labels = torch.arange(6).repeat(60)
    test = torch.arange(120)
    p = bacon_data.draw_problem(
        labels, 4, largest=40, imbalance=10.0, test=test, tail="all", generator=torch_generator(0)
    )
    assert sorted(p.counts) == sorted(bacon_data.long_tailed_counts(40, 6, 10.0))
    assert int(p.train.min()) >= 120
    assert torch.equal(p.test, test)


@pytest.mark.parametrize(("options", "message"), [({"tail": "one"}, "groups, all"), ({"n_known": 6}, "n_known")])
def test_bad_problems_are_refused(options: dict, message: str) -> None:
    arguments = {"n_known": 3, "largest": 4, "imbalance": 2.0, "n_test": 2, "generator": torch_generator(0)} | options
    with pytest.raises(ValueError, match=message):
        bacon_data.draw_problem(torch.arange(6).repeat(10), **arguments)


def test_crop_cuts_where_it_is_told() -> None:
    images = torch.arange(32.0).reshape(2, 1, 4, 4)
    found = bacon_data.crop(images, torch.tensor([0, 2]), torch.tensor([1, 0]), 2)
    assert found[0, 0].tolist() == [[1, 2], [5, 6]]
    assert found[1, 0].tolist() == [[24, 25], [28, 29]]


def test_views_keep_shapes_and_plain_views_are_deterministic() -> None:
    views = bacon_data.photo_views(32, 40)
    images = torch.rand(3, 3, 16, 16, generator=torch_generator(0))
    assert views.random(images, generator=torch_generator(1)).shape == (3, 3, 32, 32)
    assert torch.equal(views.plain(images), views.plain(images))
    grey = bacon_data.digit_views(0.0, 0.0).random(torch.ones(5, 1, 8, 8), generator=torch_generator(0))
    assert set(grey.unique().tolist()) <= {0.0, 1.0}


# --- heads and trunks


def test_heads_return_cosines_and_unit_vectors() -> None:
    x = 10 * torch.randn(7, 8, generator=torch_generator(0))
    head = build(lambda: bacon_networks.ClassHead(8, 4), generator=torch_generator(1))
    expected = F.cosine_similarity(x[:, None], head.prototypes.weight[None], dim=-1)
    torch.testing.assert_close(head(x), expected)
    project = build(lambda: bacon_networks.ContrastiveHead(8, [16, 8], 5), generator=torch_generator(1))
    torch.testing.assert_close(project(x).norm(dim=-1), torch.ones(7))


def test_branches_share_the_block_or_hold_a_copy_each() -> None:
    two, one = make_branches(), make_branches(is_shared=True)
    assert two.class_block is not two.contrastive_block
    torch.testing.assert_close(two.class_block.inner.weight, two.contrastive_block.inner.weight)
    assert one.class_block is None


def test_stand_in_transformer_is_split_before_its_last_block() -> None:
    backbone = bacon_vit.vit_backbone("stand-in", image_size=32)
    vit, x = backbone.trunk.vit, torch.rand(2, 3, 32, 32, generator=torch_generator(0))
    tokens = vit._pos_embed(vit.patch_embed(x))
    for block in vit.blocks:
        tokens = block(tokens)
    torch.testing.assert_close(backbone.block(backbone.trunk(x)), vit.norm(tokens)[:, 0])
    assert backbone.n_features == 96


def test_missing_timm_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="stand-in"):
        bacon_vit.vit_backbone("vit_base_patch16_224.dino")


@pytest.mark.parametrize("n", [5, 17])
def test_prior_error_is_a_total_variation(n: int) -> None:
    counts = np.arange(1.0, n + 1)
    assert bacon_training.prior_error(3 * counts, counts) == pytest.approx(0)
    assert bacon_training.prior_error(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 2


def test_pinned_points_stay_with_their_class_and_the_rest_follows() -> None:
    labels = torch.arange(4).repeat_interleave(15)
    features = torch.eye(4)[labels] + 0.1 * torch.randn(60, 4, generator=torch_generator(0))
    given = torch.full((60,), -1)
    given[:5], given[15:20] = 0, 1
    given[30] = 0  # a wrong label is pinned all the same
    found = bacon_clustering.pinned_kmeans(features, given, 2, 4, rng=np.random.default_rng(0))
    assert found[30] == 0
    others = np.arange(60) != 30
    np.testing.assert_array_equal(found[:30], np.repeat([0, 1], 15))
    assert (bacon.class_accuracy(found[others], labels.numpy()[others], 4) == 1).all()
    with pytest.raises(ValueError, match="needs a labelled point"):
        bacon_clustering.pinned_kmeans(features, given, 3, 4, rng=np.random.default_rng(0))


def test_comparison_does_not_depend_on_how_rows_are_grouped_in_its_shapes() -> None:
    images, problems, backbones, views = small_task(2)
    chosen = {n: m for n, m in METHODS.items() if n in ("BaCon", "SimGCD")}
    found = bacon_experiment.compare(
        images, problems, backbones, chosen, views, SETTINGS, Recipe(2, 0.05, batch_size=8),
        n_problems={"SimGCD": 1}, pinned=["BaCon"], group=1, seed=0,
    )  # fmt: skip
    assert found["BaCon"].kmeans.shape == (2, 4)
    assert found["SimGCD"].head.shape == (1, 4)
    np.testing.assert_array_equal(found["SimGCD"].priors, np.ones((1, 1, 4)))  # nothing estimated, nothing needed
    floor = bacon_experiment.trunk_floor(images, problems, backbones, views, SETTINGS, seed=0)
    assert floor["pinned"].shape == floor["kmeans"].shape == (2, 4)
    assert found["BaCon"].pinned.shape == (2, 4)
    assert found["SimGCD"].pinned.shape == (0, 4)  # not asked for


def test_pools_and_their_test_parts() -> None:
    images, labels, test = bacon_experiment.load_pool("optdigits")
    assert images.shape == (5620, 1, 8, 8)
    assert float(images.max()) == 1
    assert test is None
    images, labels, test = bacon_experiment.load_pool("cifar100", fake=True)
    assert images.shape[1:] == (3, 32, 32)
    assert len(images) == len(labels) == int(test.max()) + 1
    with pytest.raises(ValueError, match="8 x 8"):
        bacon_experiment.load_pool("penbased")


def test_test_images_are_the_same_at_every_ratio_and_new_to_every_training_set() -> None:
    labels = torch.arange(10).repeat_interleave(300)
    drawn = [
        bacon_data.draw_problem(labels, 5, largest=240, imbalance=r, n_test=50, generator=torch_generator(0))
        for r in (20.0, 1.0, 50.0)
    ]
    for p in drawn:
        assert torch.equal(p.test, drawn[0].test)
        assert torch.equal(p.test_labels, drawn[0].test_labels)
        assert not any(set(q.train.tolist()) & set(p.test.tolist()) for q in drawn)
