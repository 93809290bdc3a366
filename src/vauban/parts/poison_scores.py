"""Scores for training rows that may be poisoned: larger means more suspicious. One function a detector, numpy only.

Every detector is a function of a training set `x` `[n, d]` float, `y` `[n]` int, and of rows `q` `[m, d]` with labels
`t` `[m]` that are asked about. Where `q` is None the training rows themselves are asked about, each judged by the
others (left out, or held out in folds), so that their scores compare with those of rows that were never in the set.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

Array = np.ndarray
BLOCK = 1024


def neighbour_disagreement(
    x: Array, y: Array, q: Array | None = None, t: Array | None = None, *, k: int = 10, among: Array | None = None
) -> Array:
    """Share in [0, 1] of the `k` nearest training rows that bear another label, weighted by 1 / distance; `[m]`.

    `among` restricts the neighbours to these training rows (bounds the cost for large sets). A row is not its own
    neighbour. Source: k-nearest-neighbour label sanitisation, Paudice et al., arXiv:1803.00992, with distance weights.
    """
    own = q is None
    q, t = (x, y) if q is None or t is None else (q, t)
    among = np.arange(len(x)) if among is None else np.asarray(among)
    reference, labels = x[among].astype(np.float64), y[among]
    squares = (reference**2).sum(1)
    k = min(k, len(among) - int(own))
    if k < 1:
        return np.zeros(len(q))
    out = np.empty(len(q))
    for rows in _blocks(len(q)):
        points = q[rows].astype(np.float64)
        squared = np.maximum((points**2).sum(1)[:, None] + squares - 2 * points @ reference.T, 0)
        if own:
            squared[among[None, :] == np.arange(len(q))[rows][:, None]] = np.inf
        near = np.argpartition(squared, k - 1, axis=1)[:, :k]
        distance = np.sqrt(np.take_along_axis(squared, near, 1))
        # a copy of the row counts a thousand times an ordinary neighbour, not infinitely often
        weight = 1 / (distance + 1e-3 * distance.mean(1, keepdims=True) + 1e-12)
        other = labels[near] != t[rows][:, None]
        out[rows] = (weight * other).sum(1) / weight.sum(1)
    return out


def class_distance(
    x: Array,
    y: Array,
    q: Array | None = None,
    t: Array | None = None,
    *,
    folds: int = 10,
    generator: np.random.Generator | None = None,
) -> Array:
    """Robust Mahalanobis distance `[m]` of each row to the training rows of its label.

    Mean and covariance are shrunk (Ledoit and Wolf 2004) and refitted twice on the 90 % nearest rows: the concentration
    step of the minimum covariance determinant (Rousseeuw and Van Driessen 1999) from one start instead of many.
    Training rows are scored in folds, by the others of their class. A class with fewer than 4 rows scores 0.
    """
    if q is not None and t is not None:
        out = np.zeros(len(q))
        for label in np.unique(t):
            members = x[y == label]
            if len(members) >= 4:
                out[t == label] = _distance(*_robust(members), q[t == label])
        return out
    generator = generator or np.random.default_rng(0)
    out = np.zeros(len(x))
    for label in np.unique(y):
        rows = generator.permutation(np.flatnonzero(y == label))
        parts = min(folds, len(rows) // 4) if len(rows) < 4 * folds else folds
        for fold in range(parts if parts > 1 else 0):
            asked = rows[fold::parts]
            out[asked] = _distance(*_robust(x[np.setdiff1d(rows, asked)]), x[asked])
    return out


def spectral(x: Array, y: Array, q: Array | None = None, t: Array | None = None) -> Array:
    """Distance `[m]` from the class mean along the class's direction of largest variance.

    Source: Tran, Li, Madry, "Spectral signatures in backdoor attacks", NeurIPS 2018, algorithm 1 (the score there is
    the square). The direction comes from power iteration instead of a full decomposition.
    """
    q, t = (x, y) if q is None or t is None else (q, t)
    out = np.zeros(len(q))
    for label in np.unique(t):
        members = x[y == label].astype(np.float64)
        if len(members) < 2:
            continue
        mean = members.mean(0)
        out[t == label] = np.abs((q[t == label] - mean) @ top_direction(members - mean))
    return out


def top_direction(centred: Array, steps: int = 300, tolerance: float = 1e-10) -> Array:
    """Unit vector `[d]`, the first right singular vector of `centred` `[n, d]` up to sign, by power iteration.

    It starts from the longest row, so that the same data gives the same direction; zeros where all rows are zero.
    """
    direction = centred[np.argmax((centred**2).sum(1))].copy()
    norm = np.linalg.norm(direction)
    if norm == 0:
        return direction
    direction /= norm
    for _ in range(steps):
        following = centred.T @ (centred @ direction)
        length = np.linalg.norm(following)
        if length == 0:
            break
        following /= length
        moved = 1 - abs(float(following @ direction))
        direction = following
        if moved < tolerance * 1e-2:
            break
    return direction


def p_values(scores: Array, null: Array) -> Array:
    """Share of `null` `[m]` (scores of rows held to be clean) that is at least as large, by 1 / (m + 1) at least."""
    ordered = np.sort(null)
    above = len(ordered) - np.searchsorted(ordered, scores, side="left")
    return (1 + above) / (len(ordered) + 1)


def own_p_values(scores: Array) -> Array:
    """As `p_values`, each row against all the others."""
    ordered = np.sort(scores)
    return (len(ordered) - np.searchsorted(ordered, scores, side="left")) / len(ordered)


def tail_surprise(scores: Array) -> Array:
    """-log p of each row against its fellows, `[n]`, with an exponential tail above the median; unbounded, unlike ranks.

    The tail's scale is the larger of what the 90 % quantile says and the mean excess over the median (the quantile
    alone says 0 where most rows score the same).
    """
    middle, upper = np.quantile(scores, [0.5, 0.9])
    excess = np.maximum(scores - middle, 0)
    scale = max(float(upper - middle) / np.log(5), float(excess.mean()), 1e-12)
    return np.log(2) + excess / scale


def fisher(*p: Array) -> Array:
    """Fisher's combination of p-values, sum of -log p, `[n]`; used as a score, its law is not assumed."""
    total: Array = -np.sum([np.log(v) for v in p], axis=0)
    return total


