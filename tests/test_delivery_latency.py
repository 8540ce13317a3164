"""The clock of latencies, with a time of its own."""

import pytest

from jaxprune.delivery import latency


def test_short_runs_are_timed_together_and_long_ones_four_times(monkeypatch):
    now, calls = [0.0], {"short": 0, "long": 0}
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])

    def run(name, seconds, first):
        def once():
            calls[name] += 1
            # Every second short run takes half as long: alone, the shortest one would be too short.
            now[0] += first if calls[name] == 1 else seconds * (0.5 if calls[name] % 2 else 1.0)

        return once

    times = latency.shortest_times({"short": run("short", 0.001, 9.0), "long": run("long", 1.0, 9.0)}, 0.2)
    assert times["short"] == pytest.approx(0.00075)  # the first call, which compiles, counts in neither
    assert calls == {"short": 2 + 4 * 50, "long": 2 + 4}
    assert times["long"] == pytest.approx(0.5)


def test_what_slows_both_runs_down_leaves_their_ratio(monkeypatch):
    """A machine whose speed drifts by a factor of three, and stalls at times: the run takes 0.4 of the reference."""
    now, turn = [0.0], [0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])

    def run(seconds):
        def once():
            turn[0] += 1
            stall = 5.0 if turn[0] % 11 == 0 else 1.0
            now[0] += seconds * stall * (2 + (turn[0] // 2 * 0.01) % 2)

        return once

    ratio, reference = latency.relative_time(run(0.4), run(1.0))
    assert ratio == pytest.approx(0.4, rel=0.02)
    assert 2.0 <= reference <= 2.5
    assert turn[0] <= 4 + 80


def test_a_steady_machine_needs_five_turns(monkeypatch):
    now, calls = [0.0], [0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])

    def once():
        calls[0] += 1
        now[0] += 1.0

    assert latency.relative_time(once, once) == (1.0, 1.0)
    assert calls[0] == 4 + 10
