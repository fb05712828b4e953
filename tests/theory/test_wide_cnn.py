"""Properties of hierarchical kernels, their spectra and learning curves; check numbers are the brief's."""

import math

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import laplacian_kernel, rbf_kernel
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from glocal.data.types import ImageData, Splits
from glocal.seeding import torch_generator
from glocal.theory.wide_cnn import (
    arc_cosine,
    effective_dimension,
    gram,
    hierarchical_kernels,
    multisphere_inputs,
    patch_cosines,
    receptive_field,
)
from glocal.theory.wide_cnn_baselines import (
    fully_connected_kernels,
    stationary_kernel,
    tuned_predictions,
    whole_cosines,
)
from glocal.theory.wide_cnn_images import (
    accuracies,
    block_patches,
    image_pool,
    quad_tree_filters,
    quad_tree_order,
)
from glocal.theory.wide_cnn_network import empirical_kernels, init_network, network
from glocal.theory.wide_cnn_regression import (
    fit_exponent,
    jittered_cholesky,
    nested_predictions,
    relative_errors,
    sample_fields,
    teacher_student_curves,
)
from glocal.theory.wide_cnn_spectrum import (
    predicted_curve,
    predicted_exponent,
    torus_spectrum,
    unreachable_share,
)


def generator(*names):
    return torch_generator(0, *names)


def points(n, d=8, patch=2, name="points"):
    return multisphere_inputs(n, d, patch, generator=generator(name))


def cosines(*values):
    return torch.tensor(values, dtype=torch.float64)


# Check 1


def test_arc_cosine_kernels_have_their_known_values_and_one_is_the_others_derivative():
    t = torch.linspace(-0.99, 0.99, 101, dtype=torch.float64)
    step = 1e-6
    slope = (arc_cosine(t + step)[1] - arc_cosine(t - step)[1]) / (2 * step)
    assert (slope - arc_cosine(t)[0]).abs().max() < 1e-6
    kappa0, kappa1 = arc_cosine(cosines(-1.0, 0.0, 1.0, 1 + 1e-9))
    torch.testing.assert_close(kappa1, cosines(0.0, 1 / math.pi, 1.0, 1.0))
    torch.testing.assert_close(kappa0, cosines(0.0, 0.5, 1.0, 1.0))


def test_arc_cosine_kernels_are_expectations_over_gaussians():
    nodes = torch.linspace(0, 2 * torch.pi, 200_001, dtype=torch.float64)[:-1]  # angle of a planar Gaussian
    for angle in (0.3, 1.2, 2.5):
        u, v = torch.cos(nodes), torch.cos(nodes - angle)
        kappa0, kappa1 = arc_cosine(cosines(math.cos(angle)))
        assert 2 * ((u > 0) & (v > 0)).double().mean().item() == pytest.approx(kappa0.item(), abs=1e-4)
        # E r^2 = 2 for the squared radius, so 2 E[relu relu] = 4 times the angular mean
        assert 4 * (u.relu() * v.relu()).mean().item() == pytest.approx(kappa1.item(), abs=1e-8)


def test_singular_parts_at_coinciding_points():
    gap = 1e-6
    kappa0, kappa1 = arc_cosine(cosines(1 - gap))
    assert (1 - kappa0.item()) / gap**0.5 == pytest.approx(math.sqrt(2) / math.pi, rel=1e-3)
    gap = 1e-4
    kappa1 = arc_cosine(cosines(1 - gap))[1]
    assert (kappa1.item() - (1 - gap)) / gap**1.5 == pytest.approx(2 * math.sqrt(2) / (3 * math.pi), rel=1e-3)


# Check 2


@pytest.mark.parametrize(("d", "filters"), [(8, [2]), (8, [2, 2, 2]), (12, [3, 2]), (18, [3, 2, 3])])
def test_diagonal(d, filters):
    kernels = gram(points(5, d, filters[0]), filters=filters)
    for (depth, kind), kernel in kernels.items():
        expected = 1.0 if kind == "rfk" else depth + 1.0
        assert (kernel.diagonal() - expected).abs().max() < 1e-14


# Check 3


