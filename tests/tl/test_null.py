"""What the intervals and verdicts say when there is nothing to find."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from latentcell.tl.evaluate import Representation, Sample, Space, evaluate

SEEDS = 20


def populations(seed: int, *, n: int = 50, n_truth: int = 50, d: int = 3) -> dict[str, Sample]:
    """Prediction, truth and a baseline ``"alike"`` of one distribution, and two ends far on either side."""
    rng = np.random.default_rng(seed)

    def drawn(size: int, place: float = 0.0) -> Sample:
        return Sample(rng.normal(size=(size, d)) + place)

    return {
        "prediction": drawn(n),
        "truth": drawn(n_truth),
        "source": drawn(n, -2.0),
        "target": drawn(n, 2.0),
        "alike": drawn(n),
    }


def judged(samples: dict[str, Sample], seed: int) -> tuple[pd.DataFrame, str]:
    ends = np.concatenate([samples["source"].variables, samples["target"].variables])
    fixed = Representation.fit(ends, "profiles")
    scaled = {name: Sample(fixed.variables(each.variables), each.replicates) for name, each in samples.items()}
    table, said = evaluate({"data": Space(fixed, scaled)}, rng=seed)
    return table[table.metric == "energy distance"].set_index("method"), said["data"]


def without(samples: dict[str, Sample], *names: str) -> dict[str, Sample]:
    return {name: each for name, each in samples.items() if name not in names}


@pytest.mark.parametrize(("n", "n_truth", "d"), [(50, 50, 3), (25, 60, 10), (80, 20, 5)])
def test_the_interval_of_a_prediction_from_the_truths_own_distribution_covers_zero(
    n: int, n_truth: int, d: int
) -> None:
    tables = [judged(populations(seed, n=n, n_truth=n_truth, d=d), seed)[0] for seed in range(SEEDS)]
    for method in ("prediction", "alike", "floor"):
        covered = sum(t.low[method] <= 0 <= t.high[method] for t in tables)
        assert covered >= 0.9 * SEEDS  # 95 % intervals: fewer than 18 of 20 with a probability of 8 %
    estimates = [t.value["prediction"] for t in tables]
    assert abs(np.mean(estimates)) < 2.5 * np.std(estimates) / np.sqrt(SEEDS)


def test_such_a_prediction_is_never_called_worse_and_beats_both_ends() -> None:
    for seed in range(SEEDS):
        _, said = judged(without(populations(seed), "alike"), seed)
        assert "better than every baseline" in said


def test_a_baseline_as_good_as_the_prediction_is_neither_beaten_nor_better() -> None:
    said = [judged(populations(seed), seed)[1] for seed in range(SEEDS)]
    assert sum("no better than alike" in each for each in said) >= 0.9 * SEEDS


def test_copies_of_one_end_are_no_better_than_it_and_a_worse_prediction_is_called_worse() -> None:
    for seed in range(5):
        samples = populations(seed)
        copied = without(samples, "alike") | {"prediction": samples["source"]}
        assert "no better than copying" in judged(copied, seed)[1] or "worse than copying" in judged(copied, seed)[1]
        far = Sample(samples["source"].variables - 4)
        assert "worse than alike" in judged(samples | {"prediction": far}, seed)[1]
