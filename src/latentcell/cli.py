"""Command line: the public functions by name; no logic of its own."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentcell import keys
from latentcell.errors import InputError
from latentcell.results import (
    console,
    draw,
    write_cells,
    write_leave_one_out,
    write_prediction,
    write_run,
    write_screen,
)

if TYPE_CHECKING:
    from anndata import AnnData

    from latentcell.model.vae import VAE

app = typer.Typer(
    name="latentcell",
    help="Variational autoencoding for biologists: what lies between, what drives variation, what deviates.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Data = Annotated[Path, typer.Argument(help="Cells: .h5ad, .zarr, .npy/.npz, a folder of crops, or a profile table.")]
_LIKELIHOOD_HELP = (
    "Noise of the measurements. Counts: nb, zinb, poisson. Profiles: gaussian, student_t. Images: gaussian, student_t, "
    "continuous_bernoulli, bernoulli (masks), discretized_logistic, poisson_gaussian[=gain]. auto chooses."
)
Run = Annotated[Path, typer.Argument(help="Folder written by `latentcell fit`.")]
Out = Annotated[Path, typer.Option("--out", file_okay=False, help="Folder for the results.")]
Table = Annotated[Path | None, typer.Option("--table", help="Table of the cells, where it does not lie with them.")]
ObsColumns = Annotated[
    str | None, typer.Option(help="Comma-separated numeric columns of a profile table that annotate, not measure.")
]
Channels = Annotated[str | None, typer.Option(help="Comma-separated names for the channels of images.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of all randomness.")]


@app.command()
def info(
    data: Data,
    table: Table = None,
    obs_columns: ObsColumns = None,
    layer: Annotated[str | None, typer.Option(help="Layer to look at instead of X.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Say what was found in a file or folder, and every problem with it."""
    with _told():
        from latentcell.cells.check import info as inspect

        report = inspect(data, table=table, obs_columns=_split(obs_columns), layer=layer)
    typer.echo(json.dumps(report.to_dict(), indent=1) if as_json else str(report))


