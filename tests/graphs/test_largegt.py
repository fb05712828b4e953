"""Properties of LargeGT: its samples, tokens, attention, codebook and loaders; check numbers are those of the brief."""

import gzip

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.io import savemat
from scipy.sparse import csc_matrix
from sklearn.metrics import pairwise_distances_argmin

from glocal.data.errors import DataError
from glocal.data.pyg import data_class
from glocal.graphs.largegt import ByteDropout, LargeGT, LocalModule, WideAttention, target_readout
from glocal.graphs.largegt_data import (
    BENCHMARKS,
    benchmark,
    cluster_graph,
    even_quantiles,
    random_graph,
    split_task,
    two_view_graph,
)
from glocal.graphs.largegt_global import Codebook, GlobalModule, counted_attention
from glocal.graphs.largegt_measures import all_queries, codebook_errors, hops_seen, least_seconds, resampled
from glocal.graphs.largegt_tokens import (
    TokenBank,
    adjacency,
    draw_positions,
    hop_features,
    node2vec_encoding,
    normalized_adjacency,
    random_walks,
    spectral_encoding,
    two_hop_samples,
)
from glocal.graphs.largegt_training import HopMLP, NeighborSampler, SampledSAGE, fit_batches, training_step
from glocal.graphs.node_tasks import edge_homophily
from glocal.seeding import numpy_generator, torch_generator


def generator(*names):
    return torch_generator(0, *names)


def rng(*names):
    return numpy_generator(0, *names)


def undirected(*pairs):
    ends = torch.tensor(pairs).T
    return torch.cat([ends, ends.flip(0)], dim=1)


STAR = undirected((0, 1), (0, 2), (0, 3))


def model(conv_type="full", **options):
    settings = {"width": 8, "global_dim": 4, "n_centroids": 5, "init_std": None} | options
    return LargeGT(6, 3, 20, conv_type=conv_type, generator=generator("model"), **settings)


def batch(n=10, tokens=12):
    g = generator("batch")
    return torch.randn(n, tokens, 6, generator=g), torch.randn(n, 4, generator=g), torch.arange(n)


@pytest.mark.parametrize(("token_hops", "hops"), [(1, 2), (2, 3), (3, 4)])
def test_check_1_receptive_field_on_a_path(token_hops, hops):
    assert hops_seen(token_hops, generator=generator("path")) == hops


def test_check_1_every_node_within_four_hops_matters():
    path = undirected(*[(i, i + 1) for i in range(10)])
    net = model("local").eval()
    samples = torch.from_numpy(two_hop_samples(adjacency(path, 11), 9, generator=rng()))
    x = torch.randn(11, 6, generator=generator("x"))

    def output(x, token_hops):
        return net(*TokenBank(hop_features(path, x), samples, torch.zeros(11, 4), token_hops)(torch.tensor([5])))

    for token_hops, reach in ((1, 2), (3, 4)):
        before = output(x, token_hops)
        for j in range(11):
            change = (output(x + torch.eye(11)[j, :, None], token_hops) - before).abs().max()
            assert (change > 1e-6) if abs(j - 5) <= reach else (change == 0)


def test_check_2_samples_on_a_star():
    samples = two_hop_samples(adjacency(STAR, 4), 9, nodes=np.array([1]), generator=rng())
    assert samples.shape == (1, 9)
    assert samples[0, 0] == 1
    pool = samples[0, 1:5]
    assert pool[0] == 0
    assert sorted(pool[1:]) == [1, 2, 3]  # two-hop neighbours contain the leaf itself
    assert (samples[0, 5:] == pool).all()  # tiled
    bank = TokenBank(hop_features(STAR, torch.randn(4, 6)), torch.from_numpy(samples).repeat(4, 1), torch.zeros(4, 2))
    assert bank(torch.tensor([0]))[0].shape == (1, 27, 6)  # 3K


