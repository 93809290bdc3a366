"""Receiver operating characteristics of scores: larger means positive. Ties count one half."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the curve by ranks (Mann and Whitney 1947); NaN where one side is empty.

    `scores` float `[n]` (infinities are allowed, NaN is not), `positive` bool `[n]`.
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def auc_deviation(scores: np.ndarray, positive: np.ndarray) -> float:
    """Standard deviation of the area under the curve (DeLong, DeLong and Clarke-Pearson 1988, section 2); NaN where a side has
    fewer than two scores.

    From the share of negatives below each positive, and of positives above each negative: their variances over their numbers.
    """
    positives, negatives = scores[positive], scores[~positive]
    m, n = len(positives), len(negatives)
    if min(m, n) < 2:
        return float("nan")
    ranks = rankdata(scores)
    above = (ranks[positive] - rankdata(positives)) / n
    below = 1 - (ranks[~positive] - rankdata(negatives)) / m
    return float(np.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / n))


def roc(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(fpr, tpr, thresholds), each `[k]`, from (0, 0) at threshold inf to (1, 1); one point per distinct score.

    At a threshold everything with a score of at least that much is called positive.
    """
    order = np.argsort(-scores, kind="stable")
    sorted_scores, hits = scores[order], positive[order]
    last = np.append(sorted_scores[1:] != sorted_scores[:-1], True)
    tp = np.cumsum(hits)[last]
    fp = np.cumsum(~hits)[last]
    fpr = np.concatenate([[0.0], fp / max(int((~positive).sum()), 1)])
    tpr = np.concatenate([[0.0], tp / max(int(positive.sum()), 1)])
    return fpr, tpr, np.concatenate([[np.inf], sorted_scores[last]])


def hits_at_fpr(scores: np.ndarray, positive: np.ndarray, rate: float) -> int:
    """How many positives are found at the largest operating point whose false-positive rate is at most `rate`.

    No interpolation between points: a threshold that exists, and its count.
    """
    fpr, tpr, _ = roc(scores, positive)
    return round(float(tpr[fpr <= rate * (1 + 1e-12)].max()) * int(positive.sum()))


def thin(fpr: np.ndarray, tpr: np.ndarray, points: int = 200) -> tuple[list[float], list[float]]:
    """At most about `points` points of a curve, evenly spread on a logarithmic axis; points with fpr 0 are left out."""
    seen = fpr > 0
    fpr, tpr = fpr[seen], tpr[seen]
    if len(fpr) == 0:
        return [], []
    wanted = np.geomspace(fpr[0], 1.0, points)
    pick = np.unique(np.searchsorted(fpr, wanted, side="right") - 1)
    return [float(v) for v in fpr[pick]], [float(v) for v in tpr[pick]]
