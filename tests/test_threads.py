"""The number of threads follows what the machine has free, once per process."""

from __future__ import annotations

import pytest

from latentcell import threads


def decided(monkeypatch: pytest.MonkeyPatch, *readings: tuple[int, int] | None, allowed: int = 8) -> int:
    """Threads chosen on a machine of 8 cores with these readings of (idle, total) ticks."""
    left = list(readings)
    monkeypatch.setattr(threads, "_idle_and_total", lambda: left.pop(0))
    monkeypatch.setattr(threads, "allowed_threads", lambda: allowed)
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(threads.time, "sleep", lambda seconds: None)
    threads.free_threads.cache_clear()
    chosen = threads.free_threads()
    threads.free_threads.cache_clear()
    return chosen


@pytest.mark.parametrize(("idle", "expected"), [(800, 8), (400, 4), (90, 1), (0, 1)])
def test_threads_follow_the_idle_cores(monkeypatch: pytest.MonkeyPatch, idle: int, expected: int) -> None:
    readings = [(1000, 5000), (1000 + idle, 5800)]
    assert decided(monkeypatch, *readings, *readings) == expected


def test_a_moments_work_of_others_costs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decided(monkeypatch, (0, 0), (40, 80), (100, 200), (420, 520)) == 8


def test_threads_never_exceed_what_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decided(monkeypatch, (0, 0), (800, 800), allowed=3) == 3


def test_a_system_that_tells_no_load_gives_all_allowed_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decided(monkeypatch, None, allowed=5) == 5


def test_the_decision_stands_for_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    threads.free_threads.cache_clear()
    first = threads.free_threads()
    monkeypatch.setattr(threads, "_idle_and_total", lambda: (0, 0))
    assert threads.free_threads() == first


def test_this_machine_gives_at_least_one_thread() -> None:
    threads.free_threads.cache_clear()
    assert 1 <= threads.free_threads() <= threads.allowed_threads()