def conformal_threshold(null: Array, rate: float) -> float:
    """The smallest score above which a clean row falls with probability `rate` at most (split conformal); inf if none.

    `null` `[m]`: scores of held-out clean rows; needs m >= 1 / rate - 1 for a finite answer.
    """
    allowed = int(np.floor(rate * (len(null) + 1) + 1e-9))
    return float(np.sort(null)[-allowed]) if allowed >= 1 else float("inf")


def tail_threshold(scores: Array, rate: float) -> float:
    """A threshold without clean rows: an exponential tail through the median and the 90 % quantile of the scores.

    It does not follow poison that makes up less than a tenth of the rows; the false-alarm rate is right where the
    bulk of the scores has an exponential tail, and below `rate` where it is lighter.
    """
    middle, upper = np.quantile(scores, [0.5, 0.9])
    return float(middle + (upper - middle) * np.log(0.5 / rate) / np.log(5))


def standardised(x: Array, *others: Array) -> tuple[Array, ...]:
    """`x` `[n, d]` and the others divided by each feature's standard deviation in `x` (1 where it does not vary)."""
    spread = x.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    return tuple(part / spread for part in (x, *others))


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, BLOCK):
        yield slice(start, min(start + BLOCK, count))


def ledoit_wolf(z: Array) -> tuple[Array, Array]:
    """Mean `[d]` and covariance `[d, d]` shrunk towards a multiple of the identity (Ledoit and Wolf 2004, section 3)."""
    n, d = z.shape
    mean = z.mean(0)
    centred = z - mean
    sample = centred.T @ centred / n
    scale = np.trace(sample) / d
    spread = ((sample - scale * np.eye(d)) ** 2).sum()
    noise = (((centred**2).sum(1) ** 2).sum() / n - (sample**2).sum()) / n
    share = min(noise, spread) / spread if spread > 0 else 1.0
    return mean, (1 - share) * sample + share * scale * np.eye(d)


def _robust(z: Array, steps: int = 2, keep: float = 0.9) -> tuple[Array, Array]:
    z = z.astype(np.float64)
    mean, covariance = ledoit_wolf(z)
    for _ in range(steps):
        distance = _distance(mean, covariance, z)
        mean, covariance = ledoit_wolf(z[distance <= np.quantile(distance, keep)])
    return mean, covariance


def _distance(mean: Array, covariance: Array, q: Array) -> Array:
    centred = q.astype(np.float64) - mean
    floor = max(float(np.trace(covariance)) / len(covariance), 1e-30) * 1e-9
    solved = np.linalg.solve(covariance + floor * np.eye(len(covariance)), centred.T).T
    distance: Array = np.sqrt(np.maximum((centred * solved).sum(1), 0))
    return distance
