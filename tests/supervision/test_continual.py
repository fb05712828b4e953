"""Streams and anytime metrics shared by the continual-learning chapters."""

import pytest
import torch

from glocal.seeding import torch_generator
from glocal.supervision.anytime import AnytimeRecord, run_stream
from glocal.supervision.continual import (
    class_incremental_stream,
    concat_streams,
    long_tail,
    rank_within_class,
    si_blurry_stream,
)

LABELS = torch.arange(12).repeat_interleave(40)


def stream(n_tasks: int = 5, r_disjoint: float = 0.5, r_blurry: float = 0.1, seed: int = 0):  # type: ignore[no-untyped-def]
    generator = torch_generator(seed, "stream")
    return si_blurry_stream(LABELS, n_tasks, r_disjoint=r_disjoint, r_blurry=r_blurry, generator=generator)


@pytest.mark.parametrize("r_disjoint", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("r_blurry", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("n_tasks", [1, 2, 20])
def test_every_sample_arrives_once(r_disjoint: float, r_blurry: float, n_tasks: int) -> None:
    s = stream(n_tasks, r_disjoint, r_blurry)
    assert torch.equal(s.index.sort().values, torch.arange(len(LABELS)))
    assert (s.task.diff() >= 0).all()
    batched = torch.cat([index for _, index in s.batches(7)])
    assert torch.equal(batched, s.index)


@pytest.mark.parametrize("r_blurry", [0.0, 0.1, 0.33, 1.0])
def test_spread_share_is_r_blurry_to_rounding(r_blurry: float) -> None:
    s = stream(r_blurry=r_blurry)
    labels = LABELS[s.index]
    assert int(s.is_disjoint.sum()) == 6
    for c in range(12):
        expected = 0 if s.is_disjoint[c] else round(r_blurry * 40)
        assert int(s.is_spread[labels == c].sum()) == expected
    stays = ~s.is_spread
    assert torch.equal(s.task[stays], s.home[labels[stays]])


def test_disjoint_tasks_share_no_class() -> None:
    for r_disjoint, r_blurry in ((1.0, 0.5), (0.0, 0.0)):
        present = stream(r_disjoint=r_disjoint, r_blurry=r_blurry).task_classes(LABELS)
        assert (present.sum(0) == 1).all()
        assert present.any(1).all()  # no task is empty


def test_full_blur_fills_every_task_evenly() -> None:
    s = stream(4, 0.0, 1.0)
    sizes = torch.bincount(s.task, minlength=4).double()
    assert (sizes / len(s) - 0.25).abs().max() < 0.08  # four standard errors of a share of 480 draws


def test_batches_do_not_cross_borders_and_task_sizes_vary() -> None:
    s = stream()
    for task, index in s.batches(64):
        assert len(index) <= 64
        assert (s.task[torch.isin(s.index, index)] == task).all()
    assert len(set(torch.bincount(s.task).tolist())) > 1


def test_seed_decides_the_stream() -> None:
    assert torch.equal(stream(seed=3).index, stream(seed=3).index)
    assert not torch.equal(stream(seed=3).index, stream(seed=4).index)


@pytest.mark.parametrize("bad", [{"r_blurry": 10.0}, {"r_disjoint": -0.1}])
def test_shares_must_be_shares(bad: dict[str, float]) -> None:
    name = next(iter(bad))
    with pytest.raises(ValueError, match=rf"{name} must be a share in \[0, 1\], got"):
        stream(**bad)
    with pytest.raises(ValueError, match="n_tasks must be at least 1, got 0"):
        stream(n_tasks=0)


def test_classical_stream_deals_out_the_classes() -> None:
    s = class_incremental_stream(LABELS, 6, 3, generator=torch_generator(0, "cil"))
    present = s.task_classes(LABELS)
    assert present.sum(1).tolist() == [6, 2, 2, 2]
    assert present[0, :6].all()
    with pytest.raises(ValueError, match="6 classes after a base of 6 cannot be dealt out equally to 4 phases"):
        class_incremental_stream(LABELS, 6, 4, generator=torch_generator(0, "cil"))


def test_rank_within_class_by_hand() -> None:
    rank = rank_within_class(torch.tensor([1, 0, 1, 1, 0]), torch.tensor([0.3, 0.9, 0.1, 0.2, 0.4]))
    assert rank.tolist() == [2, 1, 0, 1, 0]


def test_long_tail_sizes() -> None:
    index = long_tail(LABELS, 10.0, 150, generator=torch_generator(0, "tail"))
    sizes = torch.bincount(LABELS[index], minlength=12).sort().values
    assert sizes[-1] / sizes[0] == pytest.approx(10, rel=0.15)
    assert len(index) == pytest.approx(150, abs=6)
    flat = long_tail(LABELS, 1.0, 120, generator=torch_generator(0, "tail"))
    assert torch.bincount(LABELS[flat]).tolist() == [10] * 12
    with pytest.raises(ValueError, match=r"imbalance 50 with 400 samples asks for \d+ of a class that has 40"):
        long_tail(LABELS, 50.0, 400, generator=torch_generator(0, "tail"))
    with pytest.raises(ValueError, match=r"at least 1, got 0\.5"):
        long_tail(LABELS, 0.5, 100, generator=torch_generator(0, "tail"))


def test_metrics_by_hand() -> None:
    """Two classes with 1 and 3 test samples; class 1 arrives after 10 of 40 samples."""
    record = AnytimeRecord(
        n_seen=torch.tensor([10, 20, 40]),
        is_task_end=torch.tensor([True, False, True]),
        class_accuracy=torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1 / 3]]).double(),
        is_seen=torch.tensor([[True, False], [True, True], [True, True]]),
        test_counts=torch.tensor([1, 3]),
    )
    assert record.accuracy.tolist() == pytest.approx([1.0, 0.75, 0.5])
    assert record.accuracy_all.tolist() == pytest.approx([0.25, 0.75, 0.5])
    assert record.macro_accuracy.tolist() == pytest.approx([1.0, 0.5, 2 / 3])
    assert record.a_auc == pytest.approx((10 * 1 + 10 * 0.75 + 20 * 0.5) / 40)
    assert record.a_avg == pytest.approx(0.75)
    assert record.a_last == pytest.approx(0.5)
    assert record.forgetting.tolist() == pytest.approx([0.0, 2 / 3])


