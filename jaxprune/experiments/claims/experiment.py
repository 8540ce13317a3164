"""`jaxprune claims`: what pruning articles say, point by point."""

from __future__ import annotations

from rich.console import Console

from jaxprune.experiments.claims import report
from jaxprune.experiments.claims.settings import ClaimsSettings
from jaxprune.experiments.command import run_command


def run(settings: ClaimsSettings, console: Console) -> None:
    """The whole command; see `run_command`."""
    run_command(settings, console, "jaxprune.experiments.claims.trainings", report.shown)
