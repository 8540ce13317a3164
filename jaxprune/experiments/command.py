"""The common steps of the commands: checks, then the remaining trainings, then the results."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from rich.console import Console

from jaxprune.commands.claim import claimed
from jaxprune.experiments import data as datasets


def run_command(
    settings: Any, console: Console, trainings: str, table: Callable[[dict[str, Any]], Any]
) -> None:
    """Runs the trainings that are not yet in `settings.out`, writes the results there and shows them.

    Args:
      settings: the settings of the command.
      console: where to show the results.
      trainings: the module with `train(settings, data, folder, console)` of the command. It needs JAX, so it is
        imported only after all checks without JAX have passed.
      table: makes the table of the results.

    Raises:
      ValueError: if settings, data or folder can't be used; nothing is changed then.
      OSError: if the disk is full; earlier trainings remain stored.
    """
    settings.check()
    with claimed(settings) as folder:
        data = datasets.load(settings.data, settings.data_dir)
        if settings.resume and folder.is_finished:
            folder.begin(settings, data.fingerprint())
            console.print(f"The run in {folder.path} is finished.")
        else:
            importlib.import_module(trainings).train(settings, data, folder, console)
        for shown in folder.show(table):
            console.print(shown)
