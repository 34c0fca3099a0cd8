"""A few hundred damaged models; ``make fuzz`` runs thousands."""

from __future__ import annotations

from fuzz import fuzz


def test_damaged_models_are_refused_or_run() -> None:
    outcomes, findings = fuzz(seed=11, count=300)
    assert not findings, "\n".join(f"{finding.number}: {finding.what}" for finding in findings)
    assert sum(outcomes.values()) == 300
    assert outcomes["run"] > 60
    assert outcomes["refused"] > 60


def test_a_worker_that_dies_is_told_by_the_model_it_died_of() -> None:
    _, findings = fuzz(seed=11, count=3, workers=1, seconds=0.001)
    assert [finding.number for finding in findings] == [0, 1, 2]
    assert all("Timeout" in finding.what for finding in findings)
