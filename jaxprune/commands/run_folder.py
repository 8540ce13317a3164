"""The folder of a run: nothing in it is ever half written, and an interrupted run goes on from it.

settings.json is there from the start. rounds/ has the row of each finished training of `jaxprune imp`, carry/
what its next round starts from, trainings/ what each recipe of `jaxprune compare` came to; they go when
results.json, written last, says that the run is finished.
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

PyTree = Any  # as in `jaxprune.params`, which needs JAX: mistakes in a folder are told before it is imported

_SETTINGS, _RESULTS, _CHECKPOINT = "settings.json", "results.json", "checkpoint"
# In the order in which they may go: what says that others are whole goes before them.
_OURS = (_RESULTS, "carry", "rounds", "trainings", "results.csv", "plot.png", _CHECKPOINT, _SETTINGS)
_PROGRESS = ("carry", "rounds", "trainings")
_DELIVERED = (_RESULTS, "results.csv", "plot.png", _CHECKPOINT)
_TEMPORARY = re.compile(r".*\.(partial|removed)|.*\.orbax-checkpoint-tmp.*")


class RunSettings(Protocol):
    """What the folder asks of a command's settings."""

    @property
    def out(self) -> str: ...

    @property
    def resume(self) -> bool: ...

    @property
    def overwrite(self) -> bool: ...

    def of_the_result(self) -> dict[str, Any]: ...


class RunFolder:
    """Reads and writes the folder; `claimed` gives one."""

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
        """Whether a training is kept."""
        folders = (self.path / name for name in _PROGRESS)
        found = (entry for folder in folders if folder.is_dir() for entry in folder.iterdir())
        return any(not is_leftover(entry.name) for entry in found)

    def check_same(self, settings: RunSettings, **more: Any) -> None:
        """Raises ValueError unless the run that is there has this version, these settings and `more`."""
        before = self._read_json(_SETTINGS)
        version = before.get("version")
        if version != jaxprune.__version__:
            began = "an unknown version of jaxprune" if version is None else f"jaxprune {version}"
            raise ValueError(
                f"--resume needs the version that began the run in {self.path}: that was {began}, this is "
                f"{jaxprune.__version__}. Install it, or start anew with --overwrite."
            )
        for name, value in {**settings.of_the_result(), **more}.items():
            if name not in before or before[name] != value:
                if name == "data_fingerprint":
                    raise ValueError(
                        "--resume needs the data of the interrupted run, but they are other images."
                    )
                raise ValueError(
                    f"--resume needs the settings of the interrupted run: --{name.replace('_', '-')} was "
                    f"{before.get(name)}, now it is {value}."
                )

    def begin(self, settings: RunSettings, fingerprint: str) -> None:
        """Goes on with the run that is there where `settings.resume` says so, or starts one in its place.

        Args:
          settings: of this call.
          fingerprint: of the data.

        Raises:
          ValueError: the run to resume had other settings or data.
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
        """Keeps the carry before `round`, which all rows before must be there for, and drops older ones."""
        _save(self.path / "carry" / f"{round:03d}", carry)
        for old in self._carries()[:-1]:
            _remove(self.path / "carry" / f"{old:03d}")

    def next_round(self) -> int:
        """The round to go on with; 0 where no carry is kept."""
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
        """The result's parameters and masks."""
        _remove(self.path / _CHECKPOINT)
        _save(self.path / _CHECKPOINT, tree)

    def write(self, name: str, write: Callable[[Path], None]) -> None:
        """Lets `write` fill a file beside `name`, then moves it there."""
        path = self.path / name
        partial = path.with_name(f".{path.name}.partial")
        try:
            write(partial)
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from None

    def finish(self, results: dict[str, Any]) -> None:
        """Writes results.json and removes what only served to go on."""
        self.write(_RESULTS, lambda path: _write_json(path, results))
        for name in _PROGRESS:
            _remove(self.path / name)

    def show(self, table: Callable[[dict[str, Any]], Any]) -> tuple[Any, str]:
        """What `table` makes of the results, and a line on what is in the folder.

        Raises:
          ValueError: the results or the checkpoint are damaged; the file is named.
        """
        results = self._read_json(_RESULTS)
        try:
            shown = table(results)
        except (KeyError, TypeError, IndexError, ValueError, AttributeError):
            raise _damaged(self.path / _RESULTS, "numbers are missing in it") from None
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
            raise _damaged(self.path / name, "it is no whole JSON file") from None
        except OSError as error:
            raise _damaged(self.path / name, str(error.strerror)) from None
        if not isinstance(content, dict):
            raise _damaged(self.path / name, "it is no JSON object")
        return content


def is_leftover(name: str) -> bool:
    """Whether a process that was killed may leave something of this name."""
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
    return ValueError(f"--resume can't use this run: {what} Start anew with --overwrite.")


def _digest(record: Any) -> str:
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _remove(path: Path) -> None:
    """Removes a file or a folder, which is gone at once and not piece by piece."""
    if path.is_dir():
        away = path.with_name(f".{path.name}.removed")
        shutil.rmtree(away, ignore_errors=True)
        os.replace(path, away)
        shutil.rmtree(away)
    else:
        path.unlink(missing_ok=True)


def _clean(path: Path) -> None:
    """What a killed process left behind."""
    for folder in (path, path / "carry", path / "rounds", path / "trainings"):
        for entry in folder.iterdir() if folder.is_dir() else ():
            if _TEMPORARY.fullmatch(entry.name):
                if entry.is_dir():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
