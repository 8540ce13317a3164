"""Every test runs on the CPU with eight virtual devices; set before JAX is imported."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# The tests compile thousands of small programs once each: quick compilation counts, quick programs don't.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
