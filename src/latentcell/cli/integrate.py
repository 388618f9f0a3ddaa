"""The command of the Integrated Cell."""

from __future__ import annotations

from typing import Annotated

import typer

from latentcell.cli.app import Channels, Data, Out, Seed, Several, Table, app, excluded, listed_names, split, told
from latentcell.errors import InputError
from latentcell.results import write_integrated


@app.command(cls=Several)
def integrate(
    data: Data,
    reference: Annotated[list[str], typer.Option(help="Channels that every cell has, such as membrane DNA.")],
    target: Annotated[
        list[str], typer.Option(help="Channel that shows one structure per cell, or several that show one each.")
    ],
    out: Out,
    structure_key: Annotated[str | None, typer.Option(help="obs column: what the one target channel shows.")] = None,
    latent: Annotated[tuple[int, int], typer.Option(help="Latent dimensions of shape and of organisation.")] = (16, 16),
    objective: Annotated[str, typer.Option(help="As in fit.")] = "elbo",
    batch_key: Annotated[str | None, typer.Option(help="obs column that conditions the decoders.")] = None,
    split_key: Annotated[str | None, typer.Option(help="obs column whose groups are never split.")] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(help="key=level to keep away from the fit and measure on; repeatable. [default: a fifth]"),
    ] = None,
    orientation: Annotated[str, typer.Option(help="align or as_is.")] = "align",
    epochs: Annotated[int | None, typer.Option(help="Passes over the cells at most, of each model.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Training time of both models at most.")] = None,
    replicate: Annotated[str | None, typer.Option(help="obs column resampled for the intervals.")] = None,
    table: Table = None,
    channel_names: Channels = None,
    seed: Seed = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished fit in --out.")] = False,
) -> None:
    """Learn where structures lie in cells of any shape, and draw all of them in one cell."""
    with told():
        if (out / "model").exists() and not overwrite:
            raise InputError(f"{out} already holds a finished fit. Name another --out, or add --overwrite.")
        import latentcell as lc

        cells = lc.read(data, table, channel_names=split(channel_names))
        model = lc.IntegratedCell(
            listed_names(reference),
            listed_names(target),
            structure_key=structure_key,
            n_latent=latent,
            objective=objective,
            batch_key=batch_key,
            orientation=orientation,  # type: ignore[arg-type]  # checked by IntegratedCell
        )
        away = excluded(exclude) or lc.cells.keep_out(cells, by=split_key, rng=seed)
        checkpoint = out / "checkpoint.safetensors"
        model.fit(
            cells,
            exclude=away,
            split_key=split_key,
            epochs=epochs,
            max_minutes=max_minutes,
            checkpoint=checkpoint,
            rng=seed,
        )
        model.save(out / "model")
        write_integrated(cells, model, out, away=away, replicate=replicate, seed=seed)
        for unfinished in out.glob("checkpoint-*.safetensors"):
            unfinished.unlink()
