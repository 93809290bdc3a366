"""Checks of hyper-parameters that several attacks share; each raises ValueError with what was given and what may be."""

from __future__ import annotations

from collections.abc import Iterable


def at_least(name: str, value: float, low: float) -> None:
    if not value >= low:
        raise ValueError(f"{name} must be at least {low:g}, got {value:g}")


def at_most(name: str, value: float, high: float) -> None:
    if not value <= high:
        raise ValueError(f"{name} must be at most {high:g}, got {value:g}")


def above(name: str, value: float, low: float) -> None:
    if not value > low:
        raise ValueError(f"{name} must be above {low:g}, got {value:g}")


def below(name: str, value: float, high: float) -> None:
    if not value < high:
        raise ValueError(f"{name} must be below {high:g}, got {value:g}")


def one_of(name: str, value: str, known: Iterable[str]) -> None:
    known = tuple(known)
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
