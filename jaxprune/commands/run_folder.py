"""The folder of a run: no file in it is ever half written, and an interrupted run continues from it.

settings.json is written first. rounds/ has the row of each finished training of `jaxprune imp`, carry/ the state
from which its next round starts, trainings/ the result of each recipe of `jaxprune compare`. They are removed once
results.json, written last, marks the run as finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jaxprune

PyTree = (
    Any  # as in `jaxprune.params`, which needs JAX: mistakes in a folder are reported before JAX is imported
)

_SETTINGS, _RESULTS, _CHECKPOINT = "settings.json", "results.json", "checkpoint"
_TIMES = "times.json"
_CLAIMS = (
    "claims.md",
    *(f"{p}.png" for p in ("scheduling", "scope", "initialization", "structure", "tickets")),
)
_REPORTS = ("results.csv", *_CLAIMS, _TIMES, "plot.png", "curves.png", "latency.png")
# In the order of their removal: a file that marks others as complete is removed before them.
_OURS = (_RESULTS, "carry", "rounds", "trainings", *_REPORTS, _CHECKPOINT, _SETTINGS)
_PROGRESS = ("carry", "rounds", "trainings")
_DELIVERED = (_RESULTS, *_REPORTS, _CHECKPOINT)
_TEMPORARY = re.compile(r".*\.(partial|removed)|.*\.orbax-checkpoint-tmp.*")


class RunSettings(Protocol):
    """What the folder needs from the settings of a command."""

    @property
    def out(self) -> str: ...

    @property
    def resume(self) -> bool: ...

    @property
    def overwrite(self) -> bool: ...

    def of_the_result(self) -> dict[str, Any]: ...


class RunFolder:
    """Reads and writes the folder; `claimed` makes it."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def has_settings(self) -> bool:
        return (self.path / _SETTINGS).is_file()

    @property
    def is_finished(self) -> bool:
        return (self.path / _RESULTS).is_file()

    @property
    def has_progress(self) -> bool:
        """Whether a finished training is stored."""
        folders = (self.path / name for name in _PROGRESS)
        found = (entry for folder in folders if folder.is_dir() for entry in folder.iterdir())
        return any(not is_leftover(entry.name) for entry in found)

    def check_same(self, settings: RunSettings, **more: Any) -> None:
        """Raises ValueError unless the run in the folder has this version, these settings and `more`."""
        before = self._read_json(_SETTINGS)
        version = before.get("version")
        if version != jaxprune.__version__:
            began = "an unknown version of jaxprune" if version is None else f"jaxprune {version}"
            raise ValueError(
                f"--resume needs the version that began the run in {self.path}: that was {began}, this is "
                f"{jaxprune.__version__}. Install that version, or start again with --overwrite."
            )
        for name, value in {**settings.of_the_result(), **more}.items():
            if name not in before or before[name] != value:
                if name == "data_fingerprint":
                    raise ValueError(
                        "--resume needs the data of the interrupted run, but these are other images."
                    )
                raise ValueError(
                    f"--resume needs the settings of the interrupted run: --{name.replace('_', '-')} was "
                    f"{before.get(name)}, now it is {value}."
                )

    def begin(self, settings: RunSettings, fingerprint: str) -> None:
        """Continues the run in the folder if `settings.resume` is set, else starts a new one in its place.

        Args:
          settings: the settings of this call.
          fingerprint: the fingerprint of the data.

        Raises:
          ValueError: if the run to resume had other settings or data.
        """
        if settings.resume:
            self.check_same(settings, data_fingerprint=fingerprint)
            if self.is_finished:
                return
        else:
            for name in _OURS:
                _remove(self.path / name)
        _clean(self.path)
        content = {
            "version": jaxprune.__version__,
            **settings.of_the_result(),
            "data_fingerprint": fingerprint,
        }
        if not settings.resume:
            self.write(_SETTINGS, lambda file: _write_json(file, content))

    def row_path(self, kind: str, round: int) -> Path:
        return self.path / "rounds" / f"{kind}-{round:03d}"

    def has_row(self, kind: str, round: int) -> bool:
        return self.row_path(kind, round).is_dir()

    def save_row(self, kind: str, round: int, row: PyTree) -> None:
        _save(self.row_path(kind, round), row)

    def load_row(self, kind: str, round: int, like: PyTree) -> PyTree:
        return _restore(self.row_path(kind, round), like)

    def save_carry(self, round: int, carry: PyTree) -> None:
        """Stores the carry before `round`, once all rows of earlier rounds are stored, and drops older carries."""
        _save(self.path / "carry" / f"{round:03d}", carry)
        for old in self._carries()[:-1]:
            _remove(self.path / "carry" / f"{old:03d}")

    def next_round(self) -> int:
        """The round to continue with; 0 if no carry is stored."""
        return max(self._carries(), default=0)

    def load_carry(self, like: PyTree) -> PyTree:
        return _restore(self.path / "carry" / f"{self.next_round():03d}", like)

    def has_training(self, name: str) -> bool:
        return (self.path / "trainings" / name).is_file()

    def save_training(self, name: str, record: dict[str, Any]) -> None:
        (self.path / "trainings").mkdir(exist_ok=True)
        content = {"digest": _digest(record), "record": record}
        self.write(f"trainings/{name}", lambda path: _write_json(path, content))

    def load_training(self, name: str) -> dict[str, Any]:
        content = self._read_json(f"trainings/{name}")
        if content.get("digest") != _digest(content.get("record")):
            raise _damaged(self.path / "trainings" / name, "it was changed")
        return content["record"]

    def save_checkpoint(self, tree: PyTree) -> None:
        """Writes the parameters and masks of the result."""
        _remove(self.path / _CHECKPOINT)
        _save(self.path / _CHECKPOINT, tree)

    def write(self, name: str, write: Callable[[Path], None]) -> None:
        """Lets `write` fill a file beside `name`, then renames it to `name`."""
        path = self.path / name
        partial = path.with_name(f".{path.name}.partial")
        try:
            write(partial)
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from None

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file."""

        def write(path: Path) -> None:
            path.write_text(text, encoding="utf-8")

        self.write(name, write)

    def write_times(self, times: dict[str, Any]) -> None:
        """Writes what was measured with a clock, apart from results.json, which is the same in every run."""
        self.write(_TIMES, lambda path: _write_json(path, times))

    def finish(self, results: dict[str, Any]) -> None:
        """Writes results.json and removes the files that only resuming needs."""
        self.write(_RESULTS, lambda path: _write_json(path, results))
        for name in _PROGRESS:
            _remove(self.path / name)

    def show(self, table: Callable[[dict[str, Any]], Any]) -> tuple[Any, str]:
        """The `table` of the results, and a line with the files in the folder.

        Raises:
          ValueError: if the results or the checkpoint are damaged; the message names the file.
        """
        results = self._read_json(_RESULTS)
        if (self.path / _TIMES).is_file():
            results["times"] = self._read_json(_TIMES)
        try:
            shown = table(results)
        except (KeyError, TypeError, IndexError, ValueError, AttributeError):
            raise _damaged(self.path / _RESULTS, "it lacks numbers") from None
        if (self.path / _CHECKPOINT).exists():
            from jaxprune import checkpoint

            try:
                checkpoint.check(self.path / _CHECKPOINT)
            except ValueError as error:
                raise _unusable(error) from None
        found = [name for name in _DELIVERED if (self.path / name).exists()]
        return shown, f"In {self.path}: {', '.join(found)}"

    def _carries(self) -> list[int]:
        folder = self.path / "carry"
        found = folder.iterdir() if folder.is_dir() else ()
        return sorted(int(entry.name) for entry in found if entry.name.isdigit())

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads((self.path / name).read_bytes())
        except (ValueError, RecursionError):
            raise _damaged(self.path / name, "it is not a complete JSON file") from None
        except OSError as error:
            raise _damaged(self.path / name, str(error.strerror)) from None
        if not isinstance(content, dict):
            raise _damaged(self.path / name, "it is not a JSON object")
        return content


def is_leftover(name: str) -> bool:
    """Whether a killed process may leave a file of this name."""
    return _TEMPORARY.fullmatch(name) is not None


def _save(path: Path, tree: PyTree) -> None:
    from jaxprune import checkpoint

    checkpoint.save(path, tree)


def _restore(path: Path, like: PyTree) -> PyTree:
    from jaxprune import checkpoint

    try:
        return checkpoint.restore(path, like)
    except FileNotFoundError:
        raise _damaged(path, "it is missing") from None
    except ValueError as error:
        raise _unusable(error) from None


def _damaged(path: Path, why: str) -> ValueError:
    return _unusable(f"{path} is damaged: {why}.")


def _unusable(what: object) -> ValueError:
    return ValueError(f"--resume can't use this run: {what} Start again with --overwrite.")


def _digest(record: Any) -> str:
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _remove(path: Path) -> None:
    """Removes a file or a folder in one step, not piece by piece."""
    if path.is_dir():
        away = path.with_name(f".{path.name}.removed")
        shutil.rmtree(away, ignore_errors=True)
        os.replace(path, away)
        shutil.rmtree(away)
    else:
        path.unlink(missing_ok=True)


def _clean(path: Path) -> None:
    """Removes the files that a killed process left behind."""
    for folder in (path, path / "carry", path / "rounds", path / "trainings"):
        for entry in folder.iterdir() if folder.is_dir() else ():
            if _TEMPORARY.fullmatch(entry.name):
                if entry.is_dir():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
