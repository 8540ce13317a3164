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
