"""`jaxprune imp`: lottery tickets and their controls."""

from __future__ import annotations

from rich.console import Console

from jaxprune.demo import results
from jaxprune.demo.command import run_command
from jaxprune.demo.settings import Settings


def run(settings: Settings, console: Console) -> None:
    """The whole command; see `run_command`."""
    run_command(settings, console, "jaxprune.demo.tickets", results.table)
