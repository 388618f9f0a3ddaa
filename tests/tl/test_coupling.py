"""How much the reference tells of each structure."""

from __future__ import annotations

import importlib

import numpy as np
import pandas as pd
import pytest

import latentcell as lc
from latentcell.errors import InputError
from latentcell.tl.coupling import _interval


class Known:
    """A stand-in for a model whose likelihoods are known: 10 nats less for each channel told, 1 SD of noise."""

    reference = ("a", "b")
    structures_ = ("tied", "free")

    def __init__(self, n: int) -> None:
        self.table = pd.DataFrame({"cell": np.arange(n), "structure": np.where(np.arange(n) % 2, "tied", "free")})
        self.noise = np.random.default_rng(0).standard_normal((4, n))

    def nll(self, cells, *, told, n_samples, rng) -> pd.DataFrame:
        gain = 10 * ("a" in told) * (self.table["structure"] == "tied") + self.noise[len(told) + ("b" in told)]
        return self.table.assign(nll=100 - gain)

    def seen(self, cells) -> np.ndarray:
        return np.zeros(cells.n_obs, dtype=bool)


@pytest.fixture
def cells():
    made = lc.cells.simulate.organisation(200, size=16, rng=0)
    made.obs["plate"] = np.arange(200) // 2 % 4
    return made


def row(table: pd.DataFrame, structure: str, channel: str, question: str) -> pd.Series:
    found = table[(table["structure"] == structure) & (table["channel"] == channel) & (table["question"] == question)]
    assert len(found) == 1
    return found.iloc[0]


@pytest.fixture(autouse=True)
def _average(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The stand-in has no images; its average explains 50 nats less than nothing told."""
    if "measured_on" not in request.node.name:
        monkeypatch.setattr(
            importlib.import_module("latentcell.tl.coupling"), "average_nll", lambda *_: np.full(200, 150.0)
        )


def test_nats_are_those_that_the_channels_tell(cells) -> None:
    table = lc.tl.coupling(cells, Known(200))
    for channel, question in (("all", "all"), ("a", "alone"), ("a", "beyond")):
        tied, free = (row(table, s, channel, question) for s in ("tied", "free"))
        assert tied["low"] < 10 < tied["high"]
        assert free["low"] < 0 < free["high"]
    for question in ("alone", "beyond"):
        found = row(table, "tied", "b", question)
        assert found["low"] < 0 < found["high"]
    assert row(table, "tied", "all", "mean")["nats"] == pytest.approx(60, abs=1)
    assert (table["n_cells"] == 100).all()


def test_replicates_are_the_unit_where_named(cells) -> None:
    table = lc.tl.coupling(cells, Known(200), replicate="plate")
    assert (table["n_units"] == 4).all()
    # four plates are too few for an interval
    assert table["low"].isna().all()


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for i in range(300):
        found = _interval(rng.standard_normal(60) + 2, None, 300, i)
        covered.append(found.low <= 2 <= found.high)
    assert 0.88 <= np.mean(covered) <= 0.99


def test_a_model_is_measured_on_cells_that_it_has_not_seen(cells) -> None:
    model = lc.IntegratedCell(["membrane", "DNA"], "structure", structure_key="structure", n_latent=(2, 2), width=4)
    away = lc.cells.keep_out(cells, 0.25, rng=0)
    model.fit(cells, exclude=away, epochs=1, rng=0)
    with pytest.raises(InputError, match=r"fitted on 150 of these 200 cells"):
        lc.tl.coupling(cells, model)
    new = cells[cells.obs["kept_out"] == "yes"].copy()
    table = lc.tl.coupling(new, model, n_samples=2)
    assert set(table["structure"]) == set(lc.cells.simulate.STRUCTURES)
    assert len(table) == 4 * 6
    assert np.isfinite(table[["nats", "low", "high"]]).all(axis=None)
    again = lc.tl.coupling(new, model, n_samples=2)
    pd.testing.assert_frame_equal(table, again)
    named = lc.tl.recognised(new, model, cells[cells.obs["kept_out"] == "no"].copy())
    assert named["accuracy"].between(0, 1).all()
    figure = lc.pl.coupling(table)
    assert len(figure.axes) == 2


def test_the_plane_of_reconstruction_and_kl_has_a_point_for_each_beta(cells) -> None:
    model = lc.IntegratedCell(["membrane", "DNA"], "structure", structure_key="structure", n_latent=(2, 2), width=4)
    model.fit(cells, epochs=1, rng=0)
    plane = lc.tl.reconstruction_kl(cells, model, (1, 50), fit={"epochs": 4})
    assert plane["beta"].tolist() == [1, 50]
    assert plane["kl"].is_monotonic_decreasing
    np.testing.assert_allclose(plane["elbo"], plane["log_px"] - plane["kl"], rtol=1e-5)
    assert lc.pl.reconstruction_kl(plane).axes[0].get_xlabel().startswith("KL")
    with pytest.raises(InputError, match="all positive"):
        lc.tl.reconstruction_kl(cells, model, (0, 1))


def test_cells_are_kept_out_in_whole_groups(cells) -> None:
    away = lc.cells.keep_out(cells, 0.25, by="plate", rng=0)
    assert away == {"kept_out": ["yes"]}
    assert cells.obs.groupby("plate")["kept_out"].nunique().eq(1).all()
    assert (cells.obs["kept_out"] == "yes").sum() == 50
    with pytest.raises(InputError, match="cannot be kept out"):
        lc.cells.keep_out(cells, 1.0)
