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
from rich.console import Console

from latentcell import keys
from latentcell.errors import InputError

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
_console = Console(stderr=True, highlight=False)

Data = Annotated[Path, typer.Argument(help="Cells: .h5ad, .zarr, .npy/.npz, a folder of crops, or a profile table.")]
_LIKELIHOOD_HELP = (
    "Noise of the measurements. Counts: nb, zinb, poisson. Profiles: gaussian, student_t. Images: gaussian, student_t, "
    "continuous_bernoulli, bernoulli (masks), discretized_logistic, poisson_gaussian[=gain]. auto chooses."
)
Run = Annotated[Path, typer.Argument(help="Folder written by `latentcell fit`.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for the results.")]
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
        _write_run(cells, model, out, data=data, color=color, seed=seed)
        _console.print(_summary(model.report_))


@app.command()
def embed(run: Run, data: Data, out: Out, table: Table = None, seed: Seed = 0) -> None:
    """Place cells in the latent space of a fit: position, variance and ELBO terms."""
    with _told():
        import latentcell as lc

        model, cells = _model(run), lc.read(data, table)
        lc.tl.embed(cells, model, rng=seed)
        _write_cells(cells, out / "cells.h5ad")


@app.command()
def grid(
    run: Run,
    out: Out,
    dims: Annotated[
        tuple[int, int] | None, typer.Option(help="Two latent dimensions; by default the most used.")
    ] = None,
    n: Annotated[int, typer.Option(help="Cells along each side.")] = 13,
) -> None:
    """Draw the decoded latent space: the grid over two dimensions and the walk along each."""
    with _told():
        import latentcell as lc

        model = _model(run)
        _draw(out, latent_grid=lc.pl.latent_grid(model, dims=dims, n=n), traversal=lc.pl.traversal(model))


@app.command()
def interpolate(
    run: Run,
    data: Data,
    key: Annotated[str, typer.Option(help="obs column with the stages.")],
    source: Annotated[str, typer.Option(help="Stage to start from.")],
    target: Annotated[str, typer.Option(help="Stage to end at.")],
    out: Out,
    at: Annotated[list[float] | None, typer.Option(help="Where between 0 and 1; repeatable. [default: 0.5]")] = None,
    truth: Annotated[str | None, typer.Option(help="The stage that was kept away from the fit.")] = None,
    table: Table = None,
    allow_seen: Annotated[bool, typer.Option("--allow-seen", help="Accept truth that the fit has seen.")] = False,
    seed: Seed = 0,
) -> None:
    """Predict the unseen stage between two others, and compare with the truth and simple baselines."""
    with _told():
        import latentcell as lc

        model, cells = _model(run), lc.read(data, table)
        predicted = lc.tl.interpolate(
            cells,
            model,
            key,
            source=source,
            target=target,
            at=at or 0.5,
            truth=truth,
            allow_seen=allow_seen,
            rng=seed,
        )
        _write_cells(predicted, out / "predicted.h5ad", images=True)
        result = predicted.uns["interpolate"]
        evaluation = out / "evaluation.csv"
        if "evaluation" not in result:
            evaluation.unlink(missing_ok=True)  # of an earlier prediction
            _console.print(
                f"{predicted.n_obs} cells predicted between {source} and {target}; no truth to compare with."
            )
        else:
            result["evaluation"].to_csv(evaluation, index=False)
            _console.print(f"wrote {evaluation}")
            for sentence in result["verdict"].values():
                _console.print(sentence, markup=False)
        _draw(out / "figures", interpolation=lc.pl.interpolation(predicted, cells, model))


@app.command()
def demo(
    out: Out,
    seed: Seed = 0,
) -> None:
    """Simulate cells, fit, answer the first question, and check the answers against the truth; needs no data."""
    with _told():
        from latentcell.demo import run

        checks = run(out, rng=seed)
        for check in checks:
            typer.echo(str(check))
        _console.print(f"wrote figures, models and tables below {out}; start with {out}/images/latent_grid.png")
        if not all(check.passed for check in checks):
            raise typer.Exit(1)


@contextmanager
def _told() -> Iterator[None]:
    """Turn refusals into one paragraph and status 2, and warnings and log lines into plain text."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("latentcell").setLevel(logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_Once())
    for noisy in ("fontTools", "matplotlib", "fsspec", "anndata"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    warnings.showwarning = lambda message, *_, **__: _console.print(f"warning: {message}", markup=False)
    try:
        yield
    except InputError as error:
        _console.print(f"latentcell: {error}", markup=False)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        _console.print(
            "latentcell: interrupted. Results written before stand; an interrupted fit goes on from its last "
            "checkpoint when the same command is given again.",
            markup=False,
        )
        raise typer.Exit(130) from None
    except OSError as error:
        _console.print(f"latentcell: {error}. Nothing that was there before is lost.", markup=False)
        raise typer.Exit(1) from None


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

    return lc.VAE.load(run / "model" if (run / "model").is_dir() else run)


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
            _console.print(f"warning: {problem}", markup=False)


def _first_label(cells: AnnData) -> str | None:
    """Return a column of obs with a handful of levels to colour by; text before numbers, and not what was added."""
    columns = [str(name) for name in cells.obs if 2 <= cells.obs[name].nunique() <= 20 and name != keys.seen(keys.VAE)]
    return min(columns, key=lambda name: cells.obs[name].dtype.kind in "iufb", default=None)


def _write_run(cells: AnnData, model: VAE, out: Path, *, data: Path, color: str | None, seed: int) -> None:
    """Write what a fit leaves beside the model: embedding, report and figures."""
    import latentcell as lc

    lc.tl.embed(cells, model, rng=seed)
    _write_cells(cells, out / "cells.h5ad")
    _write_report(model, out / "report.json", data)
    _console.print("drawing figures")
    _draw(
        out / "figures",
        **({"latent_grid": lc.pl.latent_grid(model)} if model.n_latent > 1 else {}),
        traversal=lc.pl.traversal(model),
        reconstruction=lc.pl.reconstruction(model, cells, rng=seed),
        latent=lc.pl.latent(cells, color=color or _first_label(cells)),
        training=lc.pl.training(model),
    )


def _write_cells(cells: AnnData, path: Path, *, images: bool = False) -> None:
    from latentcell.cells.stores import write_h5ad

    write_h5ad(cells, path, images=images)
    _console.print(f"wrote {path}")


def _write_report(model: VAE, path: Path, data: Path) -> None:
    from latentcell.atomic import write_json

    write_json(path, {"data": str(data), **model.report_})
    _console.print(f"wrote {path}")


def _draw(folder: Path, **figures: Any) -> None:
    from latentcell.pl import save

    for name, figure in figures.items():
        written = save(figure, folder / name)
        _console.print(f"wrote {' and '.join(map(str, written))}")


def _summary(report: dict[str, Any]) -> str:
    return (
        f"Held-out ELBO {report['held_out_elbo']:.1f} nats per cell (log p(x|z) {report['held_out_log_px']:.1f}, KL "
        f"{report['held_out_kl']:.1f}); importance-weighted NLL {report['held_out_nll']:.1f} "
        f"({report['nll_median_effective_draws']:.1f} effective of {report['nll_draws']} draws). {report['verdict']} "
        f"{report['seconds']:.0f} s, {report['cells_per_second']:,.0f} cells/s, seed {report['seed']}."
    )
