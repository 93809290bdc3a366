"""Empty stand-ins for packages that adv-lib imports at its top but does not need for the attacks used here.

adv-lib 0.2.8 imports torchvision (an LPIPS network) and visdom (live plots). torchvision's wheel does not load beside
a CPU build of torch, and visdom starts a plotting stack. Call `install()` before importing adv_lib. A package that is
really there is left alone.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types

PACKAGES = {"torchvision": ("models",), "visdom": ()}


class _Empty(types.ModuleType):
    """A module in which every public name exists and stands for an empty class."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def install() -> None:
    for package, children in PACKAGES.items():
        if package in sys.modules or importlib.util.find_spec(package) is not None:
            continue
        parent = sys.modules[package] = _Empty(package)
        parent.__path__ = []
        parent.__spec__ = importlib.machinery.ModuleSpec(package, None)  # some ask whether a package is there
        for child in children:
            module = sys.modules[f"{package}.{child}"] = _Empty(f"{package}.{child}")
            setattr(parent, child, module)
