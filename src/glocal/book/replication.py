"""Statuses that have to be the same for several seeds of a whole chapter.

The interval behind a status covers the runs of one seed. An effect near its threshold may still be judged differently
with another seed, whose splits, tuning and weights are all drawn anew. Such a status is no finding.
"""

from collections.abc import Mapping
from dataclasses import replace

from glocal.book.claims import Claim
from glocal.book.verdict import Judgement, Status, Verdict


def replicated(verdict: Verdict, found: Mapping[Claim, Mapping[int, Status]]) -> Verdict:
    """The verdict with all claims *inconclusive* whose status differs between seeds; nothing else changes.

    A status can only be weakened: `holds` and `fails` need agreement of this run with all seeds that are listed, and
    a claim that is inconclusive here stays so. Measurements and intervals are those of this run. Verdicts of other
    scales than `"small"` are returned as they are.

    Args:
        verdict: of this run.
        found: for some claims the statuses that runs of the chapter gave by themselves, by their `seed`.

    Raises:
        ValueError: for a claim that the verdict does not judge, or no seeds.
    """
    judged = {judgement.claim for judgement in verdict.judgements}
    for claim, by_seed in found.items():
        if claim not in judged:
            raise ValueError(f"found must list claims of this verdict, got {claim.id}")
        if not by_seed:
            raise ValueError(f"found must give the status of {claim.id} for at least one seed, got none")
    if verdict.scale != "small":
        return verdict
    return replace(verdict, judgements=tuple(_agreed(j, found.get(j.claim, {})) for j in verdict.judgements))


def _agreed(judgement: Judgement, by_seed: Mapping[int, Status]) -> Judgement:
    if set(by_seed.values()) <= {judgement.status}:
        return judgement
    seeds = ", ".join(f"seed {seed}: {status}" for seed, status in sorted(by_seed.items()))
    reason = f"The status depends on the seed ({seeds}; this run alone: {judgement.status})."
    return replace(judgement, status="inconclusive", note=f"{judgement.note} {reason}".strip())
