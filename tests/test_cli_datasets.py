"""The command of public data sets lists them and writes the cells of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import latentcell as lc
from latentcell.cells.datasets import available
from served import Server
from shell import latentcell


def test_without_a_name_the_data_sets_are_listed_with_size_licence_and_paper() -> None:
    said = latentcell("datasets")
    for dataset in available():
        for word in (dataset.name, dataset.what, dataset.size, dataset.licence, dataset.citation):
            assert word in said
    assert [entry["name"] for entry in json.loads(latentcell("datasets", "--json"))] == [d.name for d in available()]


def test_a_data_set_is_written_as_cells(served: Server, tmp_path: Path) -> None:
    out = tmp_path / "kang.h5ad"
    said = latentcell("datasets", "kang2018", "--out", out)
    assert "7 cells" in " ".join(said.split())
    assert lc.read(out).n_obs == 7


def test_options_reach_the_data_set(served: Server, tmp_path: Path) -> None:
    out = tmp_path / "allen.h5ad"
    options = ("--structures", "TOMM20", "LMNB1", "--stages", "M0", "--n", 1, "--size", 16, "--seed", 3)
    latentcell("datasets", "allen_cells", "--out", out, *options)
    cells = lc.read(out)
    assert sorted(cells.obs["structure"]) == ["LMNB1", "TOMM20"]
    assert set(cells.obs["stage"]) == {"M0"}
    assert cells.obsm["images"].shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("kang2018",), "latentcell datasets kang2018 --out kang2018.h5ad"),
        (("kang2018", "--out", "cells.csv"), "written as .h5ad or .zarr"),
        (("kang", "--out", "cells.h5ad"), "There is no data set 'kang'"),
        (("kang",), "There is no data set 'kang'"),
        (("kang2018", "--out", "cells.h5ad", "--plates", "A"), "kang2018 does not take 'plates'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_a_download(
    server: Server, arguments: tuple[str, ...], message: str
) -> None:
    said = latentcell("datasets", *arguments, status=2)
    assert message in " ".join(said.split())
    assert server.asked == []


def test_without_network_there_is_one_paragraph(server: Server, tmp_path: Path) -> None:
    server.close()
    said = latentcell("datasets", "dsprites", "--out", tmp_path / "sprites.h5ad", status=2)
    assert "no connection" in " ".join(said.split())
    assert not list(tmp_path.glob("*.h5ad"))
