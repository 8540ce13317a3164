"""The command `jaxprune`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from typing import Any

_NEEDED = {
    "tyro": "tyro",
    "sklearn": "scikit-learn",
    "matplotlib": "matplotlib",
    "orbax.checkpoint": "orbax-checkpoint",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Args:
      arguments: what follows `jaxprune` on the command line; None for `sys.argv`.

    Returns:
      The exit code: 0, 1 for a missing extra, 2 for bad options, 130 when interrupted.
    """
    missing = [package for module, package in _NEEDED.items() if not _is_there(module)]
    if missing:
        return _error(
            f"the command line needs the `demo` extra (missing: {', '.join(missing)}): "
            "pip install 'jaxprune[demo]'.",
            1,
        )
    import tyro

    commands = _commands()
    options = tyro.extras.subcommand_cli_from_dict(
        {name: settings for name, (settings, _) in commands.items()},
        prog="jaxprune",
        description="Pruning experiments in JAX.",
        args=list(sys.argv[1:] if arguments is None else arguments),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    run = next(run for settings, run in commands.values() if isinstance(options, settings))
    try:
        run(options)
    except ValueError as error:
        return _error(str(error), 2)
    except KeyboardInterrupt:
        return _error("interrupted; the same command with --resume goes on.", 130)
    return 0


def _commands() -> dict[str, tuple[type, Callable[[Any], None]]]:
    """Subcommand -> (the dataclass of its options, what runs it)."""
    from jaxprune.demo.compare.settings import CompareSettings
    from jaxprune.demo.settings import Settings

    return {"imp": (Settings, _imp), "compare": (CompareSettings, _compare)}


def _imp(settings: Any) -> None:
    from rich.console import Console

    from jaxprune.demo.experiment import run

    run(settings, Console())


def _compare(settings: Any) -> None:
    from rich.console import Console

    from jaxprune.demo.compare.experiment import run

    run(settings, Console())


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _error(message: str, code: int) -> int:
    print(f"jaxprune: error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