def test_tokens_are_the_three_hops_of_each_sampled_node_in_order():
    x = torch.randn(4, 5, generator=generator("x"))
    hops = hop_features(STAR, x)
    bank = TokenBank(hops, torch.tensor([[1, 0], [2, 3], [3, 0], [0, 1]]), torch.zeros(4, 1))
    tokens, _, nodes = bank(torch.tensor([1]))
    expected = torch.stack([hops[2, 0], hops[2, 1], hops[2, 2], hops[3, 0], hops[3, 1], hops[3, 2]])
    torch.testing.assert_close(tokens[0], expected)
    assert nodes.tolist() == [1]
    torch.testing.assert_close(hops[:, 0], x)


def test_a_node_without_neighbours_gets_uniform_nodes():
    graph = adjacency(undirected((0, 1)), 50)
    drawn = two_hop_samples(graph, 2001, nodes=np.array([7]), generator=rng())[0, 1:]
    assert len(np.unique(drawn)) == 50
    assert np.bincount(drawn).max() < 80  # 40 expected


def test_samples_are_without_replacement_over_a_multiset():
    triangle = undirected((0, 1), (1, 2), (0, 2))  # N1(0) = {1, 2}, N2(0) = {0, 1, 2}: nodes 1 and 2 count twice
    graph = adjacency(triangle, 3)
    one = two_hop_samples(graph, 2, nodes=np.zeros(5000, dtype=np.int64), generator=rng())[:, 1]
    shares = np.bincount(one, minlength=3) / len(one)
    np.testing.assert_allclose(shares, [0.2, 0.4, 0.4], atol=0.03)
    everything = two_hop_samples(graph, 6, nodes=np.zeros(20, dtype=np.int64), generator=rng())[:, 1:]
    assert (np.sort(everything, axis=1) == [0, 1, 1, 2, 2]).all()  # K - 1 equals the length of the list
    with pytest.raises(ValueError, match="sample_len must be at least 2, the target and one more, got 1"):
        two_hop_samples(graph, 1, generator=rng())


def test_samples_do_not_depend_on_the_chunk_for_short_lists_and_stay_in_two_hops():
    ring = undirected(*[(i, (i + 1) % 30) for i in range(30)])
    graph = adjacency(ring, 30)
    a, b = (two_hop_samples(graph, 9, chunk=c, generator=rng()) for c in (7, 1024))
    assert (np.sort(a) == np.sort(b)).all()
    few = two_hop_samples(graph, 4, chunk=7, generator=rng())
    distance = np.abs(few - few[:, :1])
    assert (np.minimum(distance, 30 - distance) <= 2).all()


def test_draw_positions_are_uniform_sets():
    drawn = draw_positions(np.full(20000, 5), 2, generator=rng())
    assert (drawn[:, 0] != drawn[:, 1]).all()
    low, high = np.sort(drawn, axis=1).T
    counts = np.bincount(5 * low + high)
    assert (counts[counts > 0] > 1800).all()  # ten pairs, 2000 each
    assert (counts > 0).sum() == 10
    with pytest.raises(ValueError, match="lengths must be at least k = 4, got 3: tile shorter rows instead"):
        draw_positions(np.array([5, 3]), 4, generator=rng())


def test_check_3_attention_with_counts_equals_attention_to_all_nodes():
    g = generator("identity")
    queries, keys, values = (torch.randn(n, 2, 8, generator=g) for n in (7, 5, 5))
    members = torch.randint(5, (200,), generator=g)
    exact = counted_attention(queries, keys[members], values[members])
    grouped = counted_attention(queries, keys, values, torch.bincount(members, minlength=5))
    assert (exact - grouped).abs().max() < 1e-5


def test_check_3_holds_inside_the_global_module():
    book = Codebook(60, 4, 8, generator=generator("book"))
    net = GlobalModule(6, 8, 2, 4, book).eval()
    memory = book.centroids[book.assignment.long()]  # every node sits on its centroid
    q = torch.randn(9, 8, generator=generator("q"))
    torch.testing.assert_close(
        net.attend(q, memory, None), net.attend(q, book.centroids, book.counts), atol=1e-5, rtol=0
    )


