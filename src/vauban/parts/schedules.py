"""When to change step sizes."""

from __future__ import annotations

import math


def cosine(number: float, steps: float) -> float:
    """From 1 at step 0 down to 0 at step `steps`, along half a wave; 1 before."""
    return 0.5 + 0.5 * math.cos(math.pi * max(number, 0) / steps)


def checkpoints(steps: int) -> list[int]:
    """Steps at which APGD reviews its step size (Croce and Hein 2020, arXiv:2003.01690, section 3.1).

    Shares of the run: 0.22, then intervals that shrink by 0.03 down to 0.06; rounded up, the last step left out.
    """
    marks: list[int] = []
    before, now = 0, 22  # in hundredths, for 0.57 is not a binary number
    while now < 100:
        mark = -(-steps * now // 100)
        if mark < steps and (not marks or mark > marks[-1]):
            marks.append(mark)
        before, now = now, now + max(now - before - 3, 6)
    return marks


_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def square_share(start: float, step: int, steps: int) -> float:
    """Share of the input that Square changes at a step: halved at 10, 50, 200, ... of 10,000 (or in proportion).

    Andriushchenko et al. 2020 (arXiv:1912.00049, section 4.1).
    """
    at = step / steps * 10_000
    return float(start * 0.5 ** sum(at > mark for mark in _HALVINGS))