def test_one_patch_and_one_layer_is_the_fully_connected_kernel():
    x = points(6, 4, 4)
    t = whole_cosines(x, x)
    kappa0, kappa1 = arc_cosine(t)
    ours = hierarchical_kernels(patch_cosines(x, x), [4])
    torch.testing.assert_close(ours[1, "ntk"], kappa0 * t + kappa1)
    torch.testing.assert_close(ours[1, "rfk"], kappa1)
    rfk, ntk = fully_connected_kernels(t, 1)
    torch.testing.assert_close(ntk, kappa0 * t + kappa1)
    torch.testing.assert_close(rfk, kappa1)
    deep = fully_connected_kernels(t, 3)
    same = hierarchical_kernels(t[None], [4, 1, 1])
    torch.testing.assert_close(deep[0], same[3, "rfk"])
    torch.testing.assert_close(deep[1], same[3, "ntk"])


def test_the_example_by_hand():
    kernels = hierarchical_kernels(cosines(1.0, 0.0), [2, 2])
    assert kernels[1, "rfk"].item() == pytest.approx((1 + 1 / math.pi) / 2)
    assert kernels[1, "ntk"].item() == pytest.approx((2 + 1 / math.pi) / 2)
    kappa0, kappa1 = (part.item() for part in arc_cosine(kernels[1, "rfk"]))
    assert kernels[2, "rfk"].item() == pytest.approx(kappa1)
    assert kernels[2, "ntk"].item() == pytest.approx(kappa0 * (2 + 1 / math.pi) / 2 + kappa1)


def test_filters_group_consecutive_patches():
    c = cosines(0.1, -0.4, 0.7, 0.2, 0.9, -0.8)
    kernels = hierarchical_kernels(c, [2, 3, 2])
    kappa0, kappa1 = arc_cosine(c)
    theta = (kappa0 * c + kappa1).view(2, 3).mean(1)
    middle = kappa1.view(2, 3).mean(1)
    kappa0, kappa1 = arc_cosine(middle)
    torch.testing.assert_close(kernels[2, "rfk"], kappa1.mean())
    theta = (kappa0 * theta + kappa1).mean()
    torch.testing.assert_close(kernels[2, "ntk"], theta)
    kappa0, kappa1 = arc_cosine(kappa1.mean())
    torch.testing.assert_close(kernels[3, "ntk"], kappa0 * theta + kappa1)


# Check 4


@pytest.mark.parametrize(("d", "filters"), [(8, [2, 2, 2]), (12, [3, 2])])
def test_wide_networks_have_these_kernels(d, filters):
    x = points(4, d, filters[0], "wide")
    exact = gram(x, filters=filters, depths=[len(filters)])
    positions = d // receptive_field(filters)
    errors = {}
    for width in (128, 2048):
        draws = [
            empirical_kernels(init_network(filters, positions, width, generator=generator("net", width, i)), x, filters)
            for i in range(5)
        ]
        for kind, found in zip(("rfk", "ntk"), zip(*draws, strict=True), strict=True):
            truth = exact[len(filters), kind]
            errors[kind, width] = ((torch.stack(found) - truth).norm(dim=(1, 2)) / truth.norm()).mean().item()
            if width == 2048:
                assert (torch.stack(found).mean(0) - truth).norm() < 0.05 * truth.norm()
    for kind in ("rfk", "ntk"):  # sixteen times the width, a quarter of the error
        assert 0.1 < errors[kind, 2048] / errors[kind, 128] < 0.5


@pytest.mark.parametrize("filters", [[2, 2, 2], [2, 2], [2]])
def test_empirical_tangent_kernel_is_the_product_of_jacobians(filters):
    x, positions = points(4, 8, 2, "jac"), 8 // receptive_field(filters)
    weights = init_network(filters, positions, 24, generator=generator("jac"))
    jacobians = torch.func.jacrev(lambda w: network(w, x, filters))(weights)
    expected = sum(j.flatten(1) @ j.flatten(1).T for j in jacobians)
    rfk, ntk = empirical_kernels(weights, x, filters)
    torch.testing.assert_close(ntk, expected)
    torch.testing.assert_close(rfk, jacobians[-1].flatten(1) @ jacobians[-1].flatten(1).T)


# Check 5


