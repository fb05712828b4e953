"""Long tails, bags and label noise."""

import pytest
import torch

from glocal.data.sampling import long_tailed_counts, permute_labels, random_bags, subsample_classes
from glocal.seeding import torch_generator


def test_long_tail_has_the_stated_ends() -> None:
    assert long_tailed_counts(240, 5, 16.0) == [240, 120, 60, 30, 15]
    assert long_tailed_counts(100, 3, 1.0) == [100, 100, 100]
    assert long_tailed_counts(5000, 10, 100.0)[-1] == 50
    assert long_tailed_counts(3, 2, 100.0) == [3, 1]
    assert long_tailed_counts(7, 1, 10.0) == [7]
    with pytest.raises(ValueError, match="imbalance"):
        long_tailed_counts(10, 5, 0.5)


def test_subsampling_takes_the_counts_asked_for() -> None:
    labels = torch.arange(90) % 3
    index = subsample_classes(labels, [20, 0, 5], generator=torch_generator(0))
    assert torch.bincount(labels[index], minlength=3).tolist() == [20, 0, 5]
    assert len(index.unique()) == 25
    assert labels[index].tolist() != sorted(labels[index].tolist())
    other = subsample_classes(labels, [20, 0, 5], generator=torch_generator(1))
    assert set(other.tolist()) != set(index.tolist())
    with pytest.raises(ValueError, match="class 1 has 30"):
        subsample_classes(labels, [1, 31], generator=torch_generator(0))


def test_bags_are_disjoint_and_of_one_size() -> None:
    bags = random_bags(103, 8, generator=torch_generator(0))
    assert bags.shape == (12, 8)
    assert len(bags.unique()) == 96
    with pytest.raises(ValueError, match="bag_size"):
        random_bags(5, 6, generator=torch_generator(0))


def test_permuted_labels_keep_the_histogram() -> None:
    labels = torch.arange(1000) % 10
    noisy = permute_labels(labels, 0.2, generator=torch_generator(0))
    assert torch.equal(torch.bincount(noisy), torch.bincount(labels))
    changed = int((noisy != labels).sum())
    assert 150 < changed < 200
    assert torch.equal(permute_labels(labels, 0.0, generator=torch_generator(0)), labels)
    with pytest.raises(ValueError, match="between 0 and 1"):
        permute_labels(labels, 1.5, generator=torch_generator(0))
