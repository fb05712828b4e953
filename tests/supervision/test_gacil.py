"""G-ACIL: the recursion is joint ridge regression, whatever the stream; its rivals are what they claim to be."""

import builtins

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge

from glocal.budget import Budget
from glocal.seeding import numpy_generator, torch_generator
from glocal.supervision.continual import Stream, si_blurry_stream
from glocal.supervision.gacil import (
    GACIL,
    buffer_weights,
    head_step,
    joint_gap,
    joint_ridge,
    keeps_label,
    new_classes,
    relu_buffer,
    woodbury_step,
)
from glocal.supervision.gacil_augment import crop_and_flip, trivial_augment
from glocal.supervision.gacil_backbone import (
    FrozenBackbone,
    deit_small,
    extract_features,
    image_features,
    raw_features,
    train_base,
)
from glocal.supervision.gacil_baselines import EWC, LwF, OnlineHead, gradient_rival
from glocal.supervision.gacil_closed_form import SLDA, joint_logistic
from glocal.supervision.gacil_tuning import grid_search
from glocal.supervision.gacil_variants import AIR, DSAL, VARIANTS, gaussian_buffer, make_variant, variant_buffer
from glocal.supervision.replay import Memory

GAMMA = 0.1
K = 6


def toy(n: int = 240, d: int = 24, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Buffer features of six Gaussian classes of unequal size."""
    generator = torch_generator(seed, "toy")
    labels = (torch.rand(n, generator=generator).sqrt() * K).long()
    centers = torch.randn(K, 5, generator=generator)
    raw = 1.5 * centers[labels] + torch.randn(n, 5, generator=generator)
    return relu_buffer(raw, buffer_weights(5, d, generator=generator)), labels


PHI, LABELS = toy()


def feed(learner, stream: Stream, batch: int = 32, phi=PHI, labels=LABELS):  # type: ignore[no-untyped-def]
    last = -1
    for task, index in stream.batches(batch):
        if task != last:
            learner.begin_task()
            last = task
        learner.update(phi[index], labels[index])
    return learner


def blurry(n_tasks: int = 4, r_disjoint: float = 0.5, r_blurry: float = 0.3, seed: int = 0) -> Stream:
    generator = torch_generator(seed, "stream")
    return si_blurry_stream(LABELS, n_tasks, r_disjoint=r_disjoint, r_blurry=r_blurry, generator=generator)


def onehot(classes: torch.Tensor, labels: torch.Tensor = LABELS) -> torch.Tensor:
    return (labels[:, None] == classes).double()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("batch", [1, 7, 100, 1000])
@pytest.mark.parametrize(("r_disjoint", "r_blurry"), [(0.0, 0.5), (0.5, 0.1), (1.0, 0.0)])
def test_recursion_is_joint_ridge(batch: int, r_disjoint: float, r_blurry: float) -> None:
    head = feed(GACIL(24, gamma=GAMMA), blurry(4, r_disjoint, r_blurry), batch)
    targets = onehot(head.classes)
    assert relative(head.weights, joint_ridge(PHI, targets, GAMMA)) < 1e-8
    sklearn = Ridge(alpha=GAMMA, fit_intercept=False, solver="cholesky").fit(PHI.numpy(), targets.numpy())
    assert relative(head.weights, torch.from_numpy(sklearn.coef_.T.copy())) < 1e-8


@pytest.mark.parametrize("batch", [1, 20, 100])  # 100 rows > 24 columns takes the direct route
def test_inverse_is_the_inverse(batch: int) -> None:
    head = feed(GACIL(24, gamma=GAMMA), blurry(), batch)
    gram = PHI.T @ PHI + GAMMA * torch.eye(24)
    assert (head.inverse @ gram - torch.eye(24)).abs().max() < 1e-8
    assert (head.inverse - head.inverse.T).abs().max() < 1e-12 * head.inverse.abs().max()
    assert torch.linalg.eigvalsh(head.inverse).min() > 0


def test_gain_is_new_inverse_times_features() -> None:
    start = torch.eye(24, dtype=torch.float64) / GAMMA
    for n in (5, 24, 60):
        inverse, gain = woodbury_step(start, PHI[:n])
        assert relative(gain, inverse @ PHI[:n].T) < 1e-10


def test_column_form_is_padded_form() -> None:
    head = feed(GACIL(24, gamma=GAMMA), blurry(seed=1), 50)
    old = torch.tensor([3, 1])
    start, known = head.weights[:, :2], old
    phi, labels = PHI[:40], LABELS[:40]
    _, gain = woodbury_step(head.inverse, phi)
    classes = torch.cat([known, new_classes(labels, known)])
    targets = onehot(classes, labels)
    split = head_step(start, phi, gain, targets[:, :2], targets[:, 2:])
    padded = torch.cat([start, torch.zeros(24, len(classes) - 2)], dim=1)
    padded = padded + gain @ (targets - phi @ padded)
    assert len(classes) > 2
    assert relative(split, padded) < 1e-12


def test_without_exposed_classes_gacil_is_acil() -> None:
    stream = blurry(r_disjoint=1.0)
    heads = [feed(GACIL(24, gamma=GAMMA, eclg=eclg), stream, 16) for eclg in (True, False)]
    assert torch.equal(heads[0].weights, heads[1].weights)
    blurred = blurry(r_disjoint=0.0, r_blurry=0.5)
    heads = [feed(GACIL(24, gamma=GAMMA, eclg=eclg), blurred, 16) for eclg in (True, False)]
    assert relative(heads[1].weights, heads[0].weights) > 0.1


def test_exposed_classes_open_no_column() -> None:
    head = GACIL(24, gamma=GAMMA)
    head.update(PHI, LABELS)
    columns = head.classes.clone()
    head.update(PHI[:10], LABELS[:10])
    assert torch.equal(head.classes, columns)
    assert head.weights.shape == (24, K)


@pytest.mark.parametrize("batch", [1, 13, 500])
def test_acil_is_ridge_with_erased_labels(batch: int) -> None:
    stream = blurry(r_disjoint=0.2, r_blurry=0.5)
    head = feed(GACIL(24, gamma=GAMMA, eclg=False), stream, batch)
    kept = keeps_label(LABELS[stream.index], stream.task)
    targets = onehot(head.classes)[stream.index] * kept[:, None]
    assert 0 < int(kept.sum()) < len(kept)
    assert relative(head.weights, joint_ridge(PHI[stream.index], targets, GAMMA)) < 1e-8


def test_order_of_tasks_is_irrelevant() -> None:
    heads = [feed(GACIL(24, gamma=GAMMA), blurry(seed=seed), 20) for seed in (0, 1, 2)]
    sorted_weights = [head.weights[:, head.classes.argsort()] for head in heads]
    assert not torch.equal(heads[0].classes, heads[1].classes)
    assert relative(sorted_weights[1], sorted_weights[0]) < 1e-8
    assert relative(sorted_weights[2], sorted_weights[0]) < 1e-8


def test_repeating_a_task_doubles_its_weight() -> None:
    first, second = torch.arange(240) < 100, torch.arange(240) >= 100
    head = GACIL(24, gamma=GAMMA)
    for part in (first, second, second):
        head.update(PHI[part], LABELS[part])
    weight = np.where(second.numpy(), 2.0, 1.0)
    ridge = Ridge(alpha=GAMMA, fit_intercept=False, solver="cholesky")
    ridge.fit(PHI.numpy(), onehot(head.classes).numpy(), sample_weight=weight)
    assert relative(head.weights, torch.from_numpy(ridge.coef_.T.copy())) < 1e-8


def test_infinite_ridge_leaves_class_sums() -> None:
    gamma = 1e12
    head = feed(GACIL(24, gamma=gamma), blurry(), 30)
    assert relative(gamma * head.weights, PHI.T @ onehot(head.classes)) < 1e-6


def test_hand_case() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    head = GACIL(1, gamma=1.0)
    for label in (0, 1):
        head.begin_task()
        head.update(one, torch.tensor([label]))
    assert head.weights.flatten().tolist() == pytest.approx([1 / 3, 1 / 3])
    for eclg, weight in ((True, 2 / 3), (False, 1 / 3)):
        head = GACIL(1, gamma=1.0, eclg=eclg)
        for _ in range(2):
            head.begin_task()
            head.update(one, torch.tensor([0]))
        assert head.weights.item() == pytest.approx(weight)


def test_buffer_law_and_activation() -> None:
    weights = buffer_weights(16, 4000, generator=torch_generator(0, "buffer"))
    assert weights.abs().max() <= 0.25
    assert weights.var().item() == pytest.approx(0.25**2 / 3, rel=0.02)
    features = torch.randn(3, 16)
    expected = torch.clamp(features.double() @ weights, min=0)
    assert torch.equal(relu_buffer(features, weights), expected)


def test_new_classes_in_order_of_first_appearance() -> None:
    labels = torch.tensor([5, 2, 5, 9, 0, 2])
    assert new_classes(labels, torch.tensor([2])).tolist() == [5, 9, 0]
    assert new_classes(labels, torch.tensor([0, 2, 5, 9])).tolist() == []


def test_bad_ridge_and_lost_definiteness_are_reported() -> None:
    with pytest.raises(ValueError, match="gamma must be positive, got 0"):
        GACIL(3, gamma=0.0)
    with pytest.raises(FloatingPointError, match="use float64 or a larger gamma"):
        woodbury_step(-torch.eye(3, dtype=torch.float64), 10 * torch.eye(3, dtype=torch.float64))
    broken = GACIL(2)
    with pytest.raises(FloatingPointError, match=r"no longer finite|positive definite"):
        broken.update(torch.full((1, 2), torch.nan, dtype=torch.float64), torch.tensor([0]))


def test_float32_drifts_more_than_float64() -> None:
    targets = onehot(torch.arange(K))
    errors = []
    for dtype in (torch.float64, torch.float32):
        head = feed(GACIL(24, gamma=1e-3, dtype=dtype), blurry(), 1)
        errors.append(relative(head.weights.double(), joint_ridge(PHI, targets, 1e-3)[:, head.classes]))
    assert errors[0] < 1e-9 < 1e-6 < errors[1]


# --- variants ---------------------------------------------------------------------------------------------------


def test_air_equals_weighted_ridge_and_gacil_when_balanced() -> None:
    air = feed(AIR(24, gamma=GAMMA), blurry(), 32)
    counts = torch.bincount(LABELS).double()
    weight = (len(LABELS) / (K * counts))[LABELS]
    ridge = Ridge(alpha=GAMMA, fit_intercept=False, solver="cholesky")
    ridge.fit(PHI.numpy(), onehot(air.classes).numpy(), sample_weight=weight.numpy())
    assert relative(air.weights, torch.from_numpy(ridge.coef_.T.copy())) < 1e-8

    balanced = torch.cat([(c == LABELS).nonzero().squeeze(1)[:4] for c in range(K)])
    air, plain = AIR(24, gamma=GAMMA), GACIL(24, gamma=GAMMA)
    for learner in (air, plain):
        learner.update(PHI[balanced], LABELS[balanced])
    assert relative(air.weights, plain.weights) < 1e-8
    assert torch.equal(air.predict(PHI), plain.predict(PHI))


def test_dual_stream_reduces_to_one() -> None:
    projection, _ = toy()
    projection = projection - projection.mean(0)
    dual, plain = DSAL(24, compensation=0.0), GACIL(24)
    for learner, x in ((dual, projection), (plain, projection.relu())):
        feed(learner, blurry(), 32, phi=x)
    assert torch.equal(dual.predict(projection), plain.predict(projection.relu()))
    # in one batch, the second stream is the ridge fit of what the first leaves over
    dual = DSAL(24, gamma=GAMMA)
    dual.update(projection, LABELS)
    main = joint_ridge(projection.relu(), onehot(dual.main.classes), GAMMA)
    rest = onehot(dual.main.classes) - projection.relu() @ main
    assert relative(dual.weights, joint_ridge(projection.tanh(), rest, GAMMA)) < 1e-8


def test_dual_stream_cleanses_old_columns() -> None:
    dual = DSAL(24)
    dual.begin_task()
    dual.update(PHI[LABELS < 3], LABELS[LABELS < 3])
    before = dual.weights.clone()
    dual.begin_task()
    dual.update(PHI[LABELS >= 3], LABELS[LABELS >= 3])
    psi = PHI[LABELS >= 3].tanh()
    expected = before - dual.inverse @ psi.T @ psi @ before  # old columns met zero targets only
    assert dual.weights.shape[1] == K
    assert relative(dual.weights[:, :3], expected) < 1e-8


def test_gaussian_buffer_at_its_centers() -> None:
    features = torch.randn(7, 3, dtype=torch.float64)
    kernel = gaussian_buffer(features, features, sigma=2.0)
    assert kernel.diagonal().tolist() == pytest.approx([1.0] * 7, abs=1e-6)
    expected = torch.exp(-((features[0] - features[1]) ** 2).sum() / 8)
    assert kernel[0, 1].item() == pytest.approx(expected.item())


# --- baselines --------------------------------------------------------------------------------------------------


def test_slda_is_batch_lda() -> None:
    slda = feed(SLDA(24, K, shrinkage=0.1, has_priors=True, dtype=torch.float64), blurry(), 17)
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1).fit(PHI.numpy(), LABELS.numpy())
    assert np.array_equal(slda.predict(PHI).numpy(), reference.predict(PHI.numpy()))
    means = torch.stack([PHI[c == LABELS].mean(0) for c in range(K)])
    assert relative(slda.means, means) < 1e-12
    centered = PHI - means[LABELS]
    assert relative(slda.scatter, centered.T @ centered) < 1e-10


def test_full_shrinkage_is_nearest_class_mean() -> None:
    ncm = feed(SLDA(24, K, shrinkage=1.0, dtype=torch.float64), blurry(), 17)
    means = torch.stack([PHI[c == LABELS].mean(0) for c in range(K)])
    assert torch.equal(ncm.predict(PHI), torch.cdist(PHI, means).argmin(1))
    assert ncm.scatter.numel() == 0
    with pytest.raises(ValueError, match=r"shrinkage must be in \[0, 1\], got 2"):
        SLDA(24, K, shrinkage=2.0)


def test_reservoir_is_uniform_over_the_stream() -> None:
    counts = torch.zeros(60)
    for trial in range(400):
        memory = Memory(15, generator=torch_generator(trial, "memory"))
        for part in torch.arange(60).split(7):
            memory.add(part[:, None].double(), torch.zeros(len(part), dtype=torch.long))
        assert len(memory) == 15
        counts[memory.x[:, 0].long()] += 1
    # 400 trials, share 1/4: mean 100, standard deviation 8.7; first and last thirds must not differ
    assert counts.min() > 60
    assert counts[:20].mean().item() == pytest.approx(counts[-20:].mean().item(), abs=6)


def test_balanced_memory_is_balanced() -> None:
    memory = Memory(30, is_balanced=True, generator=torch_generator(0, "memory"))
    labels = torch.cat([torch.zeros(200), torch.ones(100), torch.full((4,), 2.0)]).long()
    for part in torch.randperm(304, generator=torch_generator(0, "order")).split(16):
        memory.add(torch.zeros(len(part), 2), labels[part])
    assert torch.bincount(memory.labels).tolist() == [13, 13, 4]
    with pytest.raises(ValueError, match="at least one place, got size=0"):
        Memory(0, generator=torch_generator(0, "memory"))


def online(kind=OnlineHead, **settings):  # type: ignore[no-untyped-def]
    defaults = {"lr": 0.05, "generator": torch_generator(0, "head")}
    return kind(24, K, **(defaults | settings))


def test_first_sgd_step_by_hand() -> None:
    head = online()
    head.update(PHI, LABELS)
    slope = torch.full((len(LABELS), K), 1 / K) - onehot(torch.arange(K)).float()
    expected = -0.05 * PHI.float().T @ slope / len(LABELS)
    assert relative(head.parameters[0].detach().T, expected) < 1e-5


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_descent_is_torchs(optimizer: str) -> None:
    head = online(optimizer=optimizer, hidden=4)
    copies = [p.detach().clone().requires_grad_() for p in head.parameters]
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
    reference = kind(copies, lr=0.05)
    for step in range(5):
        for p in copies:
            p.grad = torch.randn(p.shape, generator=torch_generator(step, "gradient", *p.shape))
        head.descend([p.grad.clone() for p in copies])
        reference.step()
    for p, q in zip(head.parameters, copies, strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_unseen_classes_are_never_predicted_nor_trained() -> None:
    head = online()
    few = LABELS >= 4
    head.update(PHI[few], LABELS[few])
    assert set(head.predict(PHI).tolist()) <= {4, 5}
    assert not head.parameters[0][:4].any()


def test_fisher_of_ewc_is_the_mean_squared_gradient() -> None:
    ewc = online(EWC, lr=0.0)
    ewc.update(PHI[:20], LABELS[:20])
    total = torch.zeros(24, K)
    for i in range(20):
        weight = ewc.parameters[0].detach().T.clone().requires_grad_()
        scores = (PHI[i].float() @ weight).masked_fill(~ewc.is_seen, -torch.inf)
        torch.nn.functional.cross_entropy(scores[None], LABELS[i : i + 1]).backward()
        assert weight.grad is not None
        total += weight.grad**2
    assert relative(ewc.running[0].T, ewc.fisher_rate * total / 20) < 1e-5
    with pytest.raises(ValueError, match="hidden must be 0"):
        online(EWC, hidden=8)


def test_penalties_vanish_with_their_weights_and_hold_back_with_them() -> None:
    stream = blurry(r_disjoint=1.0)
    plain = feed(online(), stream)
    for kind, name in ((LwF, "distill_weight"), (EWC, "spring")):
        free = feed(online(kind, **{name: 0.0}), stream)
        assert relative(free.parameters[0].detach(), plain.parameters[0].detach()) < 1e-5
    first, second = LABELS < 3, LABELS >= 3
    drift = []
    for spring in (0.0, 1e3):
        ewc = online(EWC, spring=spring, lr=0.01)
        ewc.update(PHI[first], LABELS[first])
        ewc.begin_task()
        start = ewc.parameters[0].detach().clone()
        for _ in range(20):
            ewc.update(PHI[second], LABELS[second])
        drift.append((ewc.running[0] * (ewc.parameters[0].detach() - start) ** 2)[:3].sum().item())
    assert drift[1] < 0.5 * drift[0]


def test_replay_prevents_forgetting() -> None:
    first, second = LABELS < 3, LABELS >= 3
    recall = []
    for size in (0, 200):
        head = online(memory_size=size, n_steps=10, lr=0.1)
        for part in (first, second):
            for _ in range(5):
                head.update(PHI[part], LABELS[part])
        recall.append((head.predict(PHI[first]) == LABELS[first]).double().mean().item())
    assert recall[0] < 0.1 < 0.4 < recall[1]


def test_hidden_head_trains_and_bad_optimizer_is_refused() -> None:
    head = online(hidden=32, n_steps=60, lr=0.1)
    head.update(PHI, LABELS)
    assert (head.predict(PHI) == LABELS).double().mean() > 0.6
    with pytest.raises(ValueError, match="optimizer must be 'sgd' or 'adam', got 'lbfgs'"):
        online(optimizer="lbfgs")


def test_joint_logistic_is_sklearns_in_whitened_variables() -> None:
    moment = PHI.T @ PHI / len(PHI)
    moment.diagonal().add_(1e-5 * moment.diagonal().mean())
    chol = torch.linalg.cholesky(moment)
    white = torch.linalg.solve_triangular(chol, PHI.T, upper=False).T
    ours = joint_logistic(PHI, LABELS, K, weight_decay=0.01, max_iter=300)
    reference = LogisticRegression(C=1 / (0.01 * len(LABELS)), fit_intercept=False, tol=1e-8, max_iter=2000)
    reference.fit(white.numpy(), LABELS.numpy())
    assert relative(chol.T @ ours.double(), torch.from_numpy(reference.coef_.T.copy())) < 1e-2


def test_families_of_rivals() -> None:
    seed = torch_generator(0, "rival")
    hidden = gradient_rival("hidden ER", 24, K, memory_size=7, hidden=5, generator=seed)
    assert hidden.parameters[0].shape == (5, 24)
    assert hidden.memory is not None
    assert hidden.memory.size == 7
    assert gradient_rival("balanced ER", 24, K, memory_size=7, generator=seed).memory.is_balanced
    assert isinstance(gradient_rival("LwF", 24, K, generator=seed), LwF)
    with pytest.raises(ValueError, match=r"name must be one of fine-tuning, .*got 'SGD'"):
        gradient_rival("SGD", 24, K, generator=seed)
    with pytest.raises(ValueError, match="memory_size must be positive for replay and 0 otherwise, got 0 for 'ER'"):
        gradient_rival("ER", 24, K, generator=seed)


def test_every_variant_reads_its_buffer() -> None:
    raw = torch.randn(240, 5, generator=torch_generator(0, "raw"))
    weights = buffer_weights(5, 24, generator=torch_generator(0, "buffer"))
    for name in VARIANTS:
        phi = variant_buffer(name, raw, weights, raw[:24], 3.0)
        learner = feed(make_variant(name, 24), blurry(), 32, phi=phi)
        assert learner.predict(phi).shape == (240,)
    with pytest.raises(ValueError, match=r"variant must be one of gacil, .*got 'ranpac'"):
        make_variant("ranpac", 24)


def test_joint_gap_measures_what_it_says() -> None:
    head = feed(GACIL(24, gamma=GAMMA), blurry())
    assert joint_gap(head, PHI, LABELS, GAMMA) < 1e-8
    joint = joint_ridge(PHI, onehot(head.classes), GAMMA)
    head.weights = head.weights + 0.25 * joint.abs().max()
    assert joint_gap(head, PHI, LABELS, GAMMA) == pytest.approx(0.25, rel=1e-6)


def test_grid_search_ranks_by_a_auc() -> None:
    data = (PHI, LABELS)
    ranked = grid_search(lambda lr: online(lr=lr), {"lr": [1e-6, 0.1]}, blurry(), data, data)
    assert ranked[0][1] == {"lr": 0.1}
    assert ranked[0][0] > ranked[1][0]


# --- backbone ---------------------------------------------------------------------------------------------------


def images(n: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    generator = numpy_generator(0, "images")
    labels = torch.arange(n) % 2
    pixels = 0.2 * generator.random((n, 3, 16, 16)) + 0.6 * labels.numpy()[:, None, None, None]
    return torch.from_numpy(pixels).float(), labels


def test_base_training_learns_and_freezes() -> None:
    x, labels = images()
    model = train_base(
        x, labels, 2, n_epochs=8, batch_size=12, lr=0.05, n_warmup=1, is_augmented=False,
        seed_generator=torch_generator(0, "base"),
    )  # fmt: skip
    assert not model.training
    features = extract_features(model, x, batch_size=10)
    assert features.shape == (24, 64)
    assert torch.allclose(features, extract_features(model, x, batch_size=24), atol=1e-5)
    gap = (features[labels == 0].mean(0) - features[labels == 1].mean(0)).norm()
    assert gap > 3 * features[labels == 0].std(0).norm()
    with pytest.raises(ValueError, match="needs evaluation mode"):
        extract_features(model.train(), x)


def test_rehearsal_stops_after_two_steps() -> None:
    x, labels = images()
    settings = {"batch_size": 4, "n_epochs": 300, "max_steps": 2, "n_warmup": 1}
    a, b = (train_base(x, labels, 2, **settings, seed_generator=torch_generator(0, "b")) for _ in range(2))
    assert torch.equal(a.network.head.weight, b.network.head.weight)
    assert int(a.network.stem[1].num_batches_tracked) == 2


def test_features_of_a_rehearsed_image_set() -> None:
    budget = Budget("rehearsal")
    settings = {"n_base": 50, "n_epochs": 300, "budget": budget}
    (x, y), (x_test, y_test) = image_features("cifar100", "resnet32", seed=0, **settings)
    assert x.shape == (200, 64)
    assert torch.bincount(y).tolist() == [2] * 100
    assert torch.bincount(y_test).tolist() == [1] * 100
    assert x_test.shape == (100, 64)
    with pytest.raises(ValueError, match="backbone must be one of identity, resnet32, deit_small, got 'vgg'"):
        image_features("cifar100", "vgg", seed=0, **settings)


def test_raw_features_use_constant_scales() -> None:
    x, labels = raw_features("letter")
    assert x.shape == (20000, 16)
    assert float(x.min()) == -3.0
    assert float(x.max()) == 3.0
    assert int(labels.max()) == 25
    for name in ("optdigits", "mnist5k"):
        raster, _ = raw_features(name)
        assert raster.shape[1] == 64
        assert 0 <= float(raster.min()) < float(raster.max()) <= 1
    with pytest.raises(ValueError, match="needs dataset in letter, penbased, optdigits, mnist5k, got 'cifar100'"):
        raw_features("cifar100")


def test_backbone_normalises_by_its_constants() -> None:
    x, _ = images(6)
    frozen = FrozenBackbone(torch.nn.Flatten(), x.mean(dim=(0, 2, 3)), x.std(dim=(0, 2, 3))).eval()
    flat = extract_features(frozen, x, batch_size=4).reshape(6, 3, -1)
    assert flat.mean(dim=(0, 2)).abs().max() < 1e-5
    assert (flat.transpose(0, 1).reshape(3, -1).std(dim=1) - 1).abs().max() < 1e-4
    assert FrozenBackbone(torch.nn.Flatten(), torch.zeros(3), torch.ones(3), side=4).eval()(x).shape == (6, 48)


def test_augmentation_keeps_range_and_shape() -> None:
    x, _ = images(200)
    out = trivial_augment(x, generator=torch_generator(0, "augment"))
    assert out.shape == x.shape
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1
    unchanged = (out - x).abs().amax(dim=(1, 2, 3)) < 1e-4
    assert 3 <= int(unchanged.sum()) < 60  # the identity is one of fourteen operations
    cropped = crop_and_flip(x, padding=0, generator=torch_generator(0, "crop"))
    is_flip = (cropped == x.flip(3)).all(dim=3).all(dim=2).all(dim=1)
    is_same = (cropped == x).all(dim=3).all(dim=2).all(dim=1)
    assert (is_flip | is_same).all()
    assert 60 < int(is_flip.sum()) < 140


def test_missing_timm_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_timm(name: str, *args, **kwargs):  # type: ignore[no-untyped-def]
        if name == "timm":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_timm)
    with pytest.raises(ImportError, match=r"needs timm, which is not installed: pip install -r requirements-full"):
        deit_small()
