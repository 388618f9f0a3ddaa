"""Progress bars of long work, on the terminal's error stream."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import FrameType


@contextmanager
def progress_bar(name: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Show long work: yields a function that takes how much of `total` is done and a few words on it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn(name),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    # in a notebook without ipywidgets rich can only complain
    silent = console.is_jupyter and find_spec("ipywidgets") is None
    with Progress(*columns, console=console, transient=True, disable=silent) as bar:
        task = bar.add_task(name, total=total, words="")
        yield lambda done, words: bar.update(task, completed=done, words=words)


@contextmanager
def fit_progress(epochs: int, n_cells: int) -> Iterator[Callable[[dict[str, float]], None]]:
    """Show training: yields a function that takes the row of each finished epoch."""
    with progress_bar("fit", epochs) as update:
        previous = 0.0

        def advance(row: dict[str, float]) -> None:
            nonlocal previous
            rate = n_cells / max(row["seconds"] - previous, 1e-9)
            previous = row["seconds"]
            terms = (
                f"ELBO {row['elbo']:.1f} held out {row['val_elbo']:.1f} (log p {row['val_log_px']:.1f}, "
                f"KL {row['val_kl']:.1f}) {rate:,.0f} cells/s"
            )
            update(int(row["epoch"]) + 1, terms)

        yield advance


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C end an epoch instead of cutting it: yields a function that tells whether it was pressed.

    A second Ctrl-C interrupts at once. Outside the main thread, where signals cannot be caught, Ctrl-C is left alone.
    """
    pressed = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
