"""Sums and differences of populations: how expressions are read, and what is decoded."""

from __future__ import annotations

import re
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from linear import counts_course, course, images_course

from latentcell.errors import InputError
from latentcell.tl import arithmetic
from latentcell.tl.arithmetic import parsed

plain = st.text(st.characters(codec="utf-8", exclude_characters='"+-*/()', categories=["L", "N", "P"]), min_size=1)
quoted = st.text(st.characters(codec="utf-8", exclude_characters='"'), min_size=1)
factors = st.one_of(st.none(), st.decimals(0, 100, places=2).map(float), st.integers(0, 9).map(float))


@st.composite
def expressions(draw: st.DrawFn) -> tuple[str, list[tuple[str, float]]]:
    """An expression as a person may write it, and its terms."""
    space = st.sampled_from(["", " ", "  "])
    text, terms = "", []
    for place in range(draw(st.integers(1, 5))):
        sign = draw(st.sampled_from(["+", "-"] if place else ["", "+", "-"]))
        factor = draw(factors)
        in_quotes = draw(st.booleans())
        level = draw(quoted if in_quotes else plain)
        written = f'"{level}"' if in_quotes else level
        scaled = "" if factor is None else f"{factor}{draw(space)}*{draw(space)}"
        text += f"{draw(space)}{sign}{draw(space)}{scaled}{written}{draw(space)}"
        weight = 1.0 if factor is None else factor
        terms.append((level, -weight if sign == "-" else weight))
    return text, terms


@given(expressions())
def test_every_expression_that_is_written_is_read_back(expression: tuple[str, list[tuple[str, float]]]) -> None:
    text, terms = expression
    assert parsed(text) == terms


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("prophase + anaphase - interphase", [("prophase", 1), ("anaphase", 1), ("interphase", -1)]),
        ("0.5*day0+0.5 * day4", [("day0", 0.5), ("day4", 0.5)]),
        ('"T cell" - "B cell" + monocyte', [("T cell", 1), ("B cell", -1), ("monocyte", 1)]),
        ('-2*"a-b"', [("a-b", -2)]),
        ("2 + 4 - 0", [("2", 1), ("4", 1), ("0", -1)]),
        ("2*4", [("4", 2)]),
        ("a + a", [("a", 1), ("a", 1)]),
    ],
)
def test_levels_and_weights_of_usual_expressions(text: str, terms: list[tuple[str, float]]) -> None:
    assert parsed(text) == terms


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("late G2", "G2"),
        ("a b", "b"),
        ("a +", "+"),
        ("a + + b", "+ + b"),
        ("a * 2", "* 2"),
        ('a - "b', '- "b'),
        ('a ""', '""'),
        ("*a", "*a"),
        ("-", "-"),
        ("a + 2*", "*"),
    ],
)
def test_expressions_that_cannot_be_read_are_refused_at_the_place(text: str, place: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"cannot be read at {place!r}: write levels with signs")):
        parsed(text)


def test_an_empty_expression_is_refused() -> None:
    with pytest.raises(InputError, match="expression is empty"):
        parsed("")


def test_on_means_one_cell_is_decoded_at_the_weighted_sum_of_the_means() -> None:
    cells, model = course()
    found = arithmetic(cells, model, "early + 0.5*late - middle", rng=0)
    mean = {stage: model.encode(cells[cells.obs["stage"] == stage]).mu.mean(0) for stage in ("early", "middle", "late")}
    z = mean["early"] + 0.5 * mean["late"] - mean["middle"]
    np.testing.assert_allclose(found.obsm["vae"], z[None], atol=1e-5)
    np.testing.assert_allclose(found.X, (z @ model.loadings)[None], atol=1e-5)
    assert found.obs_names.tolist() == ["mean_0"]
    assert found.layers["sampled"].shape == found.X.shape


def test_on_cells_every_cell_of_the_first_level_is_moved_and_their_spread_is_kept() -> None:
    cells, model = course()
    found = arithmetic(cells, model, "early + late - middle", on="cells", rng=0)
    early, late, middle = (model.encode(cells[cells.obs["stage"] == s]).mu for s in ("early", "late", "middle"))
    np.testing.assert_allclose(found.obsm["vae"], early + late.mean(0) - middle.mean(0), atol=1e-5)
    np.testing.assert_allclose(np.cov(found.obsm["vae"].T), np.cov(early.T), atol=1e-4)
    assert found.obs["source_cell"].tolist() == cells.obs_names[cells.obs["stage"] == "early"].tolist()


