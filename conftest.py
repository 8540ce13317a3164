"""Every test runs on the CPU with eight virtual devices, and compiles quickly; set before JAX is imported."""

import collections
import gc
import os
import platform
import shutil
import tempfile

import pytest

# The tests compile thousands of small programs once each: quick compilation counts, quick programs don't. XLA's
# newer emitter of fusions takes half of that time; a jaxlib without this choice takes no notice of it. The older one
# uses fused multiply-adds here and not there: without them two programs of the same steps round alike. A program in
# many parts, which threads compile side by side, takes more CPU time than the same program in one.
FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters=true",
]
if platform.machine() in ("x86_64", "AMD64"):
    FLAGS.append("--xla_cpu_max_isa=AVX")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *FLAGS))
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# What one test, worker, command or notebook has compiled the others load, and so does the same one after
# `clear_caches`. A folder that the environment names is kept.
FOLDER = ""
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = FOLDER = tempfile.mkdtemp(prefix="jaxprune-compiled-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def pytest_unconfigure():
    if FOLDER:  # made here, not by the process that started this one
        shutil.rmtree(FOLDER, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)  # before `-m "not slow"` is looked at
def pytest_collection_modifyitems(items):
    """The longest first, so that no worker ends alone; `slow_beyond(n)` makes a test's cases after n slow."""
    items.sort(key=lambda item: "test_notebooks" not in item.nodeid)
    seen = collections.Counter()
    for item in items:
        for mark in item.iter_markers("slow_beyond"):
            name = item.nodeid.split("[")[0]
            seen[name] += 1
            if seen[name] > mark.args[0]:
                item.add_marker("slow")


def pytest_collection_finish():
    """What was imported stays: garbage is looked for among newer objects only, and less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 10)


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
        gc.collect()


_since = 0
