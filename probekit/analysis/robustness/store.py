"""A folder of finished conditions, from which an interrupted run resumes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import xarray as xr

from probekit.analysis.robustness.conditions import Condition
from probekit.results.folders import claim, locked
from probekit.results.trees import open_result, save_result
from probekit.runtime.processes import processes

IDENTITY = "identity.json"


class ConditionStore:
    """Results of conditions, keyed by everything they depend on, in a folder or in memory.

    A folder holds `identity.json` and one netCDF file per condition, written atomically. With several
    processes, only the first one writes.
    """

    def __init__(
        self, folder: str | Path | None, identity: Callable[[], Mapping[str, Any]]
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        self._identity = identity
        self._found: dict[Condition, xr.DataTree] = {}
        self._writes = processes().is_main

    def __contains__(self, condition: Condition) -> bool:
        return condition in self._found or (
            self.folder is not None and self._path(self.folder, condition).exists()
        )

    def __getitem__(self, condition: Condition) -> xr.DataTree:
        if condition not in self._found and self.folder is not None:
            self._found[condition] = open_result(self._path(self.folder, condition))
        return self._found[condition]

    def __setitem__(self, condition: Condition, found: xr.DataTree) -> None:
        self._found[condition] = found
        if self.folder is not None and self._writes:
            found.attrs["condition"] = json.dumps(asdict(condition))
            save_result(found, self._path(self.folder, condition), overwrite=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Prevents other runs from writing to the folder.

        Raises:
            OutputError: The folder belongs to another run (the message names the differences), holds
                something else, or cannot be written.
        """
        if self.folder is None or not self._writes:
            yield
            return
        with locked(self.folder / IDENTITY):
            claim(self.folder / IDENTITY, self._identity(), "robustness run")
            yield

    def _path(self, folder: Path, condition: Condition) -> Path:
        digest = hashlib.sha256(json.dumps(asdict(condition)).encode()).hexdigest()[:12]
        name = re.sub(r"[^\w.=-]+", "_", f"{condition.kind}-{condition.name}-{condition.level:.6g}")
        return folder / f"{name[:80]}-{digest}.nc"
