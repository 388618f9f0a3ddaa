"""Ctrl-C ends a fit between epochs, and at once when pressed again."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from latentcell.progress import fit_progress, stop_on_interrupt


def test_the_first_interrupt_is_remembered_and_the_second_cuts_in() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_on_interrupt() as pressed:
        assert not pressed()
        os.kill(os.getpid(), signal.SIGINT)
        assert pressed()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_interrupts_are_left_alone() -> None:
    answers: list[bool] = []

    def work() -> None:
        with stop_on_interrupt() as pressed:
            answers.append(pressed())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]


def test_the_bar_takes_the_rows_of_a_history() -> None:
    row = {"epoch": 0, "seconds": 0.5, "elbo": -3.0, "val_elbo": -4.0, "val_log_px": -3.5, "val_kl": 0.5}
    with fit_progress(2, 100) as advance:
        advance(row)