def test_check_4_empty_centroids_have_no_weight_and_no_nan():
    g = generator("empty")
    queries, keys, values = (torch.randn(n, 2, 8, generator=g).requires_grad_() for n in (7, 5, 5))
    out = counted_attention(queries, keys, values, torch.tensor([3, 0, 2, 0, 1]))
    out.sum().backward()
    for tensor in (queries, keys, values):
        assert tensor.grad.isfinite().all()
    assert (values.grad[[1, 3]] == 0).all()
    assert (values.grad[[0, 2, 4]] != 0).any()
    moved = values.detach() + 1e6 * torch.tensor([0, 1, 0, 1, 0])[:, None, None]
    assert torch.equal(counted_attention(queries, keys, moved, torch.tensor([3, 0, 2, 0, 1])), out)


def test_check_5_one_update_without_memory_is_one_step_of_k_means():
    g = generator("ema")
    q = 3 * torch.randn(50, 8, generator=g) + 1
    book = Codebook(50, 4, 8, decay=0.0, generator=g)
    book.start(q[:20])
    before = book.normalized.clone()
    book.update(q, torch.arange(50))
    normalized = (q - q.mean(0)) / (q.var(0, unbiased=False) + 1e-5).sqrt()
    nearest = pairwise_distances_argmin(normalized.numpy(), before.numpy())
    assert (book.assignment.numpy() == nearest).all()
    assert (book.counts.numpy() == np.bincount(nearest, minlength=4)).all()
    for m in range(4):
        members = normalized[nearest == m]
        if len(members):
            assert (book.normalized[m] - members.mean(0)).abs().max() < 1e-4
    # keys use denormalised centroids, with the running statistics
    expected = book.normalized * (book.norm.running_var + 1e-5).sqrt() + book.norm.running_mean
    torch.testing.assert_close(book.centroids, expected)
    assert (book.centroids - book.normalized).abs().max() > 0.5


def test_counts_follow_the_table_of_assignments():
    g = generator("table")
    book = Codebook(40, 6, 8, generator=g)
    q = torch.randn(40, 8, generator=g)
    book.start(q)
    for nodes in torch.randperm(40, generator=g).split(10):
        book.update(q[nodes], nodes)
        assert torch.equal(book.counts, torch.bincount(book.assignment, minlength=6))
    assert book.counts.sum() == 40


def test_official_start_throws_the_codebook_far_out():
    q = torch.randn(64, 8, generator=generator("q"))
    norms = {}
    for start in ("data", "official"):
        book = Codebook(64, 4, 8, vq_init=start, generator=generator("start"))
        if start == "data":
            book.start(q)
        assert bool(book.is_ready)
        book.update(q, torch.arange(64))
        norms[start] = book.normalized.norm(dim=1).max()
    assert norms["official"] > 2 * norms["data"]  # w = 0.99 N(0, 1) divided by c = 0.01 n
    with pytest.raises(ValueError, match="vq_init must be one of data, official, got 'zeros'"):
        Codebook(4, 2, 2, vq_init="zeros", generator=generator())


def test_check_6_the_codebook_gets_no_gradient_and_learns_only_in_training():
    net = model("full")
    assert not {name for name, _ in net.named_parameters()} & {name for name, _ in net.named_buffers()}
    net.train()
    F.cross_entropy(net(*batch()), torch.arange(10) % 3).backward()
    book = net.far.codebook
    assert not any(buffer.requires_grad or buffer.grad is not None for buffer in book.buffers())
    assert net.far.query.weight.grad.abs().sum() > 0
    state = {name: value.clone() for name, value in book.state_dict().items()}
    net.eval()
    net(*batch())
    assert all(torch.equal(value, state[name]) for name, value in book.state_dict().items())
    net.train()
    net(*batch())
    assert not torch.equal(book.centroids, state["centroids"])


def test_check_6_local_output_ignores_the_order_of_the_sample():
    net = model("local").eval()
    tokens, encoding, nodes = batch()
    order = torch.cat([torch.tensor([0]), 1 + torch.randperm(11, generator=generator("order"))])
    torch.testing.assert_close(net(tokens[:, order], encoding, nodes), net(tokens, encoding, nodes), atol=1e-5, rtol=0)
    swapped = tokens[:, [1, 0, *range(2, 12)]]
    assert (net(swapped, encoding, nodes) - net(tokens, encoding, nodes)).abs().max() > 1e-4


