"""Sharp decoding: the flow draws the right distribution, from seen cells only, and the same seed draws the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from anndata import AnnData
from tiny import fit, image_cells

import latentcell as lc
from latentcell.errors import InputError, NotFittedError
from latentcell.model import refine
from latentcell.model.levels import folded, unfolded
from latentcell.model.refine import seen_split
from latentcell.model.refiner import Refiner

STEPS = 3


@pytest.fixture(scope="module")
def refined() -> tuple[lc.VAE, AnnData]:
    """A model of tiny images with a refiner, and its cells; tests must not change either."""
    cells = image_cells(n=32)
    return fit(cells).fit_refiner(cells, steps=STEPS, rng=0), cells


class _ExactVelocity(Refiner):
    """The closed-form velocity of the path from N(0, 1) to N(m + 0.5, 2^2), in place of the network."""

    def velocity(self, u: torch.Tensor, mean: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        at = t.view(-1, 1, 1, 1)
        variance = (1 - at) ** 2 + (2 * at) ** 2
        # E[u_1 - u_0 | u_t] of jointly Gaussian ends
        return 0.5 + (4 * at - (1 - at)) / variance * (u - 0.5 * at)


def test_the_solver_carries_noise_to_the_known_gaussian() -> None:
    flow = _ExactVelocity((1, 4, 4))
    noise = torch.randn(50, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    drawn = flow.draw(torch.full_like(noise, 3.0), noise, 60)
    # the flow between Gaussians is affine: u_1 = 0.5 + 2 e
    torch.testing.assert_close(drawn, 3.5 + 2 * noise, atol=0.1, rtol=0)


def test_training_recovers_a_known_residual_distribution() -> None:
    torch.manual_seed(0)
    flow, generator = Refiner((1, 2, 2), width=8), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(flow.parameters(), lr=3e-3)

    def cells(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Means of -1 or 1 and residuals common to all pixels, of SD 0.3 where the mean is 1 and 0.1 elsewhere."""
        mean = torch.sign(torch.randn(n, 1, 1, 1, generator=generator)).expand(n, 1, 2, 2)
        residual = torch.randn(n, 1, 1, 1, generator=generator) * (0.2 + 0.1 * mean)
        return mean + residual, mean

    x, mean = cells(512)
    flow.scale_to(x - mean, flow.limits)
    for _ in range(250):
        loss = flow.loss(*cells(32), generator).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    wide, narrow = (torch.full((300, 1, 2, 2), level) for level in (1.0, -1.0))
    with torch.no_grad():
        noise = torch.randn(wide.shape, generator=generator)
        wide, narrow = (flow.draw(mean, noise, 10) - mean for mean in (wide, narrow))
    assert abs(float(wide.mean())) < 0.06
    assert float(wide.std()) == pytest.approx(0.3, rel=0.25)
    assert float(narrow.std()) < 0.6 * float(wide.std())
    # the four pixels of a cell move together
    assert float(wide.flatten(1).std(1).mean()) < 0.5 * float(wide.std())


@pytest.mark.parametrize("shape", [(1, 3, 3), (2, 13, 17), (2, 64, 48), (1, 5, 14, 15), (1, 12, 16, 16)])
def test_any_size_is_drawn_and_every_weight_learns(shape: tuple[int, ...]) -> None:
    flow = Refiner(shape, width=8)
    generator = torch.Generator().manual_seed(0)
    for weights in flow.parameters():  # the last layers start at zero, where nothing flows back
        torch.nn.init.normal_(weights, std=0.05, generator=generator)
    x = torch.randn(3, *shape, generator=generator)
    loss = flow.loss(x, torch.zeros_like(x), generator)
    assert loss.shape == (3,)
    loss.sum().backward()
    assert all(weights.grad is not None and weights.grad.abs().sum() > 0 for weights in flow.parameters())
    assert flow.draw(x, x, 2).shape == x.shape


@pytest.mark.parametrize("fold", [(2, 2), (1, 2), (2, 2, 2), (1, 2, 2)])
def test_folding_is_undone_exactly(fold: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *[4 * step for step in fold])
    blocks = folded(x, fold)
    assert blocks.shape == (2, 3 * int(np.prod(fold)), *[4] * len(fold))
    assert torch.equal(unfolded(blocks, fold), x)


def test_the_seed_fixes_training_and_draws() -> None:
    cells = image_cells(n=32)
    first, second = (fit(cells).fit_refiner(cells, steps=STEPS, rng=5) for _ in range(2))
    assert first.sha256() == second.sha256()
    drawn = first.reconstruct(cells, sharp=True, rng=1)
    np.testing.assert_array_equal(drawn, second.reconstruct(cells, sharp=True, rng=1))
    assert np.abs(drawn - first.reconstruct(cells, sharp=True, rng=2)).max() > 1


def test_a_draw_does_not_depend_on_the_other_cells_or_the_block(refined, monkeypatch: pytest.MonkeyPatch) -> None:
    model, cells = refined
    z = model.encode(cells).mu
    together = model.decode(z, sharp=True, rng=3)
    np.testing.assert_allclose(model.decode(z[:4], sharp=True, rng=3), together[:4], atol=0.05)
    monkeypatch.setattr("latentcell.model.decoding._SHARP_BLOCK", 5)
    np.testing.assert_allclose(model.decode(z, sharp=True, rng=3), together, atol=0.05)


