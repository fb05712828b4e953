"""The tasks on which LeBeD is evaluated: digits of three sources (small); features, domains and years (full)."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from glocal.data import load
from glocal.data.pyg import data_class
from glocal.graphs.lebed_evaluation import EvaluationTask, Shifted
from glocal.graphs.lebed_graphs import SHIFTS, digit_graphs, digit_sources, graph_of, perturbed, strengths
from glocal.graphs.lebed_sources import DOMAINS, citation_domain, dated_citations, photo_graph
from glocal.graphs.node_classification import seeded
from glocal.seeding import torch_generator

if TYPE_CHECKING:
    from torch_geometric.data import Data

DATASETS = ("digits", "cora", "photo", *DOMAINS, "arxiv")
N_COPIES, N_SYNTHETIC, CONTEXT = 10, 10, 10  # copies of a graph; synthetic classes; synthetic features
WINDOWS = ((0, 2011), (2011, 2014), (2014, 2016), (2016, 2018), (2018, 2020))  # years: train, validation, tests


def shifted_copies(
    graph: "Data",
    domain: str,
    n_draws: int,
    *,
    shifts: tuple[str, ...] = SHIFTS,
    noise_scale: float = 1.0,
    is_whole: bool = True,
    generator: torch.Generator,
) -> list[Shifted]:
    """`n_draws` copies of a graph under each perturbation, preceded by the graph itself if `is_whole`."""
    copies = [Shifted(graph, domain)] if is_whole else []
    for shift in shifts:
        for strength in strengths(n_draws, generator=generator):
            copy = perturbed(graph, shift, strength, noise_scale=noise_scale, generator=generator)
            copies.append(Shifted(copy, domain, shift, strength))
    return copies


def digit_tasks(
    n_tasks: int,
    *,
    seed: int,
    n_draws: int = 4,
    n_val_draws: int = 2,
    n_train: int = 600,
    n_nodes: int = 300,
    noise_scale: float = 2.0,
    fake: bool = False,
) -> list[EvaluationTask]:
    """Neighbour graphs of digits: trained on one source, tested on it and on others, raw and perturbed.

    Args:
        n_tasks: independent draws of all graphs.
        seed: of the chapter.
        n_draws: strengths per perturbation of the two perturbed test graphs, `"digits"` and `"mnist"`.
        n_val_draws: likewise for the validation graph.
        n_train: nodes of the training graph.
        n_nodes: nodes of every other graph.
        noise_scale: standard deviation of the noise divided by the strength, in standardised units.
        fake: random pixels instead.
    """
    sources, tasks = digit_sources(fake), []
    parts = [("train", "digits", n_train), ("val", "digits", n_nodes), ("digits", "digits", n_nodes)]
    extra = [("mnist", "mnist"), ("mnist, other nodes", "mnist"), ("small mnist", "small mnist")]
    extra += [("writers", "writers"), ("writers, other nodes", "writers")]
    for run in range(n_tasks):
        generator = torch_generator(seed, "digits", run)
        graphs = digit_graphs(sources, parts + [(*pair, n_nodes) for pair in extra], generator=generator)
        val = shifted_copies(graphs["val"], "digits", n_val_draws, noise_scale=noise_scale, generator=generator)
        tests = [Shifted(graphs[name], source) for name, source in extra[1:]]
        for base in ("digits", "mnist"):
            tests += shifted_copies(graphs[base], base, n_draws, noise_scale=noise_scale, generator=generator)
        tasks.append(EvaluationTask(graphs["train"], graphs["val"], val, tests, 10))
    return tasks


def synthetic_copies(data: "Data", n_copies: int, *, kind: str = "gat", generator: torch.Generator) -> list["Data"]:
    r"""Copies of a graph whose labels and extra features come from random networks; only the latter differ.

    With a random two-layer network $g_y$ the labels are $\arg\max g_y(X, A)$, the same in all copies; copy $i$ gets ten
    more features $g_x(\mathrm{onehot}(y), A) + W e_i + b$. The constant $W e_i$ is the shift.

    Args:
        data: the graph with its own features.
        n_copies: at most ten.
        kind: of the random networks, `"gcn"`, `"gat"` or `"sgc"`.
        generator: source of the random networks and of the non-edges.

    Source: the synthetic protocol of EERM (Wu et al., ICLR 2022), which the official code follows.
    """
    data_class()
    from torch_geometric.nn import GAT, GCN, SGConv

    if kind not in ("gcn", "gat", "sgc"):
        raise ValueError(f"gnn_gen must be one of gcn, gat, sgc, got {kind!r}")

    def network(n_features: int) -> nn.Module:
        if kind == "sgc":
            return SGConv(n_features, N_SYNTHETIC, K=2)
        if kind == "gcn":
            return GCN(n_features, CONTEXT, 2, N_SYNTHETIC)
        return GAT(n_features, 2 * CONTEXT, 2, N_SYNTHETIC, heads=2, act="elu")

    with torch.no_grad(), seeded(generator):
        make_x, make_y, context = network(N_SYNTHETIC), network(data.num_features), nn.Linear(N_COPIES, CONTEXT)
        y = make_y(data.x, data.edge_index).argmax(-1)
        extra = make_x(nn.functional.one_hot(y, N_SYNTHETIC).float(), data.edge_index)
        shifts = context(torch.eye(N_COPIES))
    whole = graph_of(data.x, data.edge_index, y, generator=generator)
    copies = []
    for index in range(n_copies):
        copy = whole.clone()
        copy.x = torch.cat([data.x, extra + shifts[index]], dim=1)
        copies.append(copy)
    return copies


def feature_task(
    name: str, run: int, *, seed: int, n_draws: int, n_copies: int, kind: str, fake: bool
) -> EvaluationTask:
    """Cora or Amazon Photo: copy 0 trains, copy 1 validates, the others are tested under noise and masks."""
    data = load("cora", fake=fake) if name == "cora" else photo_graph(fake=fake)
    generator = torch_generator(seed, "feature shift", name, run)
    copies = synthetic_copies(data, n_copies, kind=kind, generator=generator)
    options: dict[str, Any] = {"shifts": ("noise", "mask"), "is_whole": False, "generator": generator}
    val = shifted_copies(copies[1], name, n_draws, **options)
    tests = [item for copy in copies[2:] for item in shifted_copies(copy, name, n_draws, **options)]
    return EvaluationTask(copies[0], copies[1], val, tests, N_SYNTHETIC)


def domain_task(source: str, run: int, *, seed: int, n_draws: int, fake: bool) -> EvaluationTask:
    """One citation network trains (60 % of its nodes) and validates (20 %); the other two and the rest are tested."""
    from glocal.graphs.node_tasks import induced_subgraph

    generator = torch_generator(seed, "domain shift", source, run)
    networks = {name: citation_domain(name, fake=fake) for name in (source, *(d for d in DOMAINS if d != source))}
    n = len(networks[source].y)
    cuts, order = (int(0.6 * n), int(0.8 * n)), torch.randperm(n, generator=generator)
    parts = [induced_subgraph(networks[source], nodes) for nodes in torch.tensor_split(order, cuts)]
    train, val, test = (graph_of(p.x, p.edge_index, p.y, generator=generator) for p in parts)
    tests = shifted_copies(test, source, n_draws, generator=generator)
    for name, other in networks.items():
        if name != source:
            whole = graph_of(other.x, other.edge_index, other.y, generator=generator)
            tests += shifted_copies(whole, name, n_draws, generator=generator)
    n_classes = max(int(network.y.max()) for network in networks.values()) + 1
    return EvaluationTask(train, val, shifted_copies(val, source, n_draws, generator=generator), tests, n_classes)


def temporal_task(run: int, *, seed: int, n_draws: int, fake: bool) -> EvaluationTask:
    """ogbn-arxiv: trained on papers up to 2011, validated on 2011 to 2014, tested on three later windows."""
    from glocal.graphs.node_tasks import induced_subgraph

    data, years = dated_citations(fake=fake)
    generator = torch_generator(seed, "temporal shift", run)
    graphs = []
    for after, until in WINDOWS:
        part = induced_subgraph(data, ((years > after) & (years <= until)).nonzero().flatten())
        graphs.append(graph_of(part.x, part.edge_index, part.y, generator=generator))
    tests = []
    for (after, until), graph in zip(WINDOWS[2:], graphs[2:], strict=True):
        tests += shifted_copies(graph, f"{after}-{until}", n_draws, generator=generator)
    val = shifted_copies(graphs[1], "2011-2014", n_draws, generator=generator)
    return EvaluationTask(graphs[0], graphs[1], val, tests, int(data.y.max()) + 1)


def evaluation_tasks(
    dataset: str,
    n_tasks: int,
    *,
    seed: int,
    n_draws: int,
    n_val_draws: int,
    n_copies: int = N_COPIES,
    gnn_gen: str = "gat",
    fake: bool = False,
) -> list[EvaluationTask]:
    """The tasks of a chapter's parameters.

    Raises:
        ValueError: for an unknown data set.
    """
    if dataset == "digits":
        return digit_tasks(n_tasks, seed=seed, n_draws=n_draws, n_val_draws=n_val_draws, fake=fake)
    options: dict[str, Any] = {"seed": seed, "n_draws": n_draws, "fake": fake}
    if dataset in ("cora", "photo"):
        return [feature_task(dataset, r, n_copies=n_copies, kind=gnn_gen, **options) for r in range(n_tasks)]
    if dataset in DOMAINS:
        return [domain_task(dataset, run, **options) for run in range(n_tasks)]
    if dataset == "arxiv":
        return [temporal_task(run, **options) for run in range(n_tasks)]
    raise ValueError(f"dataset must be one of {', '.join(DATASETS)}, got {dataset!r}")
