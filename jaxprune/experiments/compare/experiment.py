"""`jaxprune compare`: every recipe at every sparsity."""

from __future__ import annotations

from rich.console import Console

from jaxprune.experiments.command import run_command
from jaxprune.experiments.compare import results
from jaxprune.experiments.compare.settings import CompareSettings


def run(settings: CompareSettings, console: Console) -> None:
    """The whole command; see `run_command`."""
    run_command(settings, console, "jaxprune.experiments.compare.trainings", results.table)
