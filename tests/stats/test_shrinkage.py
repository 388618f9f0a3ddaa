from __future__ import annotations

import numpy as np
import pytest

from latentcell.stats.shrinkage import oas_shrinkage, sphered


def test_sphered_controls_vary_evenly_in_all_directions_when_there_are_many() -> None:
    rng = np.random.default_rng(0)
    mixing = np.eye(4) + 0.5
    x = rng.normal(size=(20_000, 4)) @ mixing
    x -= x.mean(0)
    z = sphered(x, x, len(x) - 1)
    np.testing.assert_allclose(np.cov(z.T), np.eye(4), atol=0.08)


@pytest.mark.parametrize(("n", "p"), [(30, 5), (8, 20)])
def test_sphering_is_the_inverse_root_of_the_shrunken_correlation_in_any_number_of_features(n: int, p: int) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n, p)) @ rng.normal(size=(p, p))
    x -= x.mean(0)
    values, f = rng.normal(size=(3, p)), n - 1
    sd = np.sqrt((x**2).sum(0) / f)
    a = oas_shrinkage(x / sd, f)
    shrunken = (1 - a) * (x / sd).T @ (x / sd) / f + a * np.eye(p)
    expected = (values / sd) @ np.linalg.inv(shrunken) @ (values / sd).T
    z = sphered(values, x, f)
    np.testing.assert_allclose(z @ z.T, expected, rtol=1e-8)


def test_sphering_does_not_depend_on_units_and_leaves_out_constant_features() -> None:
    rng = np.random.default_rng(2)
    x, values = rng.normal(size=(12, 4)), rng.normal(size=(2, 4))
    units = np.array([1e-3, 1.0, 50.0, 1e4])
    np.testing.assert_allclose(sphered(values * units, x * units, 11), sphered(values, x, 11), rtol=1e-8)
    padded = sphered(np.column_stack([values, np.ones(2)]), np.column_stack([x, np.zeros(12)]), 11)
    np.testing.assert_allclose(padded, sphered(values, x, 11))


def test_shrinkage_is_strong_for_few_independent_replicates_and_weak_for_many_correlated_ones() -> None:
    rng = np.random.default_rng(3)
    few = rng.normal(size=(10, 30))
    many = rng.normal(size=(5_000, 3)) @ np.array([[1, 0.9, 0.9], [0, 0.3, 0], [0, 0, 0.3]])
    many /= many.std(0)
    assert oas_shrinkage(few, 9) > 0.6
    assert oas_shrinkage(many, 4_999) < 0.02