def test_the_refiner_travels_with_the_model(refined, tmp_path: Path) -> None:
    model, _ = refined
    model.save(tmp_path / "model")
    loaded = lc.VAE.load(tmp_path / "model")
    assert loaded.sha256() == model.sha256()
    assert loaded.report_["refiner"] == model.report_["refiner"]
    np.testing.assert_array_equal(model.sample(3, sharp=True, rng=0), loaded.sample(3, sharp=True, rng=0))


def test_a_refiner_changes_the_digest_but_not_the_means() -> None:
    cells = image_cells(n=32)
    model = fit(cells)
    before, means = model.sha256(), model.reconstruct(cells)
    model.fit_refiner(cells, steps=1, rng=0)
    assert model.sha256() != before
    np.testing.assert_array_equal(model.reconstruct(cells), means)
    model.fit(cells, epochs=1, rng=0)
    with pytest.raises(NotFittedError, match="fit_refiner"):
        model.reconstruct(cells, sharp=True)


def test_cells_that_the_vae_never_saw_do_not_train_the_refiner() -> None:
    cells = image_cells(n=60)
    model = fit(cells, exclude={"stage": ["middle"]})
    with_all = model.fit_refiner(cells, steps=STEPS, rng=0).sha256()
    report = model.report_["refiner"]
    assert report["n_train"] + report["n_held_out"] == int((cells.obs["stage"] != "middle").sum())
    with_seen = model.fit_refiner(cells[cells.obs["stage"] != "middle"].copy(), steps=STEPS, rng=0).sha256()
    assert with_all == with_seen


def test_the_split_is_that_of_the_vae() -> None:
    prints = np.arange(40, dtype=np.uint64)
    split = seen_split(prints, fitted=prints[:30], held_out=prints[3:7], seed=0)
    np.testing.assert_array_equal(split.held_out, np.arange(3, 7))
    np.testing.assert_array_equal(split.train, np.setdiff1d(np.arange(30), split.held_out))
    without = seen_split(prints, fitted=prints[:30], held_out=prints[:0], seed=0)
    assert len(without.held_out) == 3
    assert without.used.max() < 30


def test_too_few_seen_cells_are_refused(refined) -> None:
    model, cells = refined
    with pytest.raises(InputError, match="fitted on 3 of these 3"):
        model.fit_refiner(cells[:3].copy())
    with pytest.raises(InputError, match="fitted on 0 of these 24"):
        model.fit_refiner(image_cells(seed=9))


def test_sharp_is_refused_where_it_means_nothing(refined, counts) -> None:
    model, cells = refined
    with pytest.raises(InputError, match="exclude each other"):
        model.sample(2, sharp=True, noise=True)
    with pytest.raises(InputError, match="steps"):
        model.fit_refiner(cells, steps=0)
    with pytest.raises(InputError, match="Sharp draws are for images"):
        counts[0].fit_refiner(counts[1])
    with pytest.raises(NotFittedError, match="fit_refiner"):
        counts[0].sample(2, sharp=True)


def test_masked_cells_stay_background_outside_the_decoded_region() -> None:
    cells = image_cells(n=32, masks=True)
    model = fit(cells).fit_refiner(cells, steps=1, rng=0)
    drawn = model.reconstruct(cells, sharp=True, rng=0)
    background = np.asarray(model.schema_.location, dtype=np.float32)[:, None, None]
    outside = np.isclose(drawn, background, atol=1e-3).all(1)
    assert outside.any()


@pytest.mark.parametrize("orientation", ["align", "augment", "as_is"])
def test_volumes_and_batches_are_drawn_in_range(orientation: str) -> None:
    cells = image_cells(n=24, size=(3, 8, 9))
    model = fit(cells, batch_key="plate", orientation=orientation).fit_refiner(cells, steps=1, rng=0)
    drawn = model.decode(np.zeros((2, 3)), batch=["p1", "p2"], sharp=True, rng=0)
    assert drawn.shape == (2, 2, 3, 8, 9)
    assert drawn.min() >= -1e-3
    assert drawn.max() <= 255 + 1e-3


def test_corrections_never_move_a_draw_farther_from_its_code(refined) -> None:
    model, cells = refined
    z = torch.from_numpy(model.encode(cells).mu)

    def miss(rounds: int) -> np.ndarray:
        with torch.no_grad():
            rng = np.random.default_rng(0)
            x = refine.sharpened(model._module, model._refiner, z, None, rng, rounds)
            posterior = model._module.network.encode(x)
        return ((posterior.mu - z).square() / posterior.log_var.exp()).mean(1).numpy()

    assert (miss(3) <= miss(0) + 1e-4).all()
    assert miss(3).mean() < miss(0).mean()


def test_a_time_limit_ends_training() -> None:
    cells = image_cells(n=32)
    model = fit(cells).fit_refiner(cells, steps=100_000, max_minutes=0.01, rng=0)
    assert 0 < model.report_["refiner"]["steps"] < 100_000
