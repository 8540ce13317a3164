"""`jaxprune imp`: lottery tickets and their controls."""

from __future__ import annotations

from rich.console import Console

from jaxprune.experiments import results
from jaxprune.experiments.command import run_command
from jaxprune.experiments.settings import Settings


def run(settings: Settings, console: Console) -> None:
    """The whole command; see `run_command`."""
    run_command(settings, console, "jaxprune.experiments.tickets", results.table)
