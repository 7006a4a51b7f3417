"""Understand trained vision networks, unit by unit.

Everything public is here: `import probekit as pk`. Names are imported when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