def test_check_7_propagation_is_gcn_norm_on_symmetric_graphs():
    data_class()
    from torch_geometric.nn.conv.gcn_conv import gcn_norm

    task = random_graph(40, 5.0, 3, generator=generator("graph"))
    edges, weights = gcn_norm(task.edge_index, num_nodes=40)
    dense = torch.zeros(40, 40).index_put((edges[0], edges[1]), weights)
    assert (normalized_adjacency(task.edge_index, 40).to_dense() - dense).abs().max() < 1e-6
    hops = hop_features(task.edge_index, task.x)
    torch.testing.assert_close(hops[:, 2], dense @ (dense @ task.x), atol=1e-5, rtol=1e-5)


def test_directed_propagation_uses_column_and_row_sums():
    matrix = normalized_adjacency(torch.tensor([[0, 0, 1], [1, 2, 2]]), 3).to_dense()
    full = torch.tensor([[1.0, 1, 1], [0, 1, 1], [0, 0, 1]])
    expected = full.sum(0).rsqrt()[:, None] * full * full.sum(1).rsqrt()[None, :]
    torch.testing.assert_close(matrix, expected)


@pytest.mark.parametrize("n_heads", [1, 2])
def test_check_8_attention_is_softmax_attention_with_wide_heads(n_heads):
    layer = WideAttention(6, n_heads)
    x = torch.randn(3, 5, 6, generator=generator("x"))
    outputs = []
    for h in range(n_heads):
        rows = slice(6 * h, 6 * h + 6)
        q, k, v = (F.linear(x, f.weight[rows], f.bias[rows]) for f in (layer.query, layer.key, layer.value))
        outputs.append((q @ k.transpose(1, 2) / 6**0.5).softmax(-1) @ v)
    expected = layer.out(torch.cat(outputs, dim=-1))
    assert expected.shape == (3, 5, 6 * n_heads)
    assert (layer(x) - expected).abs().max() < 1e-5


def test_readout_equals_its_definition_and_its_target_half_cancels():
    outputs = torch.randn(4, 7, 6, generator=generator("o"))
    score = torch.nn.Linear(12, 1)
    pairs = torch.cat([outputs[:, :1].expand(-1, 6, -1), outputs[:, 1:]], dim=-1)
    alpha = score(pairs).softmax(1)
    expected = outputs[:, 0] + (alpha * outputs[:, 1:]).sum(1)
    result = target_readout(outputs, score)
    torch.testing.assert_close(result, expected)
    result.square().sum().backward()
    assert score.weight.grad[0, :6].abs().max() < 1e-5
    assert score.weight.grad[0, 6:].abs().max() > 1e-3
    assert target_readout(outputs[:1], score).shape == (1, 6)  # a batch of one stays a batch


def test_official_initial_weights():
    module = LocalModule(64, 2)
    for layer in (module.token, module.residual, module.attention.query, module.readout):
        assert 0.015 < float(layer.weight.detach().std()) < 0.025
        assert (layer.bias == 0).all()


def test_byte_dropout():
    x = torch.ones(1000, 100)
    layer = ByteDropout(0.3).train()
    y = layer(x)
    assert abs(float((y == 0).float().mean()) - 0.3) < 0.01
    assert abs(float(y.mean()) - 1) < 0.01
    assert layer.eval()(x) is x
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\), got 1.0"):
        ByteDropout(1.0)


@pytest.mark.parametrize("conv_type", ["local", "global", "full"])
def test_modes_and_reproducibility(conv_type):
    net, twin = model(conv_type).eval(), model(conv_type).eval()
    logits = net(*batch())
    assert logits.shape == (10, 3)
    assert torch.equal(logits, twin(*batch()))
    assert (net.local is not None) == (conv_type != "global")
    assert (net.far is not None) == (conv_type != "local")
    with pytest.raises(ValueError, match="conv_type must be one of local, global, full, got 'both'"):
        model("both")
    if conv_type == "local":
        with pytest.raises(ValueError, match="model must have a global module"):
            all_queries(
                net, None or TokenBank(torch.zeros(2, 1, 6), torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 4))
            )


