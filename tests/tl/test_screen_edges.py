"""Edges of a screen: what is missing, what was there before, and names that files cannot hold."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from screens import every_second_control, fitted_on, screened, simulated

import latentcell as lc
from latentcell.errors import InputError


def test_a_missing_variable_is_named_with_a_given_model() -> None:
    model = fitted_on(simulated(), every_second_control(simulated()))
    cells = simulated()
    cells.X[:, 3] = np.nan
    with pytest.raises(InputError, match="feature_0004"):
        screened(cells, model)


def test_a_missing_value_of_a_treated_cell_names_the_variable() -> None:
    cells = simulated(cells_per_well=5)
    cells.X[np.flatnonzero(cells.obs["perturbation"] == "compound_02")[0], 3] = np.nan
    with pytest.raises(InputError, match="feature_0004"):
        screened(cells)


def test_which_cells_the_model_has_seen_is_written_as_by_embed() -> None:
    cells = simulated()
    lc.tl.embed(cells, lc.VAE(2, width=8).fit(cells, epochs=1, rng=0))
    found = screened(cells)
    np.testing.assert_array_equal(cells.obs["vae_seen"], found.model.seen(cells))


def test_a_negative_number_of_relabellings_is_refused() -> None:
    with pytest.raises(InputError, match="n_relabellings is -1"):
        screened(simulated(), n_relabellings=-1)


def test_names_with_slashes_can_be_written(tmp_path: Path) -> None:
    cells = simulated()
    cells.obs["perturbation"] = cells.obs["perturbation"].astype(str).replace({"compound_01": "IL1/6"})
    screened(cells)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cells.write_h5ad(tmp_path / "cells.h5ad")
