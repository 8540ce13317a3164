"""What the commands have in common: checks first, then what is left to train, then the results."""

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
    """Trains what is not in `settings.out` yet, writes the results there and shows them.

    Args:
      settings: of the command.
      console: where the results are shown.
      trainings: the module with the command's `train(settings, data, folder, console)`. It needs JAX, so it is
        imported only where all checks that can be done without it have passed.
      table: of the results.

    Raises:
      ValueError: settings, data or folder that can't be used; nothing was changed then.
      OSError: the disk is full; what was trained before is kept.
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
