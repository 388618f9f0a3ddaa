from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from scipy.stats import binom, chi2

from latentcell.errors import InputError
from latentcell.stats.distances import energy_distance
from latentcell.stats.hit_calling import Method, hit_p_values

METHODS = get_args(Method)


def wells(seed, n_groups=40, p=6, *, plates=3, controls=12, effect=0.0, plate_sd=0.0):
    rng = np.random.default_rng(seed)
    group = np.tile(np.append(["DMSO"] * controls, [f"drug {i}" for i in range(n_groups)]), plates).astype(object)
    block = np.repeat(np.arange(plates), controls + n_groups)
    values = rng.normal(size=(len(group), p)) + plate_sd * rng.normal(size=(plates, p))[block]
    values[group == "drug 0"] += effect
    return values, group, block


@pytest.mark.parametrize("method", METHODS)
def test_a_large_shift_is_found_and_order_and_names_do_not_matter(method) -> None:
    values, group, block = wells(0, 5, effect=4.0, plate_sd=1.0)
    table = hit_p_values(method, values, group, control="DMSO", block=block, n=199, rng=0)
    assert list(table.index) == [f"drug {i}" for i in range(5)]
    assert table["p"].idxmin() == "drug 0"
    assert table.loc["drug 0", "p"] <= 0.02
    assert ((table["p"] > 0) & (table["p"] <= 1)).all()
    order = np.random.default_rng(1).permutation(len(values))
    again = hit_p_values(method, values[order], group[order], control="DMSO", block=block[order], n=199, rng=0)
    if method != "conformal":  # it drops a random control
        np.testing.assert_allclose(again.loc[table.index, "statistic"], table["statistic"], rtol=1e-8)
    renamed = np.array([f"x{name}" for name in group], dtype=object)
    same = hit_p_values(method, values, renamed, control="xDMSO", block=block, n=199, rng=0)
    np.testing.assert_allclose(same.to_numpy(), table.to_numpy())


@pytest.mark.parametrize("method", ["mp_value", "energy", "conformal"])
def test_recipes_that_permute_or_rank_reject_no_more_than_they_say(method) -> None:
    p = np.concatenate([
        hit_p_values(method, *wells(seed, 30)[:2], control="DMSO", block=wells(seed, 30)[2], n=99, rng=0)["p"]
        for seed in range(8)
    ])  # fmt: skip
    assert (p <= 0.05).sum() <= binom.ppf(0.999, len(p), 0.05)


def test_naive_mahalanobis_calls_far_too_much_which_is_why_it_is_not_used() -> None:
    values, group, block = wells(0, 60, p=10)
    p = hit_p_values("mahalanobis", values, group, control="DMSO", block=block, n=199, rng=0)["p"]
    assert (p <= 0.05).mean() > 0.15


def test_average_precision_is_that_of_the_ranking_by_cosine() -> None:
    # on one plate centred at 0 and of unit SD: the group's two wells and two controls in known directions
    values = np.array([[1.0, 0.0], [0.9, 0.1], [1.0, 0.05], [-1.0, -0.05], [0.0, 1.0], [0.0, -1.0]])
    group = np.array(["a", "a", "c", "c", "c", "c"], dtype=object)
    table = hit_p_values("map", values, group, control="c", block=np.zeros(6), n=99, rng=0)
    sd = values[2:].std(0)
    unit = values / sd
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    expected = []
    for i, other in ((0, 1), (1, 0)):
        similar = unit @ unit[i]
        rank = 1 + sum(similar[j] > similar[other] for j in range(2, 6))
        expected.append(1 / rank)
    assert table.loc["a", "statistic"] == pytest.approx(np.mean(expected))


def test_energy_statistic_is_the_biased_energy_distance() -> None:
    values, group, block = wells(1, 1, plates=1, controls=6)
    values, group, block = np.concatenate([values, values[-1:] + 1]), np.append(group, "drug 0"), np.append(block, 0)
    table = hit_p_values("energy", values, group, control="DMSO", block=block, n=9, rng=0)
    x = values - values[:6].mean(0)
    x = x / x[:6].std(0)
    a, b = x[6:], x[:6]

    def mean(u, v):
        return np.linalg.norm(u[:, None] - v[None], axis=-1).mean()

    assert table.loc["drug 0", "statistic"] == pytest.approx(2 * mean(a, b) - mean(a, a) - mean(b, b))
    assert energy_distance(a, b) != pytest.approx(table.loc["drug 0", "statistic"])


def test_conformal_statistic_is_fishers_sum_of_log_ranks() -> None:
    values, group, block = wells(0, 1, effect=50.0, plates=2, controls=5, p=2)
    table = hit_p_values("conformal", values, group, control="DMSO", block=block, rng=0)
    assert table.loc["drug 0", "statistic"] == pytest.approx(-4 * np.log(1 / 6))
    assert table.loc["drug 0", "p"] == pytest.approx(chi2.sf(-4 * np.log(1 / 6), 4))


def test_a_group_of_one_replicate_has_no_average_precision() -> None:
    values, group, block = wells(0, 1, plates=1)
    assert hit_p_values("map", values, group, control="DMSO", block=block, rng=0)["p"].isna().all()


def test_bad_input_is_refused_by_name() -> None:
    values, group, block = wells(0, 2)
    with pytest.raises(InputError, match="choose one of"):
        hit_p_values("t-test", values, group, control="DMSO", block=block)
    with pytest.raises(InputError, match="groups present: 'DMSO', 'drug 0'"):
        hit_p_values("map", values, group, control="water", block=block)
    with pytest.raises(InputError, match="Blocks without a control \\('9'\\)"):
        hit_p_values("map", values, group, control="DMSO", block=np.where(group == "drug 1", 9, block))
    values[3, 2] = np.nan
    with pytest.raises(InputError, match=r"Replicate 3 .* feature 2"):
        hit_p_values("map", values, group, control="DMSO", block=block)


def test_mp_value_matches_a_plain_computation() -> None:
    values, group, block = wells(2, 1, p=3, plates=1, controls=4)
    table = hit_p_values("mp_value", values, group, control="DMSO", block=block, n=200, rng=0)
    x = values - values[:4].mean(0)
    x = x / x[:4].std(0)
    z = x - x.mean(0)
    u, s, _ = np.linalg.svd(z, full_matrices=False)
    share = s**2 / (s**2).sum()
    k = int(np.searchsorted(np.cumsum(share), 0.9)) + 1
    scores = (u * s)[:, :k] * share[:k]
    apart = scores[4] - scores[:4].mean(0)
    distance = apart @ np.linalg.pinv(np.cov(scores[:4].T, bias=True).reshape(k, k)) @ apart
    assert table.loc["drug 0", "statistic"] == pytest.approx(np.sqrt(distance))
