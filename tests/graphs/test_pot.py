"""POT: the bound holds on every admissible view, is tight where it should be, and agrees with its dense form."""

import itertools
from dataclasses import replace

import networkx as nx
import pytest
import torch
import torch.nn.functional as F

from glocal.data.pyg import data_class
from glocal.graphs import pot
from glocal.graphs.pot_training import (
    ContrastiveNetwork,
    Settings,
    contrastive_loss,
    linear_probe,
    train,
)
from glocal.graphs.pot_views import (
    budgeted_deletions,
    budgets,
    degree_rates,
    dropped,
    entry_bounds,
    pattern,
    propagate,
    uniform_rates,
    whole,
)
from glocal.seeding import torch_generator

DOUBLE = torch.float64
SLOPES = (0.0, 0.25)


def pattern_of(graph: nx.Graph):
    pairs = torch.tensor(sorted(graph.edges)).reshape(-1, 2).T
    return pattern(torch.cat([pairs, pairs.flip(0)], dim=1), len(graph))


def random_graph(n: int, edges: int, seed: int = 0):
    return pattern_of(nx.gnm_random_graph(n, edges, seed=seed))


def random_encoder(seed: int, slope: float = 0.0, runs: int = 1, f: int = 4, h: int = 6, d: int = 3, bias: float = 0.5):
    g = torch_generator(seed, "encoder")
    draw = lambda *shape: torch.randn(runs, *shape, generator=g, dtype=DOUBLE)  # noqa: E731
    slopes = torch.full((runs, 1, 1), slope, dtype=DOUBLE)
    return pot.Encoder(draw(f, h), bias * draw(1, h), draw(h, d), bias * draw(1, d), slopes)


def features(n: int, seed: int = 0, f: int = 4):
    return torch.randn(n, f, generator=torch_generator(seed, "x", n), dtype=DOUBLE)


def setting(graph, encoder, x, rate, variant="sound"):
    """Messages, contrast weights of the clean graph and relaxations, for as many runs as the encoder has."""
    runs = len(encoder.weight1)
    clean = graph.operator(graph.normalized(whole(graph, runs, DOUBLE)))
    messages = encoder.messages(x)
    w = pot.contrast_weights(pot.encode(encoder, messages, clean).embeddings)
    entries = pot.entry_range(graph, entry_bounds(graph, rate, DOUBLE), runs)
    return messages, w, pot.relaxations(encoder, messages, entries, clean=clean, variant=variant)


def gaps(graph, encoder, x, rate, kept, variant="sound"):
    """z_i . w_i minus the bound, views x nodes."""
    messages, w, layers = setting(graph, encoder, x, rate, variant)
    rows = []
    for view in kept:
        operator = graph.operator(graph.normalized(view[None]))
        z = pot.encode(encoder, messages, operator).embeddings
        rows.append((z * w).sum(-1) - pot.compactness_bound(encoder, messages, operator, layers, w, variant=variant))
    return torch.cat(rows)


def admissible(graph, rate: float) -> torch.Tensor:
    """Every deletion of undirected edges that respects all budgets, by enumeration."""
    limits = budgets(graph.degrees, rate)
    edges = (graph.rows < graph.columns).nonzero().flatten()
    views = []
    for gone in itertools.product([False, True], repeat=len(edges)):
        deleted = edges[torch.tensor(gone)]
        at = torch.bincount(torch.cat([graph.rows[deleted], graph.columns[deleted]]), minlength=graph.n_nodes)
        if bool((at <= limits).all()):
            view = torch.ones(len(graph.rows), dtype=DOUBLE)
            view[deleted] = 0
            view[graph.reverse[deleted]] = 0
            views.append(view)
    return torch.stack(views)


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("graph", [nx.complete_graph(4), nx.wheel_graph(5), nx.barbell_graph(3, 1)], ids=str)
def test_no_admissible_deletion_violates_the_bounds_exhaustively(graph, slope):
    graph = pattern_of(graph)
    for rate, seed in ((0.4, 0), (0.7, 1)):
        views = admissible(graph, rate)
        assert len(views) > 5
        encoder, x = random_encoder(seed, slope), features(graph.n_nodes, seed)
        assert gaps(graph, encoder, x, rate, views).min() >= -1e-10
        messages, w, layers = setting(graph, encoder, x, rate)
        minimum = pot.certified_minimum(encoder, messages, graph, entry_bounds(graph, rate, DOUBLE), layers, w)[0]
        for view in views:
            operator = graph.operator(graph.normalized(view[None]))
            z = pot.encode(encoder, messages, operator).embeddings
            assert ((z * w).sum(-1)[0] - minimum).min() >= -1e-10
            f = pot.compactness_bound(encoder, messages, operator, layers, w)[0]
            assert (f - minimum).min() >= -1e-10


