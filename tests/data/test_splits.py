"""Splits: disjoint, stratified, determined by the generator."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glocal.data.splits import node_split, stratified_split
from glocal.seeding import torch_generator


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(6, 40), min_size=1, max_size=6),
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    seed=st.integers(0, 10**6),
)
def test_counts_are_met_in_every_class(counts: list[int], sizes: list[int], seed: int) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch_generator(seed, "shuffle"))]
    parts = stratified_split(labels, sizes, generator=torch_generator(seed))
    together = torch.cat(parts)
    assert len(together.unique()) == len(together)
    for part, size in zip(parts, sizes, strict=True):
        assert labels[part].bincount(minlength=len(counts)).tolist() == [size] * len(counts)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(8, 200), min_size=1, max_size=6),
    cuts=st.sampled_from([(0.5, 0.5), (0.8, 0.2), (0.6, 0.2, 0.2), (0.3,), (0.25, 0.25)]),
    seed=st.integers(0, 10**6),
)
def test_fractions_are_met_up_to_one_example(counts: list[int], cuts: tuple[float, ...], seed: int) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)) * 3  # labels with gaps
    parts = stratified_split(labels, cuts, generator=torch_generator(seed))
    together = torch.cat(parts)
    assert len(together.unique()) == len(together)
    if sum(cuts) == 1:
        assert len(together) == len(labels)
    for part, share in zip(parts, cuts, strict=True):
        found = labels[part].bincount(minlength=3 * len(counts))[::3]
        assert all(abs(float(a) - share * b) <= 1 for a, b in zip(found, counts, strict=True))


def test_the_generator_decides() -> None:
    labels = torch.arange(500) % 5
    first, again = (stratified_split(labels, (20, 30), generator=torch_generator(1)) for _ in range(2))
    other = stratified_split(labels, (20, 30), generator=torch_generator(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_a_prefix_is_a_random_sample() -> None:
    labels = torch.arange(1000) // 100
    (part,) = stratified_split(labels, (50,), generator=torch_generator(0))
    assert len(labels[part[:100]].unique()) == 10
    (whole,) = stratified_split(torch.zeros(300, dtype=torch.long), (1.0,), generator=torch_generator(0))
    assert not torch.equal(whole, whole.sort().values)


def test_every_member_is_equally_likely() -> None:
    labels = torch.tensor([0] * 10 + [1] * 10)
    counts = torch.zeros(20)
    for seed in range(400):
        (part,) = stratified_split(labels, (5,), generator=torch_generator(seed))
        counts[part] += 1
    assert (counts / 400 - 0.5).abs().max() < 0.11  # more than four standard deviations


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((), "at least one entry"),
        ((0, 3), "at least 1 per class, got"),
        ((1, 0.5), "all int .* or all float .*got"),
        ((0.7, 0.4), "sum of at most 1, got"),
        ((4, 3), "need more examples than class 1 has: got 6 examples"),
        ((0.95, 0.05), "need more examples than class 0 has"),
    ],
)
def test_bad_sizes_are_explained(sizes: tuple[float, ...], message: str) -> None:
    labels = torch.tensor([0] * 7 + [1] * 6)
    with pytest.raises(ValueError, match=message):
        stratified_split(labels, sizes, generator=torch_generator(0))


def test_node_split_covers_all_nodes_once() -> None:
    labels = torch.arange(300) % 6
    masks = node_split(labels, 10, 50, generator=torch_generator(0))
    assert [int(mask.sum()) for mask in masks] == [60, 50, 190]
    assert torch.equal(torch.stack(masks).sum(0), torch.ones(300, dtype=torch.long))
    assert labels[masks[0]].bincount().tolist() == [10] * 6
    with pytest.raises(ValueError, match="n_val must be between 1 and 239 to leave test nodes, got 240"):
        node_split(labels, 10, 240, generator=torch_generator(0))