def test_gram_is_symmetric_positive_and_equal_to_one_dense_evaluation():
    x = points(60)
    blocks = gram(x, filters=[2, 2, 2], block_elements=500)
    dense = hierarchical_kernels(patch_cosines(x, x), [2, 2, 2])
    for key, kernel in blocks.items():
        assert torch.equal(kernel, kernel.T) or (kernel - kernel.T).abs().max() < 1e-12
        assert (kernel - dense[key]).abs().max() < 1e-7  # the dense diagonal carries sqrt(eps)
        assert torch.linalg.eigvalsh(kernel).min() > -1e-10
    rectangle = gram(x[:7], x, filters=[2, 2, 2], depths=[2], kinds=["ntk"], block_elements=500)
    assert list(rectangle) == [(2, "ntk")]
    assert (rectangle[2, "ntk"] - blocks[2, "ntk"][:7]).abs().max() < 1e-7


def test_symmetries_are_those_of_the_tree():
    x, y = points(5, name="x"), points(5, name="y")

    def kernel(order):
        return gram(x[:, order], y[:, order], filters=[2, 2, 2], depths=[3])[3, "ntk"]

    torch.testing.assert_close(kernel([2, 3, 0, 1]), kernel([0, 1, 2, 3]))  # two top-level blocks
    torch.testing.assert_close(kernel([1, 0, 2, 3]), kernel([0, 1, 2, 3]))  # two patches of one field
    assert (kernel([0, 2, 1, 3]) - kernel([0, 1, 2, 3])).abs().max() > 1e-3  # patches of two fields
    mixed_x, mixed_y = (part.flatten(1)[:, [2, 1, 0, 3, 4, 5, 6, 7]].view(5, 4, 2) for part in (x, y))
    mixed_x, mixed_y = (part / part.norm(dim=-1, keepdim=True) for part in (mixed_x, mixed_y))
    changed = gram(mixed_x, mixed_y, filters=[2, 2, 2], depths=[3])[3, "ntk"]
    assert (changed - kernel([0, 1, 2, 3])).abs().max() > 1e-3  # coordinates of two patches


def test_inputs_lie_on_the_multisphere():
    x = points(20_000, 6, 3)
    assert x.shape == (20_000, 2, 3)
    assert (x.norm(dim=-1) - 1).abs().max() < 1e-14
    assert x.mean(0).abs().max() < 0.02
    assert (torch.einsum("nps,nqt->psqt", x, x) / 20_000).view(6, 6).sub(torch.eye(6) / 3).abs().max() < 0.02


def test_dimensions():
    assert [effective_dimension([2] * depth) for depth in (1, 2, 3)] == [1, 2, 4]
    assert effective_dimension([3, 2]) == 4
    assert receptive_field([3, 2, 4]) == 24


# Check 6


def test_regression_interpolates_and_equals_sklearn_for_every_size():
    x = points(150, name="regression")
    kernel = gram(x, filters=[2, 2, 2], depths=[3], kinds=["ntk"])[3, "ntk"]
    targets = sample_fields(kernel, 3, generator=generator("fields"))
    sizes = [10, 50, 100]
    ours = nested_predictions(kernel[:100, :100], kernel[:100], targets[:100], sizes)
    for size, prediction in zip(sizes, ours, strict=True):
        assert (prediction[:size] - targets[:size]).abs().max() < 1e-8
        model = KernelRidge(kernel="precomputed", alpha=1e-10 * 4).fit(kernel[:size, :size], targets[:size])
        expected = torch.from_numpy(model.predict(kernel[:, :size]))
        assert (prediction - expected).abs().max() < 1e-6


def test_ridge_is_relative_to_the_diagonal():
    x = points(40, name="ridge")
    kernel = gram(x, filters=[2, 2], depths=[2], kinds=["ntk"])[2, "ntk"]
    targets = sample_fields(kernel, 2, generator=generator("fields"))
    ours = nested_predictions(kernel[:30, :30], kernel[:30], targets[:30], [30], ridge=0.1)[0]
    model = KernelRidge(kernel="precomputed", alpha=0.3).fit(kernel[:30, :30], targets[:30])
    assert (ours - torch.from_numpy(model.predict(kernel[:, :30]))).abs().max() < 1e-10