def test_exact_memory_equals_a_codebook_of_all_nodes():
    net = model("global").eval()
    tokens, encoding, _ = batch(20, 1)
    bank = TokenBank(tokens, torch.arange(20)[:, None], encoding, 1, 1)
    memory = all_queries(net, bank)
    exact = net(*bank(torch.arange(20)), memory)
    net.far.codebook.centroids, net.far.codebook.counts = memory, torch.ones(20, dtype=torch.int64)
    torch.testing.assert_close(net(*bank(torch.arange(20))), exact, atol=1e-5, rtol=0)


def test_codebook_error_falls_with_its_size():
    net = model("global").eval()
    memory = torch.randn(20, 8, generator=generator("memory")).repeat(10, 1)  # 20 places, ten nodes on each
    errors = codebook_errors(net, memory, [2, 200], generator=generator("error"))
    assert errors[1] < 0.5 * errors[0]


def test_least_seconds_visits_in_turn_and_forgets_the_first_round():
    visits, times = [], {"a": [[0, 0], [5, 1], [3, 4]], "b": [[1, 1], [2, 2], [7, 9]]}

    def case(name):
        def visit():
            visits.append(name)
            return np.array(times[name][visits.count(name) - 1], dtype=float)

        return visit

    np.testing.assert_array_equal(least_seconds([case("a"), case("b")], 2), [[3, 1], [2, 2]])
    assert visits == ["a", "b"] * 3
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        least_seconds([case("a")], 0)


def test_neighbor_sampler_takes_everything_when_the_fan_out_is_large():
    task = random_graph(60, 4.0, 5, generator=generator("graph"))
    graph = adjacency(task.edge_index, 60)
    sampler = NeighborSampler(graph, task.x, [60, 60], generator=rng())
    x, edges, node_counts, edge_counts = sampler(torch.tensor([3, 9]))
    assert node_counts[0] == 2
    assert edge_counts[0] == int(graph[[3, 9]].sum())
    torch.testing.assert_close(x[:2], task.x[[3, 9]])
    reached = (
        (np.eye(60)[[3, 9]] @ (np.eye(60) + graph @ np.eye(60)) @ (np.eye(60) + graph @ np.eye(60))).sum(0) > 0
    ).sum()
    assert sum(node_counts) == reached == len(x)
    # each drawn edge is an edge of the graph
    place = {tuple(row.tolist()): i for i, row in enumerate(task.x)}
    number = np.array([place[tuple(row.tolist())] for row in x])
    source, target = number[edges.numpy()]
    assert (np.asarray(graph[target, source]) == 1).all()


def test_neighbor_sampler_respects_the_fan_out_and_forgets():
    task = random_graph(200, 20.0, 5, generator=generator("graph"))
    sampler = NeighborSampler(adjacency(task.edge_index, 200), task.x, [4, 4], generator=rng())
    x, edges, node_counts, edge_counts = sampler(torch.arange(10))
    drawn = torch.bincount(edges[1], minlength=sum(node_counts[:2]))
    assert drawn.max() == 4
    assert sum(edge_counts) == edges.shape[1]
    assert len(torch.unique(edges, dim=1).T) == edges.shape[1]  # without replacement
    assert len(torch.unique(x, dim=0)) == len(x)  # no node twice
    assert (sampler.number == -1).all()


def test_sage_equals_full_graph_layers():
    task = random_graph(50, 4.0, 5, generator=generator("graph"))
    net = SampledSAGE(5, 3, width=8, n_layers=2, generator=generator("sage")).eval()
    sampler = NeighborSampler(adjacency(task.edge_index, 50), task.x, [50, 50], generator=rng())
    targets = torch.tensor([4, 8, 40])
    flipped = task.edge_index.flip(0)
    full = net.layers[1](net.layers[0](task.x, flipped).relu(), flipped)
    torch.testing.assert_close(net(*sampler(targets)), full[targets], atol=1e-5, rtol=1e-4)


def easy_task():
    x, edges, y = cluster_graph(240, clusters_per_class=2, degree=6.0, signal=2.0, generator=generator("easy"))
    return split_task(x, edges, y, generator=generator("split"))


