"""The command `jaxprune`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# As little as possible is imported before Ctrl-C is handled, and JAX only after all checks, so that mistakes are
# reported at once.

_EXPERIMENTS = ("imp", "compare", "claims")
_NEEDED = {"tyro": "tyro"}
_NEEDED_FOR_EXPERIMENTS = {
    "sklearn": "scikit-learn",
    "matplotlib": "matplotlib",
    "orbax.checkpoint": "orbax-checkpoint",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    An error is one line on stderr, never a traceback.

    Args:
      arguments: the arguments after `jaxprune` on the command line. None for those of `sys.argv`: this is the
        command itself, which SIGINT and SIGTERM end at once.

    Returns:
      The exit code: 0; 1 if the machine stops the run (a missing extra, a full disk, too little memory); 2 if
      options, data or the folder can't be used; 130 if interrupted (Ctrl-C); 141 if the reader of the output is
      gone; 143 if terminated (SIGTERM). A stopped run continues with --resume from the last training that it
      saved.

    Raises:
      SystemExit: after --help (code 0), and if options can't be parsed (code 2).
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
    except ImportError as error:
        if "pip install" not in str(error):  # what an extra brings says so
            raise
        return _error(str(error), 1)
    except MemoryError:
        return _error(chosen.out_of_memory(), 1)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):  # XLA's
            raise
        return _error(chosen.out_of_memory(), 1)


class _Chosen:
    """The settings, once they are known."""

    settings: Any = None

    def stopped(self, why: str) -> str:
        """The message for a run that stops before its end: why it stopped, and whether it can continue."""
        settings = self.settings
        if settings is None or not _resumable(settings):
            return f"{why}; nothing was saved."
        if settings.resume:
            return f"{why}; the same command continues the run."
        instead = " instead of --overwrite" if settings.overwrite else ""
        return f"{why}; the same command with --resume{instead} continues the run."

    def out_of_memory(self) -> str:
        """The message for a run that needs too much memory."""
        smaller = "fewer --seeds or a smaller --batch-size"
        if not hasattr(self.settings, "seeds"):
            smaller = "smaller `inputs` and `batches` in the model"
        return self.stopped(f"out of memory: use {smaller}")

    def clean(self) -> None:
        """Removes what a process that ends now would leave behind."""
        if hasattr(self.settings, "resume"):
            from jaxprune.commands.claim import unlock

            unlock(self.settings)
        elif hasattr(self.settings, "out"):
            from jaxprune.commands.new_folder import discard

            discard(self.settings.out)


def _resumable(settings: Any) -> bool:
    from jaxprune.commands.claim import resumable

    return hasattr(settings, "resume") and resumable(settings)


def _command(arguments: list[str], chosen: _Chosen) -> int:
    if arguments[:1] == ["--version"]:
        print(_versions())
        return 0
    extra = "demo" if arguments[:1] and arguments[0] in _EXPERIMENTS else "cli"
    needed = {**_NEEDED, **(_NEEDED_FOR_EXPERIMENTS if extra == "demo" else {})}
    missing = [package for module, package in needed.items() if not _is_there(module)]
    if missing:
        return _error(
            f"the command line needs the `{extra}` extra (missing: {', '.join(missing)}): "
            f"pip install 'jaxprune[{extra}]'.",
            1,
        )
    commands = _commands()
    options = _parse(arguments, {name: settings for name, (settings, _) in commands.items()})
    run = next(run for settings, run in commands.values() if type(options) is settings)
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
                description="Pruning in JAX: a model of your own made smaller (inspect, shrink, export), and "
                "experiments (imp, compare, claims). `jaxprune --version` prints the versions.",
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as exit:
        if exit.code:
            _error(_first_part(told.getvalue()), 2)
        raise


def _first_part(box: str) -> str:
    """The first part of a framed message as one line, with a hint where to read more."""
    lines = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    first = " ".join(lines[: next((i for i, line in enumerate(lines) if line.startswith("──")), None)])
    return f"{first.rstrip('.')}; see jaxprune --help."


def _commands() -> dict[str, tuple[type, Callable[[Any], None]]]:
    """Subcommand -> (the dataclass of its options, the function that runs it)."""
    from jaxprune.commands.export import ExportOptions
    from jaxprune.commands.inspect import InspectOptions
    from jaxprune.commands.shrink import ShrinkOptions
    from jaxprune.experiments.claims.settings import ClaimsSettings
    from jaxprune.experiments.compare.settings import CompareSettings
    from jaxprune.experiments.settings import Settings

    return {
        "inspect": (InspectOptions, _inspect),
        "shrink": (ShrinkOptions, _shrink),
        "export": (ExportOptions, _export),
        "imp": (Settings, _imp),
        "compare": (CompareSettings, _compare),
        "claims": (ClaimsSettings, _claims),
    }


def _inspect(options: Any) -> None:
    from jaxprune.commands.inspect import run

    run(options)


def _shrink(options: Any) -> None:
    from jaxprune.commands.shrink import run

    run(options)


def _export(options: Any) -> None:
    from jaxprune.commands.export import run

    run(options)


def _imp(settings: Any) -> None:
    from jaxprune.experiments.experiment import run

    run(settings, _console())


def _compare(settings: Any) -> None:
    from jaxprune.experiments.compare.experiment import run

    run(settings, _console())


def _claims(settings: Any) -> None:
    from jaxprune.experiments.claims.experiment import run

    run(settings, _console())


def _console() -> Any:
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> NoReturn:
            raise BrokenPipeError

    return Output()


def _versions() -> str:
    """The versions; for jaxprune that of this code, whatever is installed."""
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
        # All files on the disk are complete at any time.
        why, code = ("interrupted", 130) if number == signal.SIGINT else ("terminated", 143)
        try:
            if sys.stdout is not None and sys.stdout.isatty():
                os.write(sys.stdout.fileno(), b"\x1b[?25h\n")  # a progress bar hides the cursor
            _error(chosen.stopped(why), code, sys.__stderr__)
            if chosen.settings is not None:
                chosen.clean()
        finally:
            os._exit(code)

    # If a checkpoint can't be written, threads of Orbax fail after the error itself has been raised.
    sys.unraisablehook = lambda _: None
    watch(stop)


def _write_anything(*streams: Any) -> None:
    """Lets a terminal of another encoding show `?` for characters that it lacks."""
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _drop_output() -> None:
    """Drops the buffer of a closed stdout, so that flushing it at exit does not fail again."""
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
