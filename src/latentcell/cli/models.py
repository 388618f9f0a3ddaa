"""Commands that make a model and show it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from latentcell.cli.app import (
    Channels,
    Data,
    ObsColumns,
    Out,
    Run,
    Seed,
    Several,
    Table,
    app,
    excluded,
    fitted,
    listed_names,
    model_folder,
    split,
    told,
)
from latentcell.errors import InputError
from latentcell.results import console, draw, write_cells, write_run

_LIKELIHOOD_HELP = (
    "Noise of the measurements. Counts: nb, zinb, poisson. Profiles: gaussian, student_t. Images: gaussian, student_t, "
    "continuous_bernoulli, bernoulli (masks), discretized_logistic, poisson_gaussian[=gain]. auto chooses."
)
_OBJECTIVE_HELP = "elbo, beta=4, capacity=10, tc=6, dip=10, mmd=1000 or factorvae=10, then options: beta=4,warmup=500."


@app.command()
def info(
    data: Data,
    table: Table = None,
    obs_columns: ObsColumns = None,
    layer: Annotated[str | None, typer.Option(help="Layer to look at instead of X.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Say what was found in a file or folder, and every problem with it."""
    with told():
        from latentcell.cells.check import info as inspect

        report = inspect(data, table=table, obs_columns=split(obs_columns), layer=layer)
    typer.echo(json.dumps(report.to_dict(), indent=1) if as_json else str(report))


@app.command(cls=Several)
def fit(
    data: Data,
    out: Out,
    table: Table = None,
    obs_columns: ObsColumns = None,
    channel_names: Channels = None,
    latent: Annotated[int, typer.Option(help="Latent dimensions.")] = 16,
    likelihood: Annotated[str, typer.Option(help=_LIKELIHOOD_HELP)] = "auto",
    objective: Annotated[str, typer.Option(help=_OBJECTIVE_HELP)] = "elbo",
    guided: Annotated[
        list[str] | None,
        typer.Option(help="obs columns that get latent dimensions of their own, such as stage phase:cyclic."),
    ] = None,
    nuisance: Annotated[
        list[str] | None, typer.Option(help="obs columns that the latent space should not hold.")
    ] = None,
    batch_key: Annotated[str | None, typer.Option(help="obs column that conditions the decoder.")] = None,
    split_key: Annotated[str | None, typer.Option(help="obs column whose groups are never split.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="key=level to keep away from the fit; repeatable.")] = None,
    layer: Annotated[str | None, typer.Option(help="Layer to read instead of X.")] = None,
    orientation: Annotated[str, typer.Option(help="Images: align, augment or as_is.")] = "align",
    epochs: Annotated[int | None, typer.Option(help="Passes over the cells at most.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Training time at most.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default those that are free.")] = None,
    color: Annotated[str | None, typer.Option(help="obs column that colours the latent map.")] = None,
    seed: Seed = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished fit in --out.")] = False,
) -> None:
    """Train a VAE on cells; an interrupted fit goes on when the command is given again."""
    with told():
        if (out / "model").exists() and not overwrite:
            raise InputError(f"{out} already holds a finished fit. Name another --out, or add --overwrite.")
        import latentcell as lc

        cells = lc.read(data, table, obs_columns=split(obs_columns), channel_names=split(channel_names))
        model = lc.VAE(
            latent,
            likelihood=likelihood,
            objective=objective,
            factors=lc.Factors(guided=listed_names(guided), nuisance=listed_names(nuisance)),
            batch_key=batch_key,
            layer=layer,
            orientation=orientation,  # type: ignore[arg-type]  # checked by VAE
        )
        checkpoint = out / "checkpoint.safetensors"
        model.fit(
            cells,
            exclude=excluded(exclude),
            split_key=split_key,
            epochs=epochs,
            max_minutes=max_minutes,
            settings=lc.Settings(threads=threads),
            checkpoint=checkpoint,
            rng=seed,
        )
        model.save(out / "model")
        checkpoint.unlink(missing_ok=True)
        write_run(cells, model, out, data=data, color=color, seed=seed)


@app.command()
def embed(run: Run, data: Data, out: Out, table: Table = None, seed: Seed = 0) -> None:
    """Place cells in the latent space of a fit: position, variance and ELBO terms."""
    with told():
        import latentcell as lc

        model, cells = fitted(run), lc.read(data, table)
        lc.tl.embed(cells, model, rng=seed)
        write_cells(cells, out / "cells.h5ad")


@app.command()
def grid(
    run: Run,
    out: Out,
    dims: Annotated[
        tuple[int, int] | None, typer.Option(help="Two latent dimensions; by default the most used.")
    ] = None,
    n: Annotated[int, typer.Option(help="Cells along each side.")] = 13,
    sharp: Annotated[bool, typer.Option("--sharp", help="Draw texture (after `sharpen`).")] = False,
) -> None:
    """Draw the decoded latent space: the grid over two dimensions and the walk along each."""
    with told():
        import latentcell as lc

        model = fitted(run)
        draw(
            out,
            latent_grid=lc.pl.latent_grid(model, dims=dims, n=n, sharp=sharp),
            traversal=lc.pl.traversal(model, sharp=sharp),
        )


@app.command()
def sharpen(
    run: Run,
    data: Data,
    table: Table = None,
    channel_names: Channels = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 2000,
    max_minutes: Annotated[float | None, typer.Option(help="Training time at most.")] = None,
    seed: Seed = 0,
) -> None:
    """Teach a fit of images the texture that its decoded means lack; adds it to the model in RUN."""
    with told():
        import latentcell as lc

        model = fitted(run)
        cells = lc.read(data, table, channel_names=split(channel_names))
        model.fit_refiner(cells, steps=steps, max_minutes=max_minutes, rng=seed)
        model.save(model_folder(run))
        console.print(
            f"wrote {model_folder(run)}: a refiner of {model.report_['refiner']['steps']} steps in "
            f"{model.report_['refiner']['seconds']:.0f} s; interpolate and grid now draw sharp cells with --sharp"
        )


@app.command()
def demo(
    out: Out,
    seed: Seed = 0,
) -> None:
    """Simulate cells, fit, find what lies between and what deviates, check both against the truth; needs no data."""
    with told():
        from latentcell.demo import run

        checks = run(out, rng=seed)
        for check in checks:
            typer.echo(str(check))
        console.print(f"wrote figures, models and tables below {out}; start with {out}/images/latent_grid.png")
        if not all(check.passed for check in checks):
            raise typer.Exit(1)
