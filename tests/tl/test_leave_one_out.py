"""Each interior level is predicted by a model that was refitted without it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from linear import RefittableModel

from latentcell.errors import InputError
from latentcell.tl import leave_one_out


def five_days(n: int = 12, days: tuple[Any, ...] = (0, 1, 2, 4, 8)) -> tuple[AnnData, RefittableModel]:
    rng = np.random.default_rng(0)
    day = np.repeat(days, n)
    z = np.stack([np.repeat(np.arange(5.0), n) + rng.normal(size=5 * n), 2 * rng.normal(size=5 * n)], axis=1)
    obs = pd.DataFrame({"day": day}, index=[f"c{i}" for i in range(5 * n)])
    obs["stage"] = pd.Categorical(np.repeat(["d", "c", "b", "a", "e"], n), categories=list("dcbae"), ordered=True)
    obs["name"] = obs["stage"].astype(str)
    obs["donor"] = np.where(np.arange(5 * n) % 2, "x", "y")
    cells = AnnData(X=z.astype(np.float32), obs=obs)
    cells.var_names = ["v0", "v1"]
    return cells, RefittableModel(np.eye(2))


def left_out(model: RefittableModel, key: str = "day") -> list[Any]:
    return [fit["exclude"][key] for fit in model.fits]


@pytest.fixture(autouse=True)
def _few_cells_may_leave_gaps() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The path crosses empty space|.* are disconnected", UserWarning)
        yield


@pytest.mark.parametrize("days", [(0, 1, 2, 4, 8), ("0", "1", "2", "4", "8")])
def test_every_time_but_the_first_and_last_is_left_out_in_order(days: tuple[Any, ...]) -> None:
    cells, model = five_days(days=days)
    table = leave_one_out(cells, model, "day")
    assert left_out(model) == [[1.0], [2.0], [4.0]]
    assert table.groupby("held_out", sort=False)[["source", "target"]].first().to_numpy().tolist() == [
        [0.0, 2.0],
        [1.0, 4.0],
        [2.0, 8.0],
    ]


def test_ordered_stages_are_left_out_in_their_order() -> None:
    cells, model = five_days()
    table = leave_one_out(cells, model, "stage")
    assert left_out(model, "stage") == [["c"], ["b"], ["a"]]
    assert list(table["held_out"].unique()) == ["c", "b", "a"]
    assert list(table["source"].unique()) == ["d", "c", "b"]


def test_the_model_that_is_given_is_neither_used_nor_changed() -> None:
    cells, model = five_days()
    model.seen_names = frozenset(cells.obs_names)  # it has seen every truth, and is not asked
    leave_one_out(cells, model, "day", levels=[1])
    assert model.asked == []
    assert model.seen_names == frozenset(cells.obs_names)


def test_named_levels_are_left_out_as_asked() -> None:
    cells, model = five_days()
    table = leave_one_out(cells, model, "day", levels=[4, 1])
    assert left_out(model) == [[4], [1]]
    assert list(table["held_out"].unique()) == [4, 1]


def test_the_table_is_the_evaluations_one_below_the_other_with_their_verdicts() -> None:
    cells, model = five_days()
    table = leave_one_out(cells, model, "day", levels=[1, 2])
    assert list(table.columns) == [
        *("held_out", "source", "target", "space", "method", "metric", "value", "low", "high")
    ]
    assert table.index.tolist() == list(range(len(table)))
    first, second = (table[table.held_out == level] for level in (1, 2))
    assert len(first) == len(second) == len(table) / 2
    assert list(first["method"]) == list(second["method"])
    assert set(table.attrs["verdicts"]) == {"1", "2"}
    assert set(table.attrs["verdicts"]["1"]) == {"model", "data"}


def test_what_a_fit_excludes_anyway_stays_excluded() -> None:
    cells, model = five_days()
    fit = {"exclude": {"day": [8], "donor": ["x"]}, "epochs": 3}
    leave_one_out(cells, model, "day", levels=[1, 2], fit=fit)
    assert [each["exclude"] for each in model.fits] == [
        {"day": [8, 1], "donor": ["x"]},
        {"day": [8, 2], "donor": ["x"]},
    ]
    assert fit == {"exclude": {"day": [8], "donor": ["x"]}, "epochs": 3}
    assert {each["epochs"] for each in model.fits} == {3}


def test_the_seed_reaches_fits_and_predictions() -> None:
    cells, model = five_days()
    first, again, other = (leave_one_out(cells, model, "day", levels=[2], rng=seed) for seed in (5, 5, 6))
    assert [fit["rng"] for fit in model.fits] == [5, 5, 6]
    pd.testing.assert_frame_equal(first, again)
    assert not np.allclose(first["value"], other["value"])


def test_options_reach_interpolate() -> None:
    cells, model = five_days()
    with pytest.warns(UserWarning, match="'donor' has fewer than three levels"):
        table = leave_one_out(cells, model, "day", levels=[2], pairing="random", replicate="donor")
    assert "random pairs" not in set(table["method"])
    assert cells.uns["interpolate"]["params"]["replicate"] == "donor"


def test_models_in_the_folder_are_not_fitted_again(tmp_path: Path) -> None:
    cells, model = five_days()
    first = leave_one_out(cells, model, "day", folder=tmp_path / "folds")
    assert sorted(path.name for path in (tmp_path / "folds").iterdir()) == [
        "without_1.0",
        "without_2.0",
        "without_4.0",
    ]
    assert len(model.fits) == 3
    again = leave_one_out(cells, model, "day", folder=tmp_path / "folds")
    assert len(model.fits) == 3
    pd.testing.assert_frame_equal(first, again)


def test_only_missing_models_are_fitted_and_checkpoints_are_cleared_away(tmp_path: Path) -> None:
    cells, model = five_days()
    leave_one_out(cells, model, "stage", levels=["b"], folder=tmp_path)
    leave_one_out(cells, model, "stage", folder=str(tmp_path))
    assert left_out(model, "stage") == [["b"], ["c"], ["a"]]
    assert [fit["checkpoint"].parent for fit in model.fits] == [tmp_path] * 3
    assert len({fit["checkpoint"] for fit in model.fits}) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["without_a", "without_b", "without_c"]


def test_without_a_folder_nothing_is_kept() -> None:
    cells, model = five_days()
    leave_one_out(cells, model, "day", levels=[2])
    assert model.fits[0]["checkpoint"] is None


def test_a_stored_model_that_has_seen_the_level_is_refused(tmp_path: Path) -> None:
    cells, model = five_days()
    leave_one_out(cells, model, "stage", levels=["b"], folder=tmp_path)
    (tmp_path / "without_b").rename(tmp_path / "without_c")
    with pytest.raises(InputError, match="12 of 12 cells of 'c' were used in fitting"):
        leave_one_out(cells, model, "stage", levels=["c"], folder=tmp_path)


def test_levels_with_characters_that_folders_cannot_have_are_kept_too(tmp_path: Path) -> None:
    cells, model = five_days()
    cells.obs["stage"] = cells.obs["stage"].cat.rename_categories({"b": "G1/S: ö"})
    leave_one_out(cells, model, "stage", levels=["G1/S: ö"], folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["without_G1_S__ö"]


@pytest.mark.parametrize(
    ("key", "options", "message"),
    [
        ("name", {}, "names without an order"),
        ("two", {}, "'two' has 2 levels: at least three are needed"),
        ("day", {"levels": []}, "at least three are needed"),
        ("day", {"levels": [0]}, "No level comes before 0"),
        ("day", {"levels": [1, 8]}, "No level comes after 8"),
        ("stage", {"levels": ["z"]}, "No cell has 'stage' equal to 'z'.*d \\(12\\), c"),
        ("week", {}, "no column 'week'"),
    ],
)
def test_levels_that_cannot_be_left_out_are_refused_before_anything_is_fitted(
    key: str, options: dict[str, Any], message: str
) -> None:
    cells, model = five_days()
    cells.obs["two"] = np.where(np.arange(60) < 30, 1, 2)
    with pytest.raises(InputError, match=message):
        leave_one_out(cells, model, key, **options)
    assert model.fits == []