@pytest.mark.parametrize("slope", SLOPES)
def test_every_connected_graph_of_up_to_five_nodes_every_view_and_every_other_view(slope):
    """All 30 graphs, all admissible views, w from every admissible view, three drop rates."""
    tested = gap_is_open = 0
    for index, drawn in enumerate(g for g in nx.graph_atlas_g() if 2 <= len(g) <= 5 and nx.is_connected(g)):
        graph, rate = pattern_of(drawn), (0.3, 0.5, 0.8)[index % 3]
        views = admissible(graph, rate)
        runs, n = len(views), graph.n_nodes
        encoder = random_encoder(index, slope, f=3, h=4, d=2)
        encoder = replace(encoder, **{k: v.expand(runs, -1, -1) for k, v in vars(encoder).items()})
        messages = encoder.messages(features(n, index, f=3))
        operator = graph.operator(graph.normalized(views))
        z = pot.encode(encoder, messages, operator).embeddings
        bounds = entry_bounds(graph, rate, DOUBLE)
        layers = pot.relaxations(encoder, messages, pot.entry_range(graph, bounds, runs), clean=operator)
        for other in range(0, runs, max(1, runs // 12)):
            w = pot.contrast_weights(z)[other].expand(runs, -1, -1)
            margin, f = (z * w).sum(-1), pot.compactness_bound(encoder, messages, operator, layers, w)
            one = [type(layer)(layer.alpha[:1], layer.offset[:1]) for layer in layers]
            single = pot.Encoder(*(v[:1] for v in vars(encoder).values()))
            lowest = pot.certified_minimum(single, messages[:1], graph, bounds, tuple(one), w[:1])
            assert (margin - f).min() >= -1e-10
            assert (f - lowest).min() >= -1e-10
            tested += margin.numel()
            gap_is_open += int((margin - f > 1e-3).sum())
    assert index == 29
    assert tested > 2000
    assert gap_is_open > tested / 4


@pytest.mark.parametrize("slope", SLOPES)
def test_check_1_random_deletions_on_twelve_nodes(slope):
    graph, rate = random_graph(12, 24), 0.4
    encoder, x = random_encoder(3, slope), features(12)
    views = budgeted_deletions(graph, rate, 200, generator=torch_generator(0, "deletions"), dtype=DOUBLE)
    assert gaps(graph, encoder, x, rate, views).min() >= -1e-5
    messages, _, _ = setting(graph, encoder, x, rate)
    entries = pot.entry_range(graph, entry_bounds(graph, rate, DOUBLE), 1)
    low, high = entries.bounds(messages, messages)
    activated = encoder.activation(low + encoder.bias1), encoder.activation(high + encoder.bias1)
    middle, half = sum(activated) / 2 @ encoder.weight2, (activated[1] - activated[0]) / 2 @ encoder.weight2.abs()
    low2, high2 = entries.bounds(middle - half, middle + half)
    for view in views:
        hidden = pot.encode(encoder, messages, graph.operator(graph.normalized(view[None])))
        assert (hidden.pre1 - encoder.bias1 - low).min() >= -1e-10
        assert (high - (hidden.pre1 - encoder.bias1)).min() >= -1e-10
        assert (hidden.pre2 - encoder.bias2 - low2).min() >= -1e-10
        assert (high2 - (hidden.pre2 - encoder.bias2)).min() >= -1e-10


def test_the_other_variants_do_violate_it():
    worst = {"edgewise": 0.0, "official": 0.0}
    for seed in range(12):
        graph = random_graph(12, 24, seed)
        views = budgeted_deletions(graph, 0.4, 20, generator=torch_generator(seed, "deletions"), dtype=DOUBLE)
        for variant in worst:
            gap = gaps(graph, random_encoder(seed), features(12, seed), 0.4, views, variant)
            worst[variant] = min(worst[variant], float(gap.min()))
    assert worst["edgewise"] < -1e-5
    assert worst["official"] < -1e-1


def test_check_2_tight_without_budget_and_with_stable_activations():
    graph = random_graph(12, 24)
    encoder = random_encoder(0)
    encoder = replace(encoder, bias1=encoder.bias1 + 50, bias2=encoder.bias2 + 5000)
    view = whole(graph, 1, DOUBLE)
    assert gaps(graph, encoder, features(12), 0.0, view).abs().max() < 1e-5
    # with unstable activations it is loose even then, because the entry bounds let every edge vanish
    assert gaps(graph, random_encoder(0), features(12), 0.0, view).max() > 1e-2


def test_check_3_exact_for_a_linear_activation():
    graph = random_graph(12, 24)
    views = budgeted_deletions(graph, 0.6, 20, generator=torch_generator(1, "deletions"), dtype=DOUBLE)
    assert gaps(graph, random_encoder(1, slope=1.0), features(12), 0.6, views).abs().max() < 1e-5


def test_check_4_entry_bounds_of_a_path():
    graph = pattern_of(nx.path_graph(3))
    assert graph.degrees.tolist() == [1, 2, 1]
    assert budgets(graph.degrees, 0.5).tolist() == [0, 1, 0]
    low, high = entry_bounds(graph, 0.5, DOUBLE)
    entry = int(((graph.rows == 0) & (graph.columns == 1)).nonzero())
    assert abs(float(high[entry]) - 0.5) < 1e-12
    assert low[entry] == 0
    clean = float(graph.normalized(whole(graph, 1, DOUBLE))[0, entry])
    assert abs(clean - 6**-0.5) < 1e-12
    loop = int(((graph.rows == 1) & (graph.columns == 1)).nonzero())
    assert (round(float(low[loop]), 12), round(float(high[loop]), 12)) == (round(1 / 3, 12), 0.5)
    assert budgets(torch.tensor([0, 1, 3, 5]), 0.5).tolist() == [0, 0, 2, 2]  # halves go to the even neighbour


def test_check_5_contrast_weights():
    z = torch.randn(2, 7, 3, generator=torch_generator(0, "z"), dtype=DOUBLE)
    w = pot.contrast_weights(z)
    unit = F.normalize(z, dim=-1)
    for run, i in itertools.product(range(2), range(7)):
        others = sum(unit[run, j] for j in range(7) if j != i) / 6
        assert (w[run, i] - (unit[run, i] - others)).abs().max() < 1e-12
    assert w.sum(1).abs().max() < 1e-5


@pytest.mark.parametrize("slope", [0.0, 0.25, 1.0])
def test_check_6_relaxation_encloses_the_activation(slope):
    ends = torch.tensor(
        [[-2.0, 1.0], [-0.1, 3.0], [-3.0, -1.0], [0.5, 2.0], [-1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    ).double()
    low, high = ends[:, 0].view(1, 1, -1), ends[:, 1].view(1, 1, -1)
    slopes = torch.full((1, 1, 1), slope, dtype=DOUBLE)
    line = pot.relax(low, high, slopes)
    p = low + (high - low) * torch.linspace(0, 1, 101, dtype=DOUBLE).view(1, -1, 1)
    value = p.clamp_min(0) + slope * p.clamp_max(0)
    upper = line.alpha * p + line.offset
    assert (value - line.alpha * p).min() >= -1e-12
    assert (upper - value).min() >= -1e-12
    assert (upper - value)[:, [0, -1]].abs().max() < 1e-12


def test_relaxation_has_the_gradient_of_its_formula_and_none_where_the_sign_is_known():
    ends = torch.tensor([[-2.0, 1.5], [-0.1, 3.0], [-3.0, -1.0], [0.5, 2.0]]).double()
    low, high = (ends[:, k].view(1, 1, -1).requires_grad_() for k in range(2))
    slopes = torch.full((1, 1, 1), 0.25, dtype=DOUBLE)
    both = lambda a, b: tuple(vars(pot.relax(a, b, slopes)).values())  # noqa: E731
    assert torch.autograd.gradcheck(both, (low, high))
    gradients = torch.autograd.grad(sum(part.sum() for part in both(low, high)), (low, high))
    assert all(g[..., 2:].abs().max() == 0 and g[..., :2].abs().min() > 0 for g in gradients)
    point = torch.zeros(1, 1, 1, requires_grad=True)  # what a node without words has before the first step
    line = pot.relax(point, point, torch.zeros(1, 1, 1))
    (gradient,) = torch.autograd.grad(line.alpha.sum() + line.offset.sum(), point)
    assert bool(torch.isfinite(torch.cat([line.alpha, line.offset, gradient])).all())


def test_interval_product_reaches_its_ends_and_holds_inside():
    graph = random_graph(8, 14)
    low_entry, high_entry = entry_bounds(graph, 0.5, DOUBLE)
    g = torch_generator(0, "interval")
    low = torch.randn(1, 8, 3, generator=g, dtype=DOUBLE)
    high = low + torch.rand(1, 8, 3, generator=g, dtype=DOUBLE)
    least, most = pot.entry_range(graph, torch.stack([low_entry, high_entry]), 1).bounds(low, high)
    products = []
    for entries, m in itertools.product((low_entry, high_entry), (low, high)):
        dense = torch.zeros(8, 8, dtype=DOUBLE).index_put((graph.rows, graph.columns), entries)
        products.append(dense[:, :, None] * m[0])  # i, j, c
    stacked = torch.stack(products)
    assert (most[0] - stacked.amax(0).sum(1)).abs().max() < 1e-12
    assert (least[0] - stacked.amin(0).sum(1)).abs().max() < 1e-12


@pytest.mark.parametrize("variant", pot.VARIANTS)
def test_check_7_gradients_of_the_bound(variant):
    graph, x = random_graph(6, 8), features(6)
    encoder = random_encoder(5, 0.25, f=4, h=3, d=2)
    view = graph.operator(
        graph.normalized(budgeted_deletions(graph, 0.5, 1, generator=torch_generator(0), dtype=DOUBLE))
    )

    def bound(weight1, weight2):
        weights = replace(encoder, weight1=weight1, weight2=weight2)
        messages, w, layers = setting(graph, weights, x, 0.5, variant)
        return pot.compactness_bound(weights, messages, view, layers, w, variant=variant)

    inputs = (encoder.weight1.requires_grad_(), encoder.weight2.requires_grad_())
    assert torch.autograd.gradcheck(bound, inputs)
    gradients = torch.autograd.grad(bound(*inputs).sum(), inputs)
    assert all(float(g.norm()) > 0.1 for g in gradients)


def test_check_7_contrastive_loss_against_loops():
    g = torch_generator(0, "loss")
    h, k = (torch.randn(2, 5, 3, generator=g, dtype=DOUBLE, requires_grad=True) for _ in range(2))

    def slow(h, k, tau=0.7):
        total = 0
        for one, two in ((h, k), (k, h)):
            a, b = F.normalize(one, dim=-1), F.normalize(two, dim=-1)
            for i in range(len(a)):
                between = sum(torch.exp(a[i] @ b[j] / tau) for j in range(len(a)))
                within = sum(torch.exp(a[i] @ a[j] / tau) for j in range(len(a)) if j != i)
                total = total - torch.log(torch.exp(a[i] @ b[i] / tau) / (between + within))
        return total / (2 * len(h))

    expected = torch.stack([slow(h[r], k[r]) for r in range(2)])
    measured = contrastive_loss(h, k, 0.7)
    assert (measured - expected).abs().max() < 1e-6
    for one, two in zip(
        torch.autograd.grad(measured.sum(), (h, k)), torch.autograd.grad(expected.sum(), (h, k)), strict=True
    ):
        assert (one - two).abs().max() < 1e-8


@pytest.mark.parametrize("slope", SLOPES)
def test_check_8_compact_form_equals_the_dense_tensor(slope):
    graph, rate = random_graph(9, 16), 0.5
    encoder, x = random_encoder(2, slope), features(9)
    messages, w, layers = setting(graph, encoder, x, rate)
    kept = budgeted_deletions(graph, rate, 1, generator=torch_generator(0), dtype=DOUBLE)
    operator = graph.operator(graph.normalized(kept))
    dense, (first, second) = operator.matrix.to_dense(), layers
    alpha2, offset2, w = second.alpha[0], second.offset[0], w[0]
    coefficients = alpha2 * w  # both lines of a relaxation have the same slope
    back = coefficients @ encoder.weight2[0].T
    constant = (coefficients * encoder.bias2[0]).sum(-1) + torch.where(w >= 0, 0.0, offset2 * w).sum(-1)
    slopes = first.alpha[0][None] * back[:, None]  # n x n x h
    shift = torch.where(back[:, None] >= 0, 0.0, first.offset[0][None] / first.alpha[0][None].clamp_min(1e-300))
    pre = (dense @ messages[0] + encoder.bias1[0])[None] + shift
    expected = torch.einsum("ij,ijc,ijc->i", dense, slopes, pre) + constant
    measured = pot.compactness_bound(encoder, messages, operator, layers, w[None])[0]
    assert (measured - expected).abs().max() < 1e-5


def test_official_shortcut_is_two_propagations_of_a_scalar():
    graph = random_graph(9, 16)
    encoder, x = random_encoder(2), features(9)
    messages, w, (first, second) = setting(graph, encoder, x, 0.5, "official")
    operator = graph.operator(graph.normalized(whole(graph, 1, DOUBLE)))
    dense = operator.matrix.to_dense()
    back = (second.alpha * w)[0] @ encoder.weight2[0].T
    scalar = torch.stack([x[k] @ encoder.weight1[0] @ (first.alpha[0, k] * back[k]) for k in range(9)])
    bias1 = (first.alpha[0] * back * encoder.bias1[0] + torch.where(back < 0, first.offset[0] * back, 0)).sum(1)
    bias2 = (second.alpha[0] * w[0] * encoder.bias2[0] + torch.where(w[0] < 0, second.offset[0] * w[0], 0)).sum(1)
    expected = dense @ (dense @ scalar + bias1) + bias2
    measured = pot.compactness_bound(encoder, messages, operator, (first, second), w, variant="official")[0]
    assert (measured - expected).abs().max() < 1e-10


def test_a_view_is_gcn_norm_of_the_kept_edges():
    data_class()  # first, for its quiet import
    from torch_geometric.nn.conv.gcn_conv import gcn_norm

    graph = random_graph(10, 20)
    kept = dropped(graph, uniform_rates(graph, 0.5).double(), 2, generator=torch_generator(0, "drop"))
    assert bool((kept[:, graph.is_loop] == 1).all())
    assert 0.3 < float(kept[:, ~graph.is_loop].mean()) < 0.7
    x = torch.randn(2, 10, 3, generator=torch_generator(0, "signal"), dtype=DOUBLE)
    measured = propagate(graph.operator(graph.normalized(kept)), x)
    for run in range(2):
        some = (kept[run] > 0) & ~graph.is_loop
        sources, targets = graph.columns[some], graph.rows[some]
        edges, weights = gcn_norm(torch.stack([sources, targets]), num_nodes=10, dtype=DOUBLE)
        expected = torch.zeros(10, 3, dtype=DOUBLE).index_add_(0, edges[1], weights[:, None] * x[run][edges[0]])
        assert (measured[run] - expected).abs().max() < 1e-12


def test_budgeted_deletions_are_symmetric_and_within_budget():
    graph = random_graph(20, 50)
    views = budgeted_deletions(graph, 0.4, 50, generator=torch_generator(0), dtype=DOUBLE)
    assert views.equal(views[:, graph.reverse])
    gone = torch.zeros(50, 20, dtype=DOUBLE).index_add_(1, graph.rows, 1 - views)
    assert bool((gone <= budgets(graph.degrees, 0.4)).all())
    assert gone.sum(1).min() < 0.5 * gone.sum(1).max()
    low, high = entry_bounds(graph, 0.4, DOUBLE)
    values = graph.normalized(views)
    assert bool(((values >= low - 1e-12) & (values <= high + 1e-12)).all())


def test_adaptive_rates_spare_central_targets():
    graph = pattern_of(nx.star_graph(6))
    rates = degree_rates(graph, 0.3)
    to_hub = (graph.columns == 0) & ~graph.is_loop
    assert rates[to_hub].max() == 0
    assert rates[(graph.rows == 0) & ~graph.is_loop].min() > 0.5
    assert abs(float(rates[~graph.is_loop].mean()) - 0.3) < 1e-6
    assert degree_rates(graph, 0.6).max() <= 0.7 + 1e-6


def test_training_raises_what_it_optimises_and_runs_are_independent():
    graph = random_graph(40, 80)
    x = features(40, f=8).float()
    means = {}
    for kind in ("none", "sound", "naive"):
        network = ContrastiveNetwork(2, 8, 8, 8, activation="prelu", generator=torch_generator(0, "net"))
        weight = 0.0 if kind == "none" else 0.5
        settings = Settings(regularizer=kind, pot_weight=weight, epochs=30, lr=0.01)
        train(network, x, graph, settings, generator=torch_generator(0, "views"))
        weights = network.encoder()
        doubled = pot.Encoder(*(getattr(weights, name).detach().double() for name in weights.__dataclass_fields__))
        messages, w, layers = setting(graph, doubled, x.double(), 0.4)
        clean = graph.operator(graph.normalized(whole(graph, 2, DOUBLE)))
        means[kind] = pot.compactness_bound(doubled, messages, clean, layers, w).mean(1)
        assert float(doubled.slope.min()) >= 0
        assert float(doubled.slope.max()) <= 1
    assert bool((means["sound"] > means["none"] + 0.1).all())
    assert bool((means["naive"] > means["none"]).all())
    assert means["none"][0] != means["none"][1]


def test_probe_separates_what_is_separable():
    g = torch_generator(0, "probe")
    y = torch.arange(3).repeat(20)
    z = (4 * F.one_hot(y, 6).float() + torch.randn(60, 6, generator=g)).expand(2, -1, -1)
    order = torch.stack([torch.randperm(60, generator=g) for _ in range(2)])
    probe = linear_probe(z, y, order[:, :15], order[:, 15:30], order[:, 30:])
    assert probe.test.min() > 0.85
    right = (probe.preds.gather(1, order[:, 30:]) == y[order[:, 30:]]).float().mean(1)
    assert right.equal(probe.test)
    shuffled = linear_probe(z, y[order[0]], order[:, :15], order[:, 15:30], order[:, 30:])
    assert shuffled.test.max() < 0.7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Settings(regularizer="pot"), "regularizer must be one of"),
        (lambda: Settings(backbone="costa"), "backbone must be one of"),
        (lambda: Settings(pot_weight=1.5), "pot_weight must be in"),
        (lambda: budgets(torch.tensor([1]), 2.0), "rate must be in"),
        (lambda: pattern(torch.tensor([[0], [1]]), 2), "both directions"),
        (
            lambda: pot.entry_range(random_graph(4, 3), torch.ones(2, 10), 1),
            "lower bounds of entries outside the diagonal must be 0",
        ),
        (
            lambda: setting(random_graph(4, 3), random_encoder(0), features(4), 0.5, "crown"),
            "variant must be one of",
        ),
        (lambda: pattern(torch.tensor([[0], [0]]), 2), "without loops"),
        (lambda: ContrastiveNetwork(1, 2, 2, 2, activation="elu", generator=torch_generator(0)), "activation must be"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
