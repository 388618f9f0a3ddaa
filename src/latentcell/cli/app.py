"""What commands share: the application, its common options, and how refusals and warnings are told."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from latentcell.errors import InputError
from latentcell.results import console

if TYPE_CHECKING:
    from latentcell.model.vae import VAE

app = typer.Typer(
    name="latentcell",
    help="Variational autoencoding for biologists: what lies between, what drives variation, what deviates.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Data = Annotated[Path, typer.Argument(help="Cells: .h5ad, .zarr, .npy/.npz, a folder of crops, or a profile table.")]
Run = Annotated[Path, typer.Argument(help="Folder written by `latentcell fit`.")]
Out = Annotated[Path, typer.Option("--out", file_okay=False, help="Folder for the results.")]
Table = Annotated[Path | None, typer.Option("--table", help="Table of the cells, where it does not lie with them.")]
ObsColumns = Annotated[
    str | None, typer.Option(help="Comma-separated numeric columns of a profile table that annotate, not measure.")
]
Channels = Annotated[str | None, typer.Option(help="Comma-separated names for the channels of images.")]
SWEPT = ("beta", "tc", "capacity", "dip", "mmd", "factorvae")
"""Settings of objectives whose values can be swept."""
Seed = Annotated[int, typer.Option("--seed", help="Seed of all randomness.")]


@contextmanager
def told() -> Iterator[None]:
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


class Several(TyperCommand):
    """A command whose list options take several words, as in ``--factors stage dose``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the name of a list option before each of its words."""
        lists = {name for each in self.params if getattr(each, "multiple", False) for name in each.opts}
        spread: list[str] = []
        current = None
        for word in args:
            if word.startswith("-"):
                name = word.partition("=")[0]
                current = name if name in lists else None
            elif current is not None and spread[-1] != current:
                # what exists on disk is the data, not one more name
                current = None if Path(word).exists() else current
                spread += [] if current is None else [current]
            spread.append(word)
        return super().parse_args(ctx, spread)


def fitted(run: Path) -> VAE:
    """Model of a folder that `latentcell fit` wrote."""
    import latentcell as lc

    return lc.VAE.load(model_folder(run))


def model_folder(run: Path) -> Path:
    """Where in a run's folder the model is: there may be the model's folder itself."""
    return run / "model" if (run / "model").is_dir() else run


def split(names: str | None) -> list[str] | None:
    """Names of a comma-separated list."""
    return [name.strip() for name in names.split(",")] if names else None


def listed_names(options: Sequence[str] | None) -> list[str]:
    """Names of a list option, each of whose words may hold several, separated by commas."""
    return [name.strip() for each in options or [] for name in each.split(",") if name.strip()]


def setting(text: str) -> dict[str, list[float]]:
    """Setting and its values from ``beta=1,2,4``."""
    name, _, values = text.partition("=")
    try:
        if name not in SWEPT:
            raise ValueError(name)
        return {name: [float(value) for value in values.split(",")]}
    except ValueError:
        raise InputError(
            f"--sweep {text!r} is not understood; write one of {', '.join(SWEPT)} and its values, such as beta=1,2,4."
        ) from None


def excluded(options: Sequence[str] | None) -> dict[str, list[str]]:
    """Levels to keep away, by column, from words such as ``stage=metaphase``."""
    exclude: dict[str, list[str]] = {}
    for option in options or []:
        key, separator, level = option.partition("=")
        if not separator:
            raise InputError(f"--exclude {option!r} is not understood; write key=level, such as stage=metaphase.")
        exclude.setdefault(key, []).append(level)
    return exclude
