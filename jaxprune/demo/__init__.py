"""What the commands run: data, models and the experiments. Only `matmul_conv` is meant for other code."""

from jaxprune.demo.matmul_conv import matmul_conv

__all__ = ["matmul_conv"]
