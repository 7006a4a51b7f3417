"""What changes an input without changing its label: corruptions and attacks.

The package has the name of its main function, and is that function too: `probekit.robustness(...)`
is `probekit.robustness.evaluate.robustness(...)`, whichever of the two was imported before.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Function(ModuleType):
    """A package that can be called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from probekit.robustness.evaluate import robustness

        return robustness(*args, **kwargs)


sys.modules[__name__].__class__ = _Function