@app.command()
def fit(
    data: Data,
    out: Out,
    table: Table = None,
    obs_columns: ObsColumns = None,
    channel_names: Channels = None,
    latent: Annotated[int, typer.Option(help="Latent dimensions.")] = 16,
    likelihood: Annotated[str, typer.Option(help=_LIKELIHOOD_HELP)] = "auto",
    objective: Annotated[
        str, typer.Option(help="elbo, beta=4 or capacity=10, then options: beta=4,warmup=500.")
    ] = "elbo",
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
    with _told():
        if (out / "model").exists() and not overwrite:
            raise InputError(f"{out} already holds a finished fit. Name another --out, or add --overwrite.")
        import latentcell as lc
        from latentcell.model.training import Settings

        cells = lc.read(data, table, obs_columns=_split(obs_columns), channel_names=_split(channel_names))
        _warn(cells, layer)
        model = lc.VAE(
            latent,
            likelihood=likelihood,
            objective=objective,
            batch_key=batch_key,
            layer=layer,
            orientation=orientation,  # type: ignore[arg-type]  # checked by VAE
        )
        checkpoint = out / "checkpoint.safetensors"
        model.fit(
            cells,
            exclude=_excluded(exclude),
            split_key=split_key,
            epochs=epochs,
            max_minutes=max_minutes,
            settings=Settings(threads=threads),
            checkpoint=checkpoint,
            rng=seed,
        )
        model.save(out / "model")
        checkpoint.unlink(missing_ok=True)
        write_run(cells, model, out, data=data, color=color, seed=seed)


@app.command()
def embed(run: Run, data: Data, out: Out, table: Table = None, seed: Seed = 0) -> None:
    """Place cells in the latent space of a fit: position, variance and ELBO terms."""
    with _told():
        import latentcell as lc

        model, cells = _model(run), lc.read(data, table)
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
    with _told():
        import latentcell as lc

        model = _model(run)
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
    with _told():
        import latentcell as lc

        model = _model(run)
        cells = lc.read(data, table, channel_names=_split(channel_names))
        model.fit_refiner(cells, steps=steps, max_minutes=max_minutes, rng=seed)
        model.save(_model_folder(run))
        console.print(
            f"wrote {_model_folder(run)}: a refiner of {model.report_['refiner']['steps']} steps in "
            f"{model.report_['refiner']['seconds']:.0f} s; interpolate and grid now draw sharp cells with --sharp"
        )


@app.command()
def interpolate(
    run: Run,
    data: Data,
    key: Annotated[str, typer.Option(help="obs column with the stages or times.")],
    out: Out,
    source: Annotated[str | None, typer.Option(help="Stage to start from. [default: the one before]")] = None,
    target: Annotated[str | None, typer.Option(help="Stage to end at. [default: the one after]")] = None,
    at: Annotated[
        list[float] | None,
        typer.Option(help="A time, or where between stages, 0 to 1; repeatable. [default: half-way]"),
    ] = None,
    truth: Annotated[str | None, typer.Option(help="The stage that was kept away from the fit.")] = None,
    order: Annotated[str | None, typer.Option(help="Comma-separated stages in their order.")] = None,
    pairing: Annotated[str, typer.Option(help="ot, random or centroid.")] = "ot",
    within: Annotated[str | None, typer.Option(help="obs column: pair cells of the same level only.")] = None,
    growth: Annotated[str | None, typer.Option(help="obs column: descendants of each source cell.")] = None,
    unbalanced: Annotated[float | None, typer.Option(help="Let mass grow or die: 1 mildly, 0.05 strongly.")] = None,
    path: Annotated[
        str, typer.Option(help="linear, curve, slerp, shift, shift_source, shift_target, geodesic or auto.")
    ] = "auto",
    replicate: Annotated[str | None, typer.Option(help="obs column resampled for the intervals.")] = None,
    sharp: Annotated[bool, typer.Option("--sharp", help="Draw texture (after `sharpen`).")] = False,
    leave_one_out: Annotated[
        bool, typer.Option("--leave-one-out", help="Refit without each interior stage and predict it.")
    ] = False,
    split_key: Annotated[str | None, typer.Option(help="With --leave-one-out, as in fit.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="With --leave-one-out, as in fit; repeatable.")] = None,
    epochs: Annotated[int | None, typer.Option(help="With --leave-one-out, as in fit.")] = None,
    table: Table = None,
    channel_names: Channels = None,
    allow_seen: Annotated[bool, typer.Option("--allow-seen", help="Accept truth that the fit has seen.")] = False,
    seed: Seed = 0,
) -> None:
    """Predict the unseen stage between two others, and compare with the truth and simple baselines."""
    with _told():
        import latentcell as lc

        model = _model(run)
        cells = lc.read(data, table, channel_names=_split(channel_names))
        if order is not None:
            cells = lc.cells.ordered(cells, key, _split(order) or [])
        chosen: dict[str, Any] = {
            "pairing": lc.tl.Pairing(pairing, within=within, growth=growth, unbalanced=unbalanced),  # type: ignore[arg-type]
            "path": path,
            "replicate": replicate,
            "sharp": sharp,
            "allow_seen": allow_seen,
            "rng": seed,
        }
        if leave_one_out:
            if source or target or at or truth:
                raise InputError(
                    "--leave-one-out takes every stage in turn: leave out --source, --target, --at, --truth."
                )
            fit_options = {"split_key": split_key, "exclude": _excluded(exclude), "epochs": epochs}
            tested = lc.tl.leave_one_out(cells, model, key, folder=out / "models", fit=fit_options, **chosen)
            write_leave_one_out(tested, out)
            return
        predicted = lc.tl.interpolate(cells, model, key, source=source, target=target, at=at, truth=truth, **chosen)
        write_prediction(predicted, cells, model, out)


@app.command()
def screen(
    data: Data,
    group: Annotated[str, typer.Option(help="obs column with the perturbations.")],
    control: Annotated[str, typer.Option(help="Its level for controls.")],
    replicate: Annotated[str, typer.Option(help="obs column with the unit: well, donor, embryo.")],
    out: Out,
    block: Annotated[str | None, typer.Option(help="obs column to compare within: plate, batch.")] = None,
    dose: Annotated[str | None, typer.Option(help="Numeric obs column; every dose is tested.")] = None,
    position: Annotated[
        str | None, typer.Option(help="row,column or one column with names such as B07: checks the layout.")
    ] = None,
    covariates: Annotated[str | None, typer.Option(help="Comma-separated obs columns to account for.")] = None,
    run: Annotated[
        Path | None, typer.Option("--model", help="Folder of a fit. [default: fits half of the controls]")
    ] = None,
    relabellings: Annotated[int, typer.Option(help="Drawn where there are more; else all are enumerated.")] = 9999,
    latent: Annotated[int | None, typer.Option(help="Latent dimensions, without --model.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the controls at most, without --model.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Training time at most, without --model.")] = None,
    layer: Annotated[str | None, typer.Option(help="Layer to read instead of X, without --model.")] = None,
    sheets: Annotated[int, typer.Option(min=0, help="Best groups that get a contact sheet.")] = 10,
    table: Table = None,
    obs_columns: ObsColumns = None,
    channel_names: Channels = None,
    seed: Seed = 0,
) -> None:
    """Say which perturbations leave the control distribution, how surely, and how."""
    with _told():
        import latentcell as lc
        from latentcell.tl.crossfit import default_model

        cells = lc.read(data, table, obs_columns=_split(obs_columns), channel_names=_split(channel_names))
        checkpoint = out / "checkpoint.safetensors"
        given = {"epochs": epochs, "max_minutes": max_minutes}
        options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if run is None:
            model, options["checkpoint"] = default_model(cells, latent, layer=layer), checkpoint
        elif latent is None and layer is None:
            model = _model(run)
        else:
            raise InputError("--latent and --layer are settings of a fit; leave them out where --model is given.")
        model = lc.tl.screen(
            cells,
            model,
            group=group,
            control=control,
            replicate=replicate,
            block=block,
            dose=dose,
            position=_split(position),
            covariates=_split(covariates) or (),
            n_relabellings=relabellings,
            fit=options,
            rng=seed,
        )
        write_screen(cells, model, out, sheets=sheets)
        checkpoint.unlink(missing_ok=True)


@app.command()
def demo(
    out: Out,
    seed: Seed = 0,
) -> None:
    """Simulate cells, fit, find what lies between and what deviates, check both against the truth; needs no data."""
    with _told():
        from latentcell.demo import run

        checks = run(out, rng=seed)
        for check in checks:
            typer.echo(str(check))
        console.print(f"wrote figures, models and tables below {out}; start with {out}/images/latent_grid.png")
        if not all(check.passed for check in checks):
            raise typer.Exit(1)


@contextmanager
def _told() -> Iterator[None]:
    """Turn refusals into one paragraph and status 2, and warnings and log lines into plain text."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("latentcell").setLevel(logging.INFO)
    once, handlers = _Once(), list(logging.getLogger().handlers)
    for handler in handlers:
        handler.addFilter(once)
    for noisy in ("fontTools", "matplotlib", "fsspec", "anndata"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    warnings.showwarning = lambda message, *_, **__: console.print(f"warning: {message}", markup=False)
    try:
        yield
    except InputError as error:
        console.print(f"latentcell: {error}", markup=False)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        console.print(
            "latentcell: interrupted. Results written before stand; an interrupted fit goes on from its last "
            "checkpoint when the same command is given again.",
            markup=False,
        )
        raise typer.Exit(130) from None
    except OSError as error:
        console.print(f"latentcell: {error}. Nothing that was there before is lost.", markup=False)
        raise typer.Exit(1) from None
    finally:
        for handler in handlers:
            handler.removeFilter(once)


class _Once(logging.Filter):
    """Let every message through once: some are found again with every block of cells."""

    def __init__(self) -> None:
        super().__init__()
        self.told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in self.told
        self.told.add(message)
        return new


def _model(run: Path) -> VAE:
    import latentcell as lc

    return lc.VAE.load(_model_folder(run))


def _model_folder(run: Path) -> Path:
    return run / "model" if (run / "model").is_dir() else run


def _split(names: str | None) -> list[str] | None:
    return [name.strip() for name in names.split(",")] if names else None


def _excluded(options: Sequence[str] | None) -> dict[str, list[str]]:
    exclude: dict[str, list[str]] = {}
    for option in options or []:
        key, separator, level = option.partition("=")
        if not separator:
            raise InputError(f"--exclude {option!r} is not understood; write key=level, such as stage=metaphase.")
        exclude.setdefault(key, []).append(level)
    return exclude


def _warn(cells: AnnData, layer: str | None) -> None:
    """Tell what may be wrong with a matrix; images are looked at once, by the fit itself."""
    from latentcell.cells.check import info as inspect

    if layer is None and keys.IMAGES in cells.obsm:
        return
    for problem in inspect(cells, layer=layer).problems:
        if problem.severity == "warning":
            console.print(f"warning: {problem}", markup=False)