@pytest.mark.parametrize(("teacher", "student"), [(1, 3), (3, 3), (3, 1)])
def test_sampled_errors_have_the_exact_mean_over_teachers(teacher, student):
    x = points(90, name="mean")
    kernels = gram(x, filters=[2, 2, 2], kinds=["ntk"])
    k_s, k_t = kernels[student, "ntk"], kernels[teacher, "ntk"]
    weights = torch.linalg.solve(k_s[:60, :60] + 1e-10 * k_s[0, 0] * torch.eye(60), k_s[:60, 60:])
    exact = (k_t[60:, 60:].diagonal() - 2 * (weights * k_t[:60, 60:]).sum(0)).mean()
    exact += (weights * (k_t[:60, :60] @ weights)).sum(0).mean()
    fields = sample_fields(k_t, 20_000, generator=generator("fields"))
    found = nested_predictions(k_s[:60, :60], k_s[:60, 60:], fields[:60], [60])[0] - fields[60:]
    assert found.square().mean().item() == pytest.approx(exact.item(), rel=0.02)


def test_errors_are_in_units_of_the_variance():
    truth = torch.randn(400, 5, generator=generator("truth"), dtype=torch.float64)
    mean = truth.mean(0).expand(1, 400, 5)
    assert relative_errors(mean, 3 * truth + 7).shape == (1,)
    assert relative_errors(3 * mean + 7, 3 * truth + 7).item() == pytest.approx(399 / 400)


def test_exponents_of_power_laws():
    errors = torch.stack([torch.tensor([64.0, 128.0, 512.0], dtype=torch.float64) ** -b for b in (0.25, 3.0)])
    torch.testing.assert_close(fit_exponent([64, 128, 512], 7 * errors), cosines(-0.25, -3.0))


# Check 7


