"""`jaxprune compare`: every recipe at every sparsity."""

from __future__ import annotations

from rich.console import Console

from jaxprune.demo.command import run_command
from jaxprune.demo.compare import results
from jaxprune.demo.compare.settings import CompareSettings


def run(settings: CompareSettings, console: Console) -> None:
    """The whole command; see `run_command`."""
    run_command(settings, console, "jaxprune.demo.compare.trainings", results.table)
