"""The command of the public data sets."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from latentcell.cells.datasets.catalogue import available, check_writable, load, refuse_unknown, save
from latentcell.cli.app import Several, app, listed_names, told
from latentcell.errors import InputError
from latentcell.results import console

_N_HELP = "Cells drawn of each group (structure and stage, stage, well, phenotype), or in all of dsprites."


@app.command(cls=Several)
def datasets(
    name: Annotated[str | None, typer.Argument(help="Data set to fetch. [default: lists them]")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="File to write, .h5ad or .zarr.")] = None,
    structures: Annotated[list[str] | None, typer.Option(help="allen_cells, allen_features: such as TOMM20.")] = None,
    stages: Annotated[list[str] | None, typer.Option(help="allen_cells: such as M0; bbbc048: such as G1.")] = None,
    subset: Annotated[str | None, typer.Option(help="allen_features: i1m1, i2m2, edges or all.")] = None,
    plates: Annotated[list[str] | None, typer.Option(help="bbbc021: such as Week1_22123.")] = None,
    compounds: Annotated[list[str] | None, typer.Option(help="bbbc021: such as DMSO taxol.")] = None,
    phenotypes: Annotated[list[str] | None, typer.Option(help="mitocheck: such as Prometaphase.")] = None,
    movies: Annotated[int | None, typer.Option(help="mitocheck: films to download.")] = None,
    n: Annotated[int | None, typer.Option("--n", min=1, help=_N_HELP)] = None,
    view: Annotated[str | None, typer.Option(help="allen_cells: max (projection) or volume.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Side of the crops in pixels.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the cells drawn. [default: 0]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The list, machine-readable.")] = False,
) -> None:
    """List public data sets, or fetch one and write its cells; a download that broke off goes on."""
    if name is None:
        _list(as_json)
        return
    with told():
        refuse_unknown(name)
        if out is None:
            raise InputError(f"Say where to write the cells: latentcell datasets {name} --out {name}.h5ad.")
        check_writable(out)
        lists = {"structures": structures, "stages": stages, "plates": plates, "compounds": compounds}
        options = {option: listed_names(words) or None for option, words in {**lists, "phenotypes": phenotypes}.items()}
        cells = load(name, **options, subset=subset, movies=movies, n=n, view=view, size=size, rng=seed)
        save(cells, out)
        console.print(f"wrote {out}: {cells.n_obs:,} cells; look at them with latentcell info {out}", markup=False)


def _list(as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([asdict(dataset) for dataset in available()], indent=1))
        return
    for dataset in available():
        typer.echo(f"{dataset.name}: {dataset.what}")
        typer.echo(f"  download: {dataset.size}")
        typer.echo(f"  licence:  {dataset.licence}")
        typer.echo(f"  cite:     {dataset.citation}")
        typer.echo(f"  page:     {dataset.home}")