def test_the_first_level_alone_is_its_reconstruction() -> None:
    cells, model = course()
    found = arithmetic(cells, model, "middle", on="cells", rng=0)
    expected = model.reconstruct(cells[cells.obs["stage"] == "middle"])
    np.testing.assert_allclose(found.X, expected, atol=1e-5)


def test_the_only_column_that_has_all_levels_is_found() -> None:
    cells, model = course(n=10)
    assert arithmetic(cells, model, "early + late").uns["arithmetic"]["key"] == "stage"
    assert arithmetic(cells, model, "0 + 4 - 2").uns["arithmetic"]["key"] == "day"


def test_terms_are_kept_with_their_cells_and_survive_writing(tmp_path: Any) -> None:
    cells, model = course(n=10)
    found = arithmetic(cells[5:].copy(), model, "early - 2*late", rng=0)
    found.write_h5ad(tmp_path / "found.h5ad")
    for each in (found, ad.read_h5ad(tmp_path / "found.h5ad")):
        said = each.uns["arithmetic"]
        assert (said["expression"], said["key"], said["on"]) == ("early - 2*late", "stage", "means")
        expected = pd.DataFrame({"level": ["early", "late"], "weight": [1.0, -2.0], "n_cells": [5, 10]})
        pd.testing.assert_frame_equal(said["terms"].reset_index(drop=True), expected, check_dtype=False)


def test_images_come_back_as_images_and_counts_as_counts() -> None:
    cells, model = images_course(n=10)
    found = arithmetic(cells, model, "early + late - middle", on="cells", rng=0)
    assert found.obsm["images"].shape == found.obsm["sampled"].shape == (10, 1, 16, 16)
    cells, counts = counts_course(n=10)
    found = arithmetic(cells, counts, "early + late - middle", on="cells", rng=0)
    assert (found.X >= 0).all()
    assert (found.layers["sampled"] == np.round(found.layers["sampled"])).all()


def test_cells_keep_their_batch_and_means_are_decoded_in_the_average_batch() -> None:
    cells, model = course(n=10)
    cells.obs["plate"] = np.where(np.arange(30) % 2, "p1", "p2")
    model.batch_key = "plate"
    found = arithmetic(cells, model, "late - early", on="cells", rng=0)
    assert found.obs["plate"].tolist() == cells.obs["plate"][20:].tolist()
    assert all((np.asarray(asked["batch"]) == cells.obs["plate"][20:]).all() for asked in model.asked)
    model.asked.clear()
    arithmetic(cells, model, "late - early", rng=0)
    assert [asked["batch"] for asked in model.asked] == [None, None]


def test_the_draw_repeats_with_its_seed() -> None:
    cells, model = course(n=10)
    first, again, other = (arithmetic(cells, model, "early", rng=seed).layers["sampled"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("expression", "options", "message"),
    [
        ("early + noon", {}, r"'stage' comes nearest but lacks noon"),
        ("early + noon", {"key": "stage"}, r"No cell has 'stage' equal to 'noon'; levels present .*early \(10\)"),
        ("early", {"key": "phase"}, "no column 'phase'"),
        ("early", {"on": "cell"}, "on='cell' is unknown; choose one of means, cells"),
        ("early - noon + 2", {}, "No column of obs has"),
    ],
)
def test_levels_and_columns_that_do_not_exist_are_refused(expression: str, options: Any, message: str) -> None:
    cells, model = course(n=10)
    with pytest.raises(InputError, match=message):
        arithmetic(cells, model, expression, **options)


def test_levels_that_several_columns_have_are_refused_until_one_is_named() -> None:
    cells, model = course(n=10)
    cells.obs["phase"] = cells.obs["stage"].to_numpy()
    with pytest.raises(InputError, match=r"2 columns have \(stage, phase\)"):
        arithmetic(cells, model, "early - late")
    assert arithmetic(cells, model, "early - late", key="phase").uns["arithmetic"]["key"] == "phase"
