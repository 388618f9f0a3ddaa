"""Shortest paths under a decoder whose geometry is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import latentcell as lc
from latentcell.errors import NotFittedError
from latentcell.model.geodesic import geodesics


def test_under_a_linear_decoder_the_geodesic_is_the_line() -> None:
    start, end = torch.zeros(5, 3), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    loadings = torch.randn(3, 7, generator=torch.Generator().manual_seed(1))
    found = geodesics(lambda z: z @ loadings, start, end, 0.3)
    torch.testing.assert_close(found, 0.3 * end, atol=0.02, rtol=0)


def test_on_a_hill_the_geodesic_goes_around_and_is_shorter_than_the_line() -> None:
    def hill(z: Tensor) -> Tensor:
        height = 4 * torch.exp(-z.square().sum(1, keepdim=True))
        return torch.cat([z, height], 1)

    start, end = torch.tensor([[-2.0, 0.1]]), torch.tensor([[2.0, 0.1]])
    steps = np.linspace(0, 1, 9)

    def length(path: list[Tensor]) -> float:
        points = hill(torch.cat(path))
        return float((points[1:] - points[:-1]).norm(dim=1).sum())

    found = [geodesics(hill, start, end, t, n_iterations=200) for t in steps]
    assert length(found) < 0.9 * length([(1 - t) * start + t * end for t in steps])
    assert found[4][0, 1] > 0.5


def test_a_pair_moves_as_if_it_were_alone() -> None:
    start, end = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(2))

    def decode(z: Tensor) -> Tensor:
        return torch.cat([z, z.square()], 1)

    together = geodesics(decode, start, end, 0.5)
    torch.testing.assert_close(geodesics(decode, start[2:3], end[2:3], 0.5), together[2:3], atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch_key", [None, "batch"])
def test_a_fitted_model_gives_paths_that_start_and_end_at_the_cells(batch_key: str | None) -> None:
    cells = lc.cells.simulate.counts(60, 20, n_batches=2, rng=0)
    model = lc.VAE(2, batch_key=batch_key).fit(cells, epochs=2, rng=0)
    z = model.encode(cells).mu
    batch = None if batch_key is None else cells.obs["batch"].to_numpy()[:20]
    for t, end in ((0.0, z[:20]), (1.0, z[20:40])):
        np.testing.assert_allclose(model.geodesic(z[:20], z[20:40], t, batch=batch), end, atol=1e-5)


def test_an_unfitted_copy_has_the_settings_and_no_weights() -> None:
    model = lc.VAE(3, likelihood="poisson", objective="beta=4", batch_key="batch", width=16)
    model.fit(lc.cells.simulate.counts(60, 20, n_batches=2, rng=0), epochs=1, rng=0)
    copy = model.unfitted()
    names = ("n_latent", "likelihood", "objective", "batch_key", "layer", "orientation", "width")
    assert [getattr(copy, name) for name in names] == [getattr(model, name) for name in names]
    with pytest.raises(NotFittedError, match="not been fitted"):
        copy.encode(lc.cells.simulate.counts(60, 20, rng=0))
