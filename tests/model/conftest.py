"""Tiny models, fitted once for the tests of one session."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from anndata import AnnData
from tiny import MAKERS, fit

import latentcell as lc
from latentcell import kernels


@pytest.fixture(scope="session")
def fitted() -> dict[str, tuple[lc.VAE, AnnData]]:
    """A small model of each modality and its cells; tests must not change either."""
    return {kind: (fit(cells), cells) for kind, cells in ((kind, make()) for kind, make in MAKERS.items())}


@pytest.fixture(params=list(MAKERS))
def model_and_cells(request: pytest.FixtureRequest, fitted: dict) -> tuple[lc.VAE, AnnData]:
    """Model and cells of each modality in turn, the cells a copy."""
    model, cells = fitted[request.param]
    return model, cells.copy()


@pytest.fixture
def counts(fitted: dict) -> tuple[lc.VAE, AnnData]:
    """Model of counts and a copy of its cells."""
    model, cells = fitted["counts"]
    return model, cells.copy()


@pytest.fixture
def off(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Calls a function on the plain path."""

    def call(function: Callable, *args, **options):
        with monkeypatch.context() as patch:
            patch.setenv("LATENTCELL_KERNELS", "off")
            return function(*args, **options)

    return call


@pytest.fixture
def with_threads() -> Iterator[Callable]:
    """Calls a function with a number of threads."""
    before = torch.get_num_threads()

    def call(n: int, function: Callable, *args, **options):
        torch.set_num_threads(n)
        return function(*args, **options)

    yield call
    torch.set_num_threads(before)
    kernels.share_threads()