class Oracle:
    """Knows the label, which is the only feature, and answers only with classes it has been shown."""

    def __init__(self) -> None:
        self.shown: set[int] = set()
        self.n_tasks = 0
        self.n_samples = 0

    def begin_task(self) -> None:
        self.n_tasks += 1

    def update(self, x: torch.Tensor, labels: torch.Tensor) -> None:
        self.shown |= set(labels.tolist())
        self.n_samples += len(labels)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        truth = x[:, 0].long()
        return torch.where(torch.isin(truth, torch.tensor(sorted(self.shown))), truth, -1)


def test_run_stream_with_an_oracle() -> None:
    s = stream()
    x = LABELS[:, None].double()
    oracle = Oracle()
    record = run_stream(oracle, s, (x, LABELS), (x, LABELS), batch_size=16, eval_every=100)
    assert oracle.n_tasks == 5
    assert oracle.n_samples == len(LABELS) == int(record.n_seen[-1])
    assert int(record.is_task_end.sum()) == 5
    assert (record.accuracy == 1).all()
    assert torch.allclose(record.accuracy_all, record.is_seen.double().mean(1))
    assert (torch.diff(record.n_seen) <= 100 + 16).all()
    short = run_stream(Oracle(), s, (x, LABELS), (x, LABELS), batch_size=16, max_batches=2)
    assert int(short.n_seen[-1]) == 32


def test_concatenated_streams() -> None:
    first, second = stream(2), stream(3, seed=1)
    both = concat_streams(first, second)
    assert both.n_tasks == 5
    assert torch.equal(both.index.sort().values, torch.arange(2 * len(LABELS)))
    assert torch.equal(both.index[len(LABELS) :] - len(LABELS), second.index)
    assert both.task[len(LABELS) - 1] < both.task[len(LABELS)]
