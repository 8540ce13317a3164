"""Finished rounds on disk: the plan and the row of each, and the state after the last one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxprune import checkpoint
from jaxprune.files import write_whole
from jaxprune.params import PyTree
from jaxprune.shrinking.history import Row, as_json, of_json
from jaxprune.shrinking.states import parts_of
from jaxprune.surgery import LayerPlan, Plan

_SETTINGS, _ROW, _STATE = "settings.json", "row.json", "state"


class Progress(NamedTuple):
    """The rounds so far.

    state: the trained state of the last one; snapshot: what the rewind remembers, at that size; plan: for the full
    parameters, None before the first removal; rows: one for each round.
    """

    state: Any
    snapshot: PyTree
    plan: Any
    rows: tuple[Row, ...]


class Folder:
    """A folder with a subfolder for each finished round. A round counts once its state, written last, is complete."""

    def __init__(self, path: Any, settings: dict[str, Any]):
        checkpoint.check_installed()
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / _SETTINGS
        if file.exists():
            _check_same(self.path, json.loads(file.read_bytes()), settings)
        elif any(self.path.iterdir()):
            raise ValueError(
                f"`folder` must be new or that of an earlier run, but {self.path} has other files."
            )
        write_whole(file, lambda out: out.write(json.dumps(settings, indent=1).encode()))

    def save(self, progress: Progress, step: Any | None) -> None:
        """Writes the round that was finished last, `step` being its plan; the state before it is removed."""
        number = len(progress.rows) - 1
        place = self._round(number)
        if place.exists():
            shutil.rmtree(place)  # of a run that was killed while it wrote
        place.mkdir()
        for i, part in enumerate([] if step is None else parts_of(step)):
            part.save(place / f"plan_{i:03d}.{'json' if isinstance(part, LayerPlan) else 'npz'}")
        write_whole(
            place / _ROW, lambda out: out.write(json.dumps(as_json(progress.rows[-1]), indent=1).encode())
        )
        checkpoint.save(place / _STATE, {"state": progress.state, "snapshot": progress.snapshot})
        if number:
            shutil.rmtree(self._round(number - 1) / _STATE)

    def load(self, start: Progress, apply: Callable[[Progress, Any], Progress], params: Any) -> Progress:
        """The progress of the last finished round; `start` if there is none.

        Args:
          start: the progress before round 0.
          apply: (progress, plan) -> progress with everything shrunk.
          params: state -> the parameters that plans are for.
        """
        last = self._last()
        if last is None:
            return start
        progress = start
        for number in range(last + 1):
            place = self._round(number)
            for file in sorted(place.glob("plan_*")):
                tree = params(progress.state)
                plan = Plan.load(file) if file.suffix == ".npz" else LayerPlan.load(file, tree)
                plan.check(tree)
                progress = apply(progress, plan)
            row = of_json(json.loads((place / _ROW).read_bytes()))
            progress = progress._replace(rows=(*progress.rows, row))
        like = {"state": progress.state, "snapshot": progress.snapshot}
        found = checkpoint.restore(self._round(last) / _STATE, like)
        return progress._replace(state=found["state"], snapshot=found["snapshot"])

    def _round(self, number: int) -> Path:
        return self.path / f"round_{number:03d}"

    def _last(self) -> int | None:
        """The last round whose state is complete."""
        found = [int(place.parent.name[6:]) for place in self.path.glob(f"round_*/{_STATE}")]
        return max(found, default=None)


def _check_same(path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    for name, value in new.items():
        if old.get(name) != value:
            raise ValueError(
                f"`folder` {path} is that of a run with other settings: its `{name}` was {old.get(name)}, not {value}. "
                "Resume with the same arguments, or choose another folder."
            )
