"""Every test runs on the CPU with eight virtual devices; set before JAX is imported."""

import collections
import os

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# The tests compile thousands of small programs once each: quick compilation counts, quick programs don't.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


@pytest.hookimpl(tryfirst=True)  # before `-m "not slow"` is looked at
def pytest_collection_modifyitems(items):
    """`slow_beyond(n)` marks the cases of a test after its first n as slow."""
    seen = collections.Counter()
    for item in items:
        for mark in item.iter_markers("slow_beyond"):
            name = item.nodeid.split("[")[0]
            seen[name] += 1
            if seen[name] > mark.args[0]:
                item.add_marker("slow")


def pytest_runtest_teardown(item):
    """Compiled programs are kept for good, each in several mappings of memory, of which a process has 65 530."""
    global _since
    _since += 1
    if _since < 20:
        return
    _since = 0
    try:
        with open("/proc/self/maps") as maps:
            count = sum(1 for _ in maps)
    except OSError:
        return  # not Linux: it has no such limit
    if count > 20_000:
        import jax

        jax.clear_caches()


_since = 0