def test_circulant_gram_has_the_eigenvalues_of_its_first_row():
    n = 64
    angles = 2 * torch.pi * torch.arange(n, dtype=torch.float64) / n
    x = torch.stack([angles.cos(), angles.sin()], 1)[:, None]
    spectrum = torus_spectrum([2], [n // 2])
    for kind in ("rfk", "ntk"):
        kernel = gram(x, filters=[2], kinds=[kind])[1, kind]
        eigenvalues = torch.linalg.eigvalsh(kernel) / n
        from_row = torch.fft.fft(kernel[0]).real.sort().values / n
        assert (eigenvalues - from_row).abs().max() < 1e-9
        # rounded cosines near one move a kernel value by sqrt(eps): the cosine transform is the exact one
        repeated = np.sort(np.repeat(spectrum.values[1, kind], spectrum.multiplicity.astype(int)))
        assert np.abs(eigenvalues.numpy() - repeated).max() < 1e-9


def test_circulant_identity_to_twelve_digits():
    angle = 2 * torch.pi * torch.arange(64, dtype=torch.float64) / 64
    row = hierarchical_kernels(angle.cos()[None], [2])[1, "ntk"]
    matrix = torch.stack([row.roll(i) for i in range(64)])
    assert (torch.linalg.eigvalsh(matrix) - torch.fft.fft(row).real.sort().values).abs().max() < 1e-12


def test_parity_and_decay_on_one_circle():
    spectrum = torus_spectrum([2], [2048])
    for kind, slope in (("ntk", -2), ("rfk", -4)):
        values = spectrum.values[1, kind]
        assert values[1] > values[2] > 0  # the first odd mode is there
        assert values[3:200:2].max() < 1e-15  # the others are not
        k = np.arange(20, 200, 2)
        assert np.polyfit(np.log(k), np.log(values[k]), 1)[0] == pytest.approx(slope, abs=0.02)


def test_spectrum_in_sectors_equals_the_transform_of_the_whole_grid():
    half = 6
    circle = torch.cos(torch.pi * torch.arange(2 * half, dtype=torch.float64) / half)
    grid = torch.stack(torch.meshgrid(*[circle] * 4, indexing="ij"))
    spectrum = torus_spectrum([2, 2, 2], [half] * 3, coarse=half)
    assert spectrum.multiplicity.sum() == (2 * half) ** 4
    for key, table in hierarchical_kernels(grid, [2, 2, 2]).items():
        exact = torch.fft.fftn(table).real.numpy() / table.numel()
        assert np.abs(exact[tuple(spectrum.waves.T)] - spectrum.values[key]).max() < 1e-10
        trace = spectrum.multiplicity @ spectrum.values[key]
        assert trace == pytest.approx(1 if key[1] == "rfk" else key[0] + 1, abs=1e-7)
        assert spectrum.values[key][spectrum.sectors > key[0]].max(initial=0) < 1e-15
    # modes (1, 0, 0, 1) and (1, 1, 0, 0) are of different sectors
    found = {tuple(k): s for k, s in zip(spectrum.waves.tolist(), spectrum.sectors.tolist(), strict=True)}
    assert found[0, 0, 0, 0] == 0
    assert found[3, 0, 0, 0] == 1
    assert found[1, 1, 0, 0] == 2
    assert found[1, 0, 0, 1] == 3


def test_fields_of_a_shallow_network_share_out_the_spectrum():
    one, two = torus_spectrum([2], [32]), torus_spectrum([2], [32], n_fields=2)
    deep = torus_spectrum([2, 2], [32, 4], coarse=32)
    for kind in ("rfk", "ntk"):
        values, whole = two.values[1, kind], deep.values[1, kind][deep.sectors <= 1]
        assert np.abs(values - whole).max() < 1e-12
        assert two.multiplicity @ values == pytest.approx(one.multiplicity @ one.values[1, kind])
    assert np.array_equal(two.multiplicity, deep.multiplicity[deep.sectors <= 1])
    assert two.multiplicity[:2].tolist() == [1, 4]


@pytest.mark.parametrize(("kind", "nu"), [("ntk", 0.5), ("rfk", 1.5)])
def test_sectors_decay_with_their_dimension(kind, nu):
    spectrum = torus_spectrum([2, 2], [512, 256])
    k = np.arange(16, 33, 2)
    for sector, second in ((1, 0 * k), (2, k)):
        rows = {tuple(w): i for i, w in enumerate(spectrum.waves.tolist())}
        values = spectrum.values[2, kind][[rows[pair] for pair in zip(k.tolist(), second.tolist(), strict=True)]]
        assert np.polyfit(np.log(k), np.log(values), 1)[0] == pytest.approx(-2 * nu - sector, abs=0.1)


# learning curves from spectra


def test_predicted_curve_of_a_flat_spectrum_is_that_of_linear_regression():
    """n equal modes: tau grows linearly, and without ridge the error is 1 - P/n."""
    spectrum = torus_spectrum([2], [64])
    flat = {(1, "ntk"): np.where(spectrum.sectors > 0, 1.0, 0.0)}
    spectrum = type(spectrum)(spectrum.waves, spectrum.multiplicity, spectrum.sectors, flat)
    curve = predicted_curve(spectrum, (1, "ntk"), (1, "ntk"), [10, 50, 100], ridge=0.0)
    np.testing.assert_allclose(curve, 1 - np.array([10, 50, 100]) / 127, rtol=1e-6)


# Gaussian features are an approximation; with two angles it misses a third of the smooth kernel's prefactor
@pytest.mark.parametrize(("kind", "factor"), [("rfk", 1.5), ("ntk", 1.2)])
def test_predicted_curves_are_those_of_regression(kind, factor):
    filters, sizes = [2, 2], [64, 256]
    pairs = [(1, 1, kind), (1, 2, kind), (2, 2, kind), (2, 1, kind)]
    spectrum = torus_spectrum(filters, [1024, 96])
    runs = [
        teacher_student_curves(
            d=4, filters=filters, pairs=pairs, sizes=sizes, n_test=256, fields=24, generator=generator("curve", i)
        )
        for i in range(4)
    ]
    for pair in pairs[1:]:
        measured = torch.stack([run[pair] for run in runs]).log().mean(0).exp().numpy()
        predicted = predicted_curve(spectrum, (pair[0], kind), (pair[1], kind), sizes)
        np.testing.assert_allclose(np.log(measured), np.log(predicted), atol=math.log(factor))
        assert np.log(measured[0] / measured[1]) == pytest.approx(np.log(predicted[0] / predicted[1]), abs=0.25)
    floor = unreachable_share(spectrum, (2, kind), 1)
    assert torch.stack([run[2, 1, kind] for run in runs]).min() > floor
    assert 0.05 < floor < 0.5


def test_predicted_curves_tend_to_the_exponents():
    spectrum = torus_spectrum([2, 2], [4096, 192])
    sizes = [512, 1024, 2048]
    for kind in ("rfk", "ntk"):
        for teacher in (1, 2):
            curve = torch.from_numpy(predicted_curve(spectrum, (teacher, kind), (2, kind), sizes, ridge=1e-14))
            expected = predicted_exponent(kind, teacher, 2)
            assert -fit_exponent(sizes, curve).item() == pytest.approx(expected, rel=0.08)


def test_exponents_of_matched_and_of_infinitely_deep_students():
    for kind, two_nu in (("ntk", 1.0), ("rfk", 3.0)):
        assert predicted_exponent(kind, 4, 4) == pytest.approx(two_nu / 4)
        assert predicted_exponent(kind, 1, 10**9) == pytest.approx(two_nu / (two_nu + 1))
    assert predicted_exponent("ntk", 1, 4) == pytest.approx(5 / 8)
    assert predicted_exponent("rfk", 1, 4) == pytest.approx(21 / 16)


# Check 8


@pytest.mark.parametrize("kind", ["rfk", "ntk"])
def test_fields_have_the_teachers_covariance(kind):
    kernel = gram(points(5, name="grf"), filters=[2, 2], depths=[2], kinds=[kind])[2, kind]
    fields = sample_fields(kernel, 20_000, generator=generator("grf"))
    assert (fields @ fields.T / 20_000 - kernel).abs().max() < 0.03 * kernel.max()


# baselines


def test_stationary_kernels_equal_sklearn():
    x = points(12, name="rbf")
    flat, scale = x.flatten(1).numpy(), math.sqrt(8)  # four patches: independent points are sqrt(8) apart
    ours = stationary_kernel(x, x, name="gaussian", bandwidth=0.5).numpy()
    np.testing.assert_allclose(ours, rbf_kernel(flat, gamma=1 / (2 * (0.5 * scale) ** 2)))
    laplace = stationary_kernel(x[:, :1], x[:, :1], name="laplace", bandwidth=0.5)
    distance = torch.cdist(x[:, 0], x[:, 0]).flatten()[:, None].numpy()
    expected = laplacian_kernel(distance, np.zeros((1, 1)), gamma=1 / (0.5 * math.sqrt(2))).reshape(12, 12)
    np.testing.assert_allclose(laplace.numpy(), expected, atol=1e-7)


def test_fully_connected_kernel_ignores_the_order_of_coordinates():
    x, y = points(4, name="x"), points(4, name="y")
    order = torch.randperm(8, generator=generator("order"))
    mixed = [part.flatten(1)[:, order].view(4, 4, 2) for part in (x, y)]
    torch.testing.assert_close(whole_cosines(*mixed), whole_cosines(x, y))
    torch.testing.assert_close(whole_cosines(x, y), patch_cosines(x, y).mean(0))


def test_tuning_takes_the_best_leave_one_out_of_sklearn():
    x = points(50, name="loo")
    own = gram(x, filters=[2, 2, 2], depths=[3], kinds=["ntk"])[3, "ntk"]
    kernels = [own, stationary_kernel(x, x, name="gaussian", bandwidth=0.5)]
    fields = sample_fields(own, 3, generator=generator("loo"))
    noisy = fields + 0.7 * torch.randn(fields.shape, generator=generator("noise"), dtype=torch.float64)
    ridges = [1e-4, 0.1, 1.0]
    ours = tuned_predictions([(k[:30, :30], k[:30, 30:]) for k in kernels], noisy[:30], ridges)
    for column in range(3):
        scores = {}
        for i, k in enumerate(kernels):
            for ridge in ridges:
                model = KernelRidge(kernel="precomputed", alpha=ridge * k[0, 0].item())
                left_out = cross_val_predict(model, k[:30, :30].numpy(), noisy[:30, column].numpy(), cv=LeaveOneOut())
                scores[i, ridge] = np.mean((left_out - noisy[:30, column].numpy()) ** 2)
        i, ridge = min(scores, key=scores.get)
        model = KernelRidge(kernel="precomputed", alpha=ridge * kernels[i][0, 0].item())
        expected = model.fit(kernels[i][:30, :30], noisy[:30, column]).predict(kernels[i][30:, :30])
        np.testing.assert_allclose(ours[:, column], expected, atol=1e-8)


# images


def test_quad_tree_fields_are_squares():
    order = quad_tree_order(8)
    assert sorted(order.tolist()) == list(range(64))
    for size in (4, 16):
        for start in range(0, 64, size):
            rows, columns = order[start : start + size] // 8, order[start : start + size] % 8
            assert (rows.max() - rows.min(), columns.max() - columns.min()) == (size**0.5 - 1, size**0.5 - 1)
            assert rows.min() % int(size**0.5) == 0
    assert quad_tree_filters(1, 8, 2) == [4, 4, 4]
    assert quad_tree_filters(3, 32, 2) == [12, 4, 4, 4, 4]


def test_blocks_are_squares_of_pixels_of_unit_length():
    images = torch.rand(3, 2, 8, 8, generator=generator("images"))
    patches = block_patches(images, offset=0.5)
    assert patches.shape == (3, 16, 8)
    cell = images[1, :, 2:4, 6:8].double().flatten() + 0.5  # row 1, column 3 of the cells: position 7 of the tree
    torch.testing.assert_close(patches[1, 7], cell / cell.norm())
    order = torch.randperm(64, generator=generator("pixels"))
    mixed = images.flatten(2)[:, :, order].view_as(images)
    torch.testing.assert_close(block_patches(images, order=order), block_patches(mixed))


def test_accuracies_and_the_pool():
    images = torch.rand(40, 1, 4, 4, generator=generator("pool"))
    labels = torch.arange(40) % 4
    images += 3 * torch.eye(4)[labels][:, None, None, :]  # the class is a bright column
    parts = [ImageData(images[i], labels[i], ("a", "b", "c", "d")) for i in (slice(30), slice(30, 40))]
    pool = image_pool(Splits(*parts))
    assert torch.equal(pool.labels, labels)
    assert image_pool(parts[0]) is parts[0]
    kernel = gram(block_patches(pool.images), filters=[4, 4], depths=[2], kinds=["ntk"])[2, "ntk"]
    found = accuracies(kernel[:30, :30], kernel[:30, 30:], labels[:30], labels[30:], [4, 30], n_classes=4)
    assert found.tolist() == [1.0, 1.0]
    wrong = accuracies(kernel[:30, :30], kernel[:30, 30:], labels[:30], labels[30:].flip(0), [30], n_classes=4)
    assert wrong.item() == (labels[30:] == labels[30:].flip(0)).double().mean().item()


# errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: points(2, 7), "patch must divide d, got d=7 and patch=2"),
        (lambda: gram(points(2, 6), filters=[2, 2]), "3 patches cannot be grouped by the filters"),
        (lambda: gram(points(2), filters=[2], kinds=["nngp"]), "kind must be one of rfk, ntk, got 'nngp'"),
        (lambda: hierarchical_kernels(cosines(0.0, 0.0), [2, 2], depths=[3]), "depths must be in 1..2"),
        (lambda: jittered_cholesky(-torch.eye(3), 0.0), "must be positive definite, got a failure at row 1"),
        (
            lambda: nested_predictions(torch.eye(3), torch.eye(3), torch.eye(3), [2, 4]),
            r"sizes must increase within 1..3, the training points, got \[2, 4\]",
        ),
        (lambda: fit_exponent([8], torch.ones(1)), r"a slope needs at least two sizes, got \[8\]"),
        (lambda: torus_spectrum([3], [8]), "need patches of two coordinates"),
        (lambda: torus_spectrum([2, 2], [8]), "half_grids needs one entry per filter, 2"),
        (
            lambda: predicted_curve(torus_spectrum([2], [8]), (1, "ntk"), (1, "ntk"), [20]),
            "sizes must stay below 10, the modes on this grid, got 20: refine it",
        ),
        (lambda: predicted_exponent("ntk", 4, 2), "must be at least the teacher's, got 2 < 4"),
        (
            lambda: stationary_kernel(points(2), points(2), name="rbf", bandwidth=1.0),
            "name must be gaussian or laplace, got 'rbf'",
        ),
        (lambda: quad_tree_order(14), "side must be a power of two, got 14"),
        (lambda: block_patches(torch.ones(1, 1, 4, 6)), "images must be square .* got 4 x 6"),
    ],
)
def test_errors_name_what_is_allowed_and_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
