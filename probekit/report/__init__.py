"""Results for people: in the terminal, as a page, as the dossier of a unit.

The package has the name of its main function, and is that function too: `probekit.report(...)` is
`probekit.report.html.report(...)`, whichever of the two was imported before.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Function(ModuleType):
    """A package that can be called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from probekit.report.html import report

        return report(*args, **kwargs)


sys.modules[__name__].__class__ = _Function
