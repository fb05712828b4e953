"""Statuses that have to be the same for several seeds of a whole chapter.

The interval behind a status covers the runs of one seed. An effect near its threshold may still be judged differently
with another seed, whose splits, tuning and weights are all drawn anew. Such a status is no finding.

`glocal record` keeps what a chapter finds with other seeds in `book/results/replications/<chapter>.json`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from glocal.book.catalogue import project_root
from glocal.book.verdict import Judgement, Status, Verdict

StatusBySeed = Mapping[int, Status]


@dataclass(frozen=True)
class SeedDependent(Judgement):
    """A judgement that is inconclusive because its status is not the same for all seeds.

    Args:
        alone: the status that this run gives by itself.
        by_seed: the statuses that recorded runs gave by themselves.
    """

    alone: Status = "inconclusive"
    by_seed: StatusBySeed = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The claim as it appears under the verdict's MIME type, with the status of this run `alone`."""
        return {**super().to_json(), "alone": self.alone}


def replicated(verdict: Verdict, root: Path | None = None) -> Verdict:
    """The verdict with all claims *inconclusive* whose status differs between seeds; nothing else changes.

    A status can only be weakened: `holds` and `fails` need agreement of this run with all recorded seeds, and a claim
    that is inconclusive here stays so. Measurements and intervals are those of this run. Claims without a record and
    verdicts of other scales than `"small"` stay as they are.

    Args:
        verdict: of this run.
        root: the project's folder; found from the working folder if None.

    Raises:
        ValueError: for a record that cannot be read.
    """
    if verdict.scale != "small":
        return verdict
    found = statuses_by_seed(recorded_replications(verdict.slug, root or project_root()))
    return replace(verdict, judgements=tuple(_agreed(j, found.get(j.claim.id, {})) for j in verdict.judgements))


def replication_file(slug: str, root: Path) -> Path:
    """Where the runs of a chapter with several seeds are kept."""
    return root / "book" / "results" / "replications" / f"{slug}.json"


def recorded_replications(slug: str, root: Path) -> list[dict[str, Any]]:
    """The recorded small-scale runs of a chapter, by seed; empty if there are none.

    Returns:
        For each run its `seed`, `code_hash`, `cpu_seconds`, where and when it was made, and its `claims`: for each id
        the `status` that the run gives by itself, and what was measured (`ours`).

    Raises:
        ValueError: for a file that is damaged.
    """
    path = replication_file(slug, root)
    if not path.is_file():
        return []
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        return sorted(runs, key=lambda run: int(run["seed"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}): restore it with git, or remove it and record the runs of {slug} again"
        ) from error


def statuses_by_seed(runs: list[dict[str, Any]]) -> dict[str, dict[int, Status]]:
    """For each claim's id the status by seed."""
    found: dict[str, dict[int, Status]] = {}
    for run in runs:
        for name, claim in run["claims"].items():
            found.setdefault(name, {})[run["seed"]] = claim["status"]
    return found


def own_status(claim: Mapping[str, Any]) -> Status:
    """The status that a run gives by itself, from a claim of its verdict's JSON."""
    status: Status = claim.get("alone", claim["status"])
    return status


def statuses_in_words(by_seed: StatusBySeed) -> str:
    """Statuses by seed in words."""
    return ", ".join(f"seed {seed}: {status}" for seed, status in sorted(by_seed.items()))


def _agreed(judgement: Judgement, by_seed: StatusBySeed) -> Judgement:
    if set(by_seed.values()) <= {judgement.status}:
        return judgement
    reason = f"The status depends on the seed ({statuses_in_words(by_seed)}; this run alone: {judgement.status})."
    note = f"{judgement.note} {reason}".strip()
    return SeedDependent(judgement.claim, judgement.ours, "inconclusive", note, judgement.status, dict(by_seed))
