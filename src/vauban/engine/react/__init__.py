"""When something blocks the attack, go through it: the same model, made attackable, in front of the real one.

Stand-ins are used for gradients and search only; every success is verified on the real target.
"""

from __future__ import annotations

from vauban.engine.react.choose import Plan, plan

__all__ = ["Plan", "plan"]
