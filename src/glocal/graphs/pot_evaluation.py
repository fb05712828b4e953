"""What a trained encoder keeps under admissible deletions, and what the bounds say about it."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from glocal.graphs.pot import (
    Encoder,
    certified_minimum,
    compactness_bound,
    contrast_weights,
    encode,
    entry_range,
    relaxations,
)
from glocal.graphs.pot_views import Pattern, entry_bounds, whole


@dataclass(frozen=True)
class Compactness:
    r"""Margins $z_i(\hat A) \cdot w_i$ and their bounds, in float64; $w$ comes from the clean graph.

    Args:
        margins: of every view.
        scaled: the same divided by $\lVert z_i(\hat A) \rVert$, so that longer embeddings do not count.
        bounds: for each variant, $f_i$ at every view.
        clean_bound: $f_i$ of the sound variant on the clean graph.
        certified: lower bound for all views at once.
        norms: $\lVert z_i \rVert$ on the clean graph.
    """

    margins: Float[Tensor, "views runs n"]
    scaled: Float[Tensor, "views runs n"]
    bounds: dict[str, Float[Tensor, "views runs n"]]
    clean_bound: Float[Tensor, "runs n"]
    certified: Float[Tensor, "runs n"]
    norms: Float[Tensor, "runs n"]


@torch.no_grad()
def measured_compactness(
    encoder: Encoder,
    x: Float[Tensor, "n f"],
    graph: Pattern,
    rate: float,
    views: Float[Tensor, "views e"],
    *,
    variants: tuple[str, ...] = ("sound",),
) -> Compactness:
    """Evaluate an encoder on given views.

    Args:
        encoder: the weights; converted to float64.
        x: features.
        graph: the pattern.
        rate: drop rate of the budgets.
        views: kept entries of each view, from `budgeted_deletions`.
        variants: the bounds to evaluate at the views.
    """
    encoder = Encoder(*(getattr(encoder, field.name).double() for field in fields(Encoder)))
    runs = len(encoder.weight1)
    bounds = entry_bounds(graph, rate, torch.float64)
    entries = entry_range(graph, bounds, runs)
    clean = graph.operator(graph.normalized(whole(graph, runs, torch.float64)))
    messages = encoder.messages(x.double())
    z = encode(encoder, messages, clean).embeddings
    w = contrast_weights(z)
    layers = {v: relaxations(encoder, messages, entries, clean=clean, variant=v) for v in {*variants, "sound"}}
    margins, scaled = [], []
    at_views: dict[str, list[Tensor]] = {variant: [] for variant in variants}
    for view in views.double():
        operator = graph.operator(graph.normalized(view[None]).expand(runs, -1))
        perturbed = encode(encoder, messages, operator).embeddings
        margins.append((perturbed * w).sum(-1))
        scaled.append(margins[-1] / perturbed.norm(dim=-1).clamp_min(1e-12))
        for variant, rows in at_views.items():
            rows.append(compactness_bound(encoder, messages, operator, layers[variant], w, variant=variant))
    return Compactness(
        torch.stack(margins),
        torch.stack(scaled),
        {variant: torch.stack(rows) for variant, rows in at_views.items()},
        compactness_bound(encoder, messages, clean, layers["sound"], w),
        certified_minimum(encoder, messages, graph, bounds, layers["sound"], w),
        z.norm(dim=-1),
    )
