"""From estimates to probabilities: one registry of policies, and one place that draws.

A policy is a file of this folder; importing the folder registers all of them.
May import `option`.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in sorted(module.name for module in iter_modules(__path__)):
    import_module(f"{__name__}.{_module}")
