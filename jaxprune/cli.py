"""The command `jaxprune`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# As little as can be is imported before Ctrl-C is watched for, and JAX only after all checks: mistakes are told at
# once.

_NEEDED = {
    "tyro": "tyro",
    "sklearn": "scikit-learn",
    "matplotlib": "matplotlib",
    "orbax.checkpoint": "orbax-checkpoint",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    What goes wrong is one line on stderr, never a traceback.

    Args:
      arguments: what follows `jaxprune` on the command line; None for `sys.argv`, which is the command itself: it
        watches for SIGINT and SIGTERM, and they end the process at once.

    Returns:
      The exit code: 0; 1 where the machine stops the run (a missing extra, a full disk, too little memory); 2 for
      options, data or a folder that can't be used; 130 when interrupted (Ctrl-C); 141 when nobody reads the
      output any more; 143 when terminated (SIGTERM). A run that stopped goes on with --resume from the last
      training that it saved.

    Raises:
      SystemExit: after --help (code 0), and for options that can't be parsed (code 2).
    """
    chosen = _Chosen()
    if arguments is None:
        arguments = sys.argv[1:]
        _watch(chosen)
    _write_anything(sys.stdout, sys.stderr)
    try:
        try:
            return _command(list(arguments), chosen)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except ValueError as error:
        return _error(str(error), 2)
    except KeyboardInterrupt:
        return _error(chosen.stopped("interrupted"), 130)
    except BrokenPipeError:
        _drop_output()
        return 141
    except OSError as error:
        _drop_output()
        where = f"{error.filename}: " if error.filename else ""
        return _error(chosen.stopped(f"{where}{error.strerror or error}"), 1)
    except MemoryError:
        return _error(chosen.stopped("out of memory: take fewer --seeds or a smaller --batch-size"), 1)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):  # XLA's
            raise
        return _error(chosen.stopped("out of memory: take fewer --seeds or a smaller --batch-size"), 1)


class _Chosen:
    """The settings, once they are known."""

    settings: Any = None

    def stopped(self, why: str) -> str:
        """What is told when a run stops before its end: why, and whether it can go on."""
        settings = self.settings
        if settings is None or not _resumable(settings):
            return f"{why}; nothing was saved."
        if settings.resume:
            return f"{why}; the same command goes on."
        instead = " instead of --overwrite" if settings.overwrite else ""
        return f"{why}; the same command with --resume{instead} goes on."


def _resumable(settings: Any) -> bool:
    from jaxprune.commands.claim import resumable

    return resumable(settings)


def _command(arguments: list[str], chosen: _Chosen) -> int:
    if arguments[:1] == ["--version"]:
        print(_versions())
        return 0
    missing = [package for module, package in _NEEDED.items() if not _is_there(module)]
    if missing:
        return _error(
            f"the command line needs the `demo` extra (missing: {', '.join(missing)}): "
            "pip install 'jaxprune[demo]'.",
            1,
        )
    commands = _commands()
    options = _parse(arguments, {name: settings for name, (settings, _) in commands.items()})
    run = next(run for settings, run in commands.values() if isinstance(options, settings))
    chosen.settings = options
    run(options)
    return 0


def _parse(arguments: list[str], commands: dict[str, type]) -> Any:
    import contextlib
    import io

    import tyro

    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.extras.subcommand_cli_from_dict(
                commands,
                prog="jaxprune",
                description="Pruning experiments in JAX. `jaxprune --version` tells the versions.",
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as exit:
        if exit.code:
            _error(_first_part(told.getvalue()), 2)
        raise


def _first_part(box: str) -> str:
    """What the first part of a message in a frame says, as one line, and where to read more."""
    lines = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    first = " ".join(lines[: next((i for i, line in enumerate(lines) if line.startswith("──")), None)])
    return f"{first.rstrip('.')}; see jaxprune --help."


def _commands() -> dict[str, tuple[type, Callable[[Any], None]]]:
    """Subcommand -> (the dataclass of its options, what runs it)."""
    from jaxprune.experiments.compare.settings import CompareSettings
    from jaxprune.experiments.settings import Settings

    return {"imp": (Settings, _imp), "compare": (CompareSettings, _compare)}


def _imp(settings: Any) -> None:
    from jaxprune.experiments.experiment import run

    run(settings, _console())


def _compare(settings: Any) -> None:
    from jaxprune.experiments.compare.experiment import run

    run(settings, _console())


def _console() -> Any:
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> NoReturn:
            raise BrokenPipeError

    return Output()


def _versions() -> str:
    """Of jaxprune itself the version of this code, whatever else is installed."""
    import contextlib
    import importlib.metadata
    import platform

    import jaxprune

    others = []
    for package in ("jax", "jaxlib", "flax", "optax"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            others.append(f"{package} {importlib.metadata.version(package)}")
    return f"jaxprune {jaxprune.__version__} ({', '.join([*others, f'Python {platform.python_version()}'])})"


def _is_there(module: str) -> bool:
    import importlib.util

    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _watch(chosen: _Chosen) -> None:
    import os
    import signal

    from jaxprune.commands.signals import watch

    def stop(number: int) -> None:
        # All that is on the disk is whole at any time.
        why, code = ("interrupted", 130) if number == signal.SIGINT else ("terminated", 143)
        try:
            if sys.stdout is not None and sys.stdout.isatty():
                os.write(sys.stdout.fileno(), b"\x1b[?25h\n")  # a progress bar hides the cursor
            _error(chosen.stopped(why), code, sys.__stderr__)
            if chosen.settings is not None:
                from jaxprune.commands.claim import unlock

                unlock(chosen.settings)
        finally:
            os._exit(code)

    # Where a checkpoint can't be written, threads of Orbax fail after the error itself was raised.
    sys.unraisablehook = lambda _: None
    watch(stop)


def _write_anything(*streams: Any) -> None:
    """Lets a terminal of another encoding show `?` for what it lacks."""
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _drop_output() -> None:
    """What is left in the buffer of a stdout that takes nothing more must not fail again at exit."""
    import os

    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _error(message: str, code: int, stream: Any = None) -> int:
    line = " ".join(message.split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    print(f"jaxprune: error: {shown}", file=stream or sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
