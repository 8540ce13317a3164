"""What `jaxprune imp` runs: data, models and the experiment. Only `matmul_conv` is meant for other code."""

from jaxprune.demo.matmul_conv import matmul_conv

__all__ = ["matmul_conv"]
