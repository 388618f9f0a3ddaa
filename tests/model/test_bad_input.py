"""What cannot give a true answer is refused, with cells, variables or columns named."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from anndata import AnnData
from tiny import count_cells, fit, image_cells, profile_cells

import latentcell as lc
from latentcell.cells.images import set_images
from latentcell.errors import InputError


def test_missing_genes_are_refused_with_the_first_differences(counts) -> None:
    model, cells = counts
    cells.var_names = ["other_0", "other_1", *cells.var_names[2:]]
    with pytest.raises(InputError, match=r"2 are missing \('gene_0', 'gene_1'\); 2 are unknown .*'other_0', 'other_1'"):
        model.encode(cells)


def test_repeated_gene_names_are_refused() -> None:
    cells = count_cells()
    cells.var_names = ["a", "a", *cells.var_names[2:]]
    with pytest.raises(InputError, match="repeated: 'a'"):
        fit(cells)


def test_missing_channels_are_refused_by_name(fitted) -> None:
    model, cells = fitted["images"]
    other = AnnData(obs=cells.obs)
    set_images(other, cells.obsm["images"], channel_names=["dna", "tubulin"])
    with pytest.raises(InputError, match=r"actin.*tubulin"):
        model.encode(other)


def test_crops_of_another_size_are_refused_with_both_sizes(fitted) -> None:
    model, _ = fitted["images"]
    with pytest.raises(InputError, match=r"14 x 16 pixels, these cells have 14 x 18"):
        model.encode(image_cells(size=(14, 18)))


def test_a_batch_without_batch_key_is_refused(counts) -> None:
    with pytest.raises(InputError, match="no batch_key"):
        counts[0].decode(np.zeros((1, 3)), batch="p1")


def test_a_batch_column_with_empty_entries_is_refused_with_cells_named() -> None:
    cells = count_cells()
    cells.obs["plate"] = cells.obs["plate"].astype(object)
    cells.obs.loc["cell_7", "plate"] = None
    with pytest.raises(InputError, match=r"plate.*empty.*cell_7"):
        fit(cells, batch_key="plate")


def logged(cells: AnnData) -> AnnData:
    cells = cells.copy()
    values = cells.X.toarray()
    cells.X = np.log1p(1e4 * values / values.sum(1, keepdims=True))
    return cells


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_log_normalised_values_given_as_counts_are_refused_as_such(likelihood: str) -> None:
    with pytest.raises(InputError, match=r"no whole numbers.*log-normalised"):
        fit(logged(count_cells()), likelihood=likelihood)


def test_log_normalised_values_are_refused_when_embedding_with_a_model_of_counts(counts) -> None:
    model, cells = counts
    with pytest.raises(InputError, match=r"(?i)count"):
        model.encode(logged(cells))


def test_a_negative_count_is_refused_with_its_cell_and_gene() -> None:
    cells = count_cells()
    cells.X[4, 2] = -1
    with pytest.raises(InputError, match=r"gene_2.*cell_4"):
        fit(cells, likelihood="nb")


def test_cells_without_any_count_are_refused_by_name() -> None:
    cells = count_cells()
    cells.X = cells.X.toarray()
    cells.X[4] = 0
    with pytest.raises(InputError, match="cell_4"):
        fit(cells)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_missing_values_are_refused_with_cell_and_variable(bad: float) -> None:
    cells = profile_cells()
    cells.X[4, 2] = bad
    with pytest.raises(InputError, match=r"gene_2.*cell_4"):
        fit(cells)


def test_a_missing_pixel_is_refused_with_cell_and_channel() -> None:
    cells = image_cells()
    images = cells.obsm["images"].astype(np.float32)
    images[4, 1, 3, 3] = np.nan
    cells.obsm["images"] = images
    with pytest.raises(InputError, match=r"actin.*cell_4"):
        fit(cells)


def test_missing_values_are_refused_when_embedding(fitted) -> None:
    model, cells = fitted["profiles"]
    cells = cells.copy()
    cells.X[4, 2] = np.nan
    with pytest.raises(InputError, match="cell_4"):
        model.encode(cells)


def test_missing_values_in_excluded_cells_do_not_matter() -> None:
    cells = profile_cells()
    cells.X[np.flatnonzero(cells.obs["stage"] == "late")[0], 2] = np.nan
    fit(cells, exclude={"stage": ["late"]}, epochs=1)


@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("make", [count_cells, profile_cells, image_cells])
def test_too_few_cells_are_refused(make, n: int) -> None:
    with pytest.raises(InputError, match="at least 4 cells"):
        fit(make()[:n].copy())


@pytest.mark.parametrize("make", [count_cells, profile_cells, image_cells])
def test_four_cells_are_enough(make) -> None:
    model = fit(make(8)[:4].copy(), epochs=1)
    assert np.isfinite(model.report_["held_out_elbo"])


def test_excluding_everything_is_refused() -> None:
    with pytest.raises(InputError, match="no cell is left"):
        fit(count_cells(), exclude={"stage": ["early", "middle", "late"]})


def test_excluding_a_level_that_does_not_exist_is_refused_with_the_levels_present() -> None:
    with pytest.raises(InputError, match=r"No cell has 'stage' equal to 'lte'.*early \(25\), late"):
        fit(count_cells(), exclude={"stage": ["lte"]})
    with pytest.raises(InputError, match=r"no column 'stages'"):
        fit(count_cells(), exclude={"stages": ["late"]})


def test_a_split_key_of_one_group_is_refused() -> None:
    cells = count_cells()
    cells.obs["donor"] = "only"
    with pytest.raises(InputError, match="single group"):
        lc.VAE(2).fit(cells, split_key="donor")


def test_normalised_expression_of_images_is_refused(fitted) -> None:
    model, cells = fitted["images"]
    with pytest.raises(InputError, match="images"):
        model.normalized_expression(cells)


def test_codes_of_another_width_are_refused(counts) -> None:
    with pytest.raises(InputError, match="4 columns"):
        counts[0].decode(np.zeros((2, 4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_latent": 0}, "at least one"),
        ({"orientation": "upright"}, "upright"),
        ({"objective": "elob"}, "elob"),
    ],
)
def test_impossible_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        lc.VAE(**options)


@pytest.mark.parametrize(
    ("make", "likelihood"),
    [
        (image_cells, "nb"),
        (image_cells, "poisson"),
        (image_cells, "bernoulli"),
        (count_cells, "nbb"),
        (image_cells, "poisson_gaussian=abc"),
        (image_cells, "poisson_gaussian=-2"),
    ],
)
def test_a_likelihood_that_does_not_fit_the_cells_is_refused(make, likelihood: str) -> None:
    with pytest.raises(InputError, match=likelihood.partition("=")[0]):
        fit(make(), likelihood=likelihood)


def test_a_model_that_was_not_fitted_says_so() -> None:
    with pytest.raises(InputError, match=r"(?i)fit"):
        lc.VAE(2).encode(count_cells())


def test_a_stray_negative_count_is_refused_with_its_cell_even_when_the_likelihood_is_chosen_for_the_user() -> None:
    cells = count_cells()
    counts = cells.X.toarray()
    counts[4, 2] = -1
    cells.X = counts
    with pytest.raises(InputError, match=r"(?s)gene_2.*cell_4|cell_4.*gene_2"):
        fit(cells)


def test_no_epoch_is_refused() -> None:
    with pytest.raises(InputError, match="at least one"):
        fit(count_cells(), epochs=0)


def test_a_number_for_a_likelihood_that_takes_none_is_refused() -> None:
    with pytest.raises(InputError, match="takes no number"):
        fit(count_cells(), likelihood="nb=3")


def test_a_level_to_exclude_may_be_given_alone() -> None:
    assert fit(count_cells(), exclude={"stage": "late"}).report_["n_excluded"] > 0


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan")])
def test_no_time_to_train_in_is_refused(minutes: float) -> None:
    with pytest.raises(InputError, match="max_minutes is"):
        lc.VAE(2).fit(profile_cells(), max_minutes=minutes)


def test_settings_of_another_type_are_refused_with_an_example() -> None:
    with pytest.raises(InputError, match=r"latentcell.Settings\(batch_size=32"):
        lc.VAE(2).fit(count_cells(), epochs=1, settings={"batch_size": 32})


def test_log_normalised_values_fitted_as_profiles_are_warned_of_and_the_counts_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cells = count_cells()
    cells.layers["counts"] = cells.X.copy()
    cells.X = np.log1p(cells.X.toarray())
    with caplog.at_level(logging.WARNING, logger="latentcell"):
        fit(cells, epochs=1)
    assert "as in log-normalised data" in caplog.text
    assert "The layer 'counts' holds whole numbers" in caplog.text