def test_all_models_learn_an_easy_graph():
    task = easy_task()
    graph, hops = adjacency(task.edge_index, task.n_nodes), hop_features(task.edge_index, task.x)
    samples = torch.from_numpy(two_hop_samples(graph, 5, generator=rng()))
    bank = TokenBank(hops, samples, spectral_encoding(task.edge_index, task.n_nodes, 4))
    options = {"conv_type": "full", "width": 8, "global_dim": 4, "n_centroids": 8, "init_std": None, "ff_dropout": 0.2}
    models = {
        "LargeGT": (LargeGT(16, 4, task.n_nodes, generator=generator("m"), **options), bank),
        "on-line": (
            LargeGT(16, 4, task.n_nodes, generator=generator("m"), **options),
            resampled(bank, graph, generator=rng()),
        ),
        "MLP": (HopMLP(16, 4, n_tokens=15, width=8, global_dim=4, generator=generator("m")), bank),
        "SAGE": (
            SampledSAGE(16, 4, width=8, n_layers=2, generator=generator("m")),
            NeighborSampler(graph, task.x, [5, 5], generator=rng()),
        ),
    }
    for name, (net, load) in models.items():
        fit = fit_batches(net, load, task, lr=0.01, epochs=12, batch_size=16, eval_every=4, generator=generator("fit"))
        assert fit.test_accuracy > 0.8, name
        seconds = training_step(net, load, task.train[:16], task.y, torch.optim.SGD(net.parameters()))
        assert seconds.shape == (2,)
        assert (seconds >= 0).all()
        assert seconds.sum() > 0
        assert fit.best_epoch in (4, 8, 12)
    with pytest.raises(ValueError, match="batch_size must be at least 2, got 1"):
        fit_batches(net, load, task, batch_size=1, generator=generator())


def test_spectral_encoding_tells_components_apart():
    _, edges, y = cluster_graph(120, n_classes=2, clusters_per_class=1, degree=10.0, generator=generator("two"))
    codes = spectral_encoding(edges, 120, 2)
    torch.testing.assert_close(codes.square().mean(0), torch.ones(2))
    centers = torch.stack([codes[y == c].mean(0) for c in (0, 1)])
    assert (torch.cdist(codes, centers).argmin(1) == y).double().mean() > 0.95
    assert edge_homophily(edges, y) == 1
    assert abs(edges.shape[1] / 120 - 10) < 1.5


def test_random_walks_follow_edges_and_stop_at_dead_ends():
    graph = adjacency(torch.tensor([[0, 1, 3], [1, 2, 4]]), 5)
    walks = random_walks(graph, torch.tensor([0, 3, 2]), 3, generator=generator("walk"))
    assert walks.tolist() == [[0, 1, 2, 2], [3, 4, 4, 4], [2, 2, 2, 2]]


def test_node2vec_puts_linked_nodes_together():
    _, edges, y = cluster_graph(80, n_classes=2, clusters_per_class=1, degree=12.0, generator=generator("n2v"))
    codes = node2vec_encoding(
        adjacency(edges, 80),
        8,
        walk_length=10,
        context=5,
        lr=0.05,
        epochs=6,
        batch_size=20,
        generator=generator("walks"),
    )
    similarity = codes @ codes.T
    same = (y[:, None] == y) & ~torch.eye(80, dtype=torch.bool)
    assert similarity[same].mean() > similarity[y[:, None] != y].mean() + 0.5


def test_two_view_graphs():
    x, edges, y = two_view_graph("letter", 200, generator=generator("letter"), fake=True)
    assert x.shape[1] == 8
    assert len(x) == len(y)
    x, edges, _ = two_view_graph("mnist5k", 60, n_components=5, fake=True, generator=generator("mnist"))
    assert x.shape[1] == 5
    assert edges.max() < len(x)
    assert torch.bincount(edges[0]).min() >= 6


def test_split_is_a_partition():
    task = easy_task()
    everything = torch.cat([task.train, task.val, task.test])
    assert everything.sort().values.tolist() == list(range(task.n_nodes))
    assert abs(len(task.train) / task.n_nodes - 0.3) < 0.02


