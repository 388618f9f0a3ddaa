"""Commands that ask a model a question."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    setting,
    split,
    told,
)
from latentcell.errors import InputError
from latentcell.results import write_factors, write_leave_one_out, write_prediction, write_screen, write_trade_off


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
    with told():
        import latentcell as lc

        model = fitted(run)
        cells = lc.read(data, table, channel_names=split(channel_names))
        if order is not None:
            cells = lc.cells.ordered(cells, key, split(order) or [])
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
            fit_options = {"split_key": split_key, "exclude": excluded(exclude), "epochs": epochs}
            tested = lc.tl.leave_one_out(cells, model, key, folder=out / "models", fit=fit_options, **chosen)
            write_leave_one_out(tested, out)
            return
        predicted = lc.tl.interpolate(cells, model, key, source=source, target=target, at=at, truth=truth, **chosen)
        write_prediction(predicted, cells, model, out)


@app.command(cls=Several)
def factors(
    run: Run,
    data: Data,
    factors: Annotated[
        list[str],
        typer.Option(help="obs columns, each name or name:kind, such as stage dose phase:cyclic; commas work too."),
    ],
    out: Out,
    nuisance: Annotated[list[str] | None, typer.Option(help="obs columns to adjust for: plate, donor.")] = None,
    seeds: Annotated[int, typer.Option(min=0, help="Refits with other seeds.")] = 5,
    replicate: Annotated[str | None, typer.Option(help="obs column with the unit: well, donor, embryo.")] = None,
    gene_sets: Annotated[Path | None, typer.Option(help="GMT file: gene sets of each dimension and factor.")] = None,
    sweep: Annotated[
        str | None, typer.Option(help="Instead: what values of a setting give and take, such as beta=1,2,4,8,16.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="With --sweep: obs column that clusters are held against.")] = None,
    split_key: Annotated[str | None, typer.Option(help="For the refits, as in fit.")] = None,
    epochs: Annotated[int | None, typer.Option(help="For the refits. [default: as the fit in RUN]")] = None,
    table: Table = None,
    channel_names: Channels = None,
    seed: Seed = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier results in --out.")] = False,
) -> None:
    """Say which latent dimension holds which factor, how surely, and which genes, features or pixels go with it."""
    with told():
        finished = out / ("factors.json" if sweep is None else "sweep.csv")
        if finished.exists() and not overwrite:
            raise InputError(
                f"{out} already holds the results of such a question. Name another --out, or add --overwrite."
            )
        if label is not None and sweep is None:
            raise InputError("--label is for --sweep.")
        import latentcell as lc

        model = fitted(run)
        cells = lc.read(data, table, channel_names=split(channel_names))
        given = {"split_key": split_key, "epochs": epochs}
        options: dict[str, Any] = {
            "folder": out / "models",
            "fit": {name: value for name, value in given.items() if value is not None},
            "rng": seed,
        }
        if sweep is not None:
            if nuisance or replicate or gene_sets:
                raise InputError("--sweep measures fits only: leave out --nuisance, --replicate and --gene-sets.")
            swept = lc.tl.trade_off(
                cells, model, listed_names(factors), objective=setting(sweep), label=label, seeds=seeds, **options
            )
            write_trade_off(swept, out)
            return
        lc.tl.factors(
            cells,
            model,
            listed_names(factors),
            nuisance=listed_names(nuisance),
            seeds=seeds,
            replicate=replicate,
            gene_sets=gene_sets,
            **options,
        )
        write_factors(cells, model, out)


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
    with told():
        import latentcell as lc
        from latentcell.tl.crossfit import default_model

        cells = lc.read(data, table, obs_columns=split(obs_columns), channel_names=split(channel_names))
        checkpoint = out / "checkpoint.safetensors"
        given = {"epochs": epochs, "max_minutes": max_minutes}
        options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if run is None:
            model, options["checkpoint"] = default_model(cells, latent, layer=layer), checkpoint
        elif latent is None and layer is None:
            model = fitted(run)
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
            position=split(position),
            covariates=split(covariates) or (),
            n_relabellings=relabellings,
            fit=options,
            rng=seed,
        )
        write_screen(cells, model, out, sheets=sheets)
        checkpoint.unlink(missing_ok=True)
