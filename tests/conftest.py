"""Fixtures shared by all tests."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentcell.cells.datasets import compounds, sprites, transcriptomes
from latentcell.cells.datasets.fetching import Remote
from served import (
    Server,
    archive_of_bbbc048,
    archive_of_embryoid_bodies,
    files_of_allen,
    files_of_bbbc021,
    files_of_kang,
    files_of_mitocheck,
    npz_of_sprites,
)


def pytest_configure() -> None:
    """One thread for each of several workers: threads that wait for a core of another's hold up all the rest."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
        # of what tests start
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real development data: LATENTCELL_DATA, else ../shared/data; tests that need it skip without."""
    named = os.environ.get("LATENTCELL_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no development data at {folder}; set LATENTCELL_DATA")
    return folder


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A file server in place of the hosts of public data sets, and an empty cache folder."""
    running = Server()
    monkeypatch.setenv("LATENTCELL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LATENTCELL_MIRROR", running.url)
    # a proxy of the machine must not come between
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield running
    running.close()


@pytest.fixture
def served(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server with every data set; checksums of the true files are replaced by those of the small ones."""
    everything = {
        "dsprites": {sprites._FILE: npz_of_sprites()[0]},
        "kang2018": files_of_kang()[0],
        "embryoid_body": {"scRNAseq.zip": archive_of_embryoid_bodies()[0]},
        "bbbc021": files_of_bbbc021(),
        "bbbc048": {"BBBC048v1.zip": archive_of_bbbc048()},
        "mitocheck": files_of_mitocheck()[0],
        "allen_cells": files_of_allen()[0],
    }
    for dataset, files in everything.items():
        server.serve(dataset, files)
    for module in (sprites, transcriptomes, compounds):
        for name, remote in list(vars(module).items()):
            if isinstance(remote, Remote) and remote.known_hash is not None:
                content = everything[remote.dataset][remote.path]
                hashed = f"sha256:{hashlib.sha256(content).hexdigest()}"
                monkeypatch.setattr(module, name, replace(remote, known_hash=hashed))
    return server