@pytest.mark.parametrize("name", ["ogbn-products", "snap-patents", "ogbn-papers100M", "cora"])
def test_fake_benchmarks(name):
    task = benchmark(name, fake=True, generator=generator())
    assert len(task.x) == len(task.y)
    assert task.n_classes == {"ogbn-products": 47, "snap-patents": 5, "ogbn-papers100M": 172, "cora": 7}[name]


def write_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as file:
        file.writelines(",".join(str(v) for v in np.atleast_1d(row)) + "\n" for row in rows)


def test_ogb_text_format(tmp_path):
    folder = tmp_path / "ogbn_products"
    write_table(folder / "raw/edge.csv.gz", [[0, 1], [2, 1], [3, 3]])
    write_table(folder / "raw/node-feat.csv.gz", [[0.5, i] for i in range(4)])
    write_table(folder / "raw/node-label.csv.gz", [0, 2, 1, 0])
    for part, nodes in (("train", [0, 3]), ("valid", [1])):
        write_table(folder / f"split/sales_ranking/{part}.csv.gz", nodes)
    with pytest.raises(DataError, match=r"test.csv.gz: the file does not exist. To repair: download the archive"):
        benchmark("ogbn-products", root=tmp_path, generator=generator())
    write_table(folder / "split/sales_ranking/test.csv.gz", [2])
    task = benchmark("ogbn-products", root=tmp_path, generator=generator())
    assert task.edge_index.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]  # both directions, no loop
    assert task.y.tolist() == [0, 2, 1, 0]
    assert (task.train.tolist(), task.val.tolist(), task.test.tolist()) == ([0, 3], [1], [2])
    assert task.x[3].tolist() == [0.5, 3.0]
    assert task.n_classes == 3


def test_ogb_binary_format(tmp_path):
    folder = tmp_path / "ogbn_papers100M"
    for part, nodes in (("train", [0]), ("valid", [1]), ("test", [2])):
        write_table(folder / f"split/time/{part}.csv.gz", nodes)
    (folder / "raw").mkdir()
    features = np.ones((4, 3), dtype=np.float16)
    np.savez(folder / "raw/data.npz", edge_index=np.array([[0, 1], [1, 0]]), node_feat=features)
    np.savez(folder / "raw/node-label.npz", node_label=np.array([[1.0], [0.0], [1.0], [np.nan]]))
    task = benchmark("ogbn-papers100M", root=tmp_path, generator=generator())
    assert task.edge_index.tolist() == [[0, 1], [1, 0]]  # a pair given twice counts once
    assert task.y.tolist() == [1, 0, 1, -1]
    assert task.x.dtype == torch.float32


def test_snap_patents_format(tmp_path):
    (tmp_path / "snap-patents").mkdir()
    years = np.arange(1960, 1980)
    content = {
        "edge_index": np.array([[0, 1, 5], [1, 1, 2]]),
        "node_feat": csc_matrix(np.eye(20)),
        "years": years[None],
    }
    savemat(tmp_path / "snap-patents/snap_patents.mat", content)
    task = benchmark("snap-patents", root=tmp_path, generator=generator("split"))
    assert task.edge_index.tolist() == [[0, 5], [1, 2]]  # directed, without the loop
    assert torch.bincount(task.y).tolist() == [4] * 5
    assert (len(task.train), len(task.val), len(task.test)) == (10, 5, 5)
    assert torch.equal(task.x, torch.eye(20))


def test_even_quantiles_keep_ties_together():
    assert even_quantiles(torch.tensor([1, 2, 2, 2, 3, 4]), 2).tolist() == [0, 1, 1, 1, 1, 1]


def test_unknown_and_missing_benchmarks(tmp_path):
    with pytest.raises(ValueError, match=r"name must be one of ogbn-products, .*, got 'reddit'"):
        benchmark("reddit", generator=generator())
    with pytest.raises(DataError, match=r"snap_patents.mat: the file does not exist. To repair: put snap_patents.mat"):
        benchmark("snap-patents", root=tmp_path, generator=generator())
    assert "cora" in BENCHMARKS
