"""How a fit fills in what was left open."""

from __future__ import annotations

from typing import Any

import pytest

import latentcell as lc
from latentcell.model import objectives
from latentcell.model.fit import Plan, make_plan
from latentcell.model.guided import Guided
from latentcell.model.objectives import Objective


def plan(n: int, modality: str = "counts", objective: Objective | None = None, **given: Any) -> Plan:
    settings = given.pop("settings", lc.Settings())
    options = {"epochs": None, "max_minutes": None, "checkpoint": None, "seed": 0} | given
    return make_plan(n, settings, modality=modality, objective=objective or objectives.ELBO(), **options)


@pytest.mark.parametrize(("n", "size"), [(10, 32), (300, 32), (700, 64), (1000, 128), (100_000, 128)])
def test_batches_of_counts_hold_about_a_tenth_of_the_cells(n: int, size: int) -> None:
    assert plan(n).batch_size == size


@pytest.mark.parametrize("n", [10, 1000, 100_000])
def test_batches_of_images_are_small_whatever_the_number_of_cells(n: int) -> None:
    assert plan(n, "images").batch_size == 32


@pytest.mark.parametrize("text", ["tc=6", "dip=10", "mmd=1000", "factorvae=6"])
def test_an_objective_that_compares_cells_has_large_batches_of_images_too(text: str) -> None:
    assert plan(5000, "images", objectives.parse(text)).batch_size == 128
    assert plan(5000, "images", Guided(objectives.parse(text), 1.0, 0.0)).batch_size == 128


def test_so_has_one_that_keeps_a_nuisance_out_of_the_code() -> None:
    assert plan(5000, "images", Guided(objectives.ELBO(), 1.0, 0.0)).batch_size == 32
    assert plan(5000, "images", Guided(objectives.ELBO(), 1.0, 1.0)).batch_size == 128


@pytest.mark.parametrize("text", ["elbo", "beta=4", "capacity=10"])
def test_no_other_objective_compares_cells(text: str) -> None:
    assert plan(5000, "images", objectives.parse(text)).batch_size == 32


@pytest.mark.parametrize(("modality", "steps"), [("images", 5000), ("counts", 3000), ("profiles", 3000)])
def test_a_default_fit_has_about_as_many_steps_whatever_the_number_of_cells(modality: str, steps: int) -> None:
    for n in (1500, 6000):
        made = plan(n, modality)
        assert made.epochs * n / made.batch_size == pytest.approx(steps, rel=0.05)
    assert plan(10**6, modality).epochs == 20
    assert plan(4, modality).epochs == 400


def test_what_is_given_is_taken() -> None:
    made = plan(5000, "images", epochs=7, settings=lc.Settings(batch_size=50))
    assert (made.batch_size, made.epochs) == (50, 7)
