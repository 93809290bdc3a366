"""Which parts of an input a model's answer rests on: methods with one signature, `(score, x, means) -> attribution`.

A score is a function of points and of the rows that they belong to; `means` holds what else a method may use. None leaves
hooks, gradients, modes or random state behind, and no row's attribution depends on its neighbours or the batch.
"""

from __future__ import annotations

from vauban.parts.attribution.base import Means, Method, Score
from vauban.parts.attribution.grad_cam import GradCam
from vauban.parts.attribution.occlusion import Occlusion
from vauban.parts.attribution.slopes import IntegratedGradients, SmoothGrad, completeness_gap, input_gradient

METHODS: dict[str, type[IntegratedGradients | SmoothGrad | Occlusion | GradCam]] = {
    "integrated_gradients": IntegratedGradients,
    "smooth_grad": SmoothGrad,
    "occlusion": Occlusion,
    "grad_cam": GradCam,
}
"""Name -> method, best first."""

__all__ = [
    "METHODS",
    "GradCam",
    "IntegratedGradients",
    "Means",
    "Method",
    "Occlusion",
    "Score",
    "SmoothGrad",
    "completeness_gap",
    "input_gradient",
]
