"""Measure inputs that a model inversion rebuilt: how near do they come to what the model was trained on?"""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vauban.core.attack import Leak, LeakScene
from vauban.engine.case import Case, Outcome
from vauban.engine.measure import bootstrap
from vauban.schema.log import Attempt, Exhibit, Measurement, Picture

SIDE = 96
"""Smallest side of a shown picture in pixels."""


def psnr(x: Tensor, reference: Tensor, span: float) -> Tensor:
    """Peak signal-to-noise ratio `[n]` in decibels, for inputs whose values span `span`; capped at 150."""
    error = ((x - reference).to(torch.float64) ** 2).flatten(1).mean(1)
    return 10 * torch.log10(span**2 / error.clamp_min(span**2 * 1e-15))


def reconstruction(base: Attempt, leak: Leak, scene: LeakScene, case: Case) -> Outcome:
    """PSNR of each class's reconstruction to the nearest training row of that class, beside that of the data mean."""
    assert leak.reconstructed is not None
    x_train, y_train = case.data.x_train, case.data.y_train
    classes = [c for c in range(len(leak.reconstructed)) if bool((y_train == c).any())]
    rebuilt = leak.reconstructed.cpu()[classes]
    unit, span = _units(scene)
    control = case.data.x_test.mean(0, keepdim=True).expand_as(rebuilt)
    means = torch.stack([x_train[y_train == c].mean(0) for c in classes])
    nearest = torch.stack([_nearest(r, x_train[y_train == c], unit) for r, c in zip(rebuilt, classes, strict=True)])
    control_nearest = torch.stack(
        [_nearest(r, x_train[y_train == c], unit) for r, c in zip(control, classes, strict=True)]
    )
    values = psnr(rebuilt / unit, nearest / unit, span)
    blind = psnr(control / unit, control_nearest / unit, span)
    attempt = base.model_copy(
        update={
            "measurements": [
                _mean("leakage.reconstruction.psnr", values, case),
                _mean("leakage.reconstruction.blind_psnr", blind, case),
            ],
            "caveats": _caveats(values, blind),
            "exhibits": [_exhibit(rebuilt, nearest, means, control, classes, case)],
            "facts": {
                **leak.facts,
                "classes": classes,
                "psnr_nearest_row": values.tolist(),
                "psnr_nearest_row_blind": blind.tolist(),
                "psnr_class_mean": psnr(rebuilt / unit, means / unit, span).tolist(),
                "psnr_class_mean_blind": psnr(control / unit, means / unit, span).tolist(),
            },
        }
    )
    return Outcome(attempt, {"reconstructed": leak.reconstructed.cpu()})


def _units(scene: LeakScene) -> tuple[Tensor, float]:
    """Each feature is measured in its own range, so that the span is 1 throughout."""
    low, high = (torch.as_tensor(v, dtype=torch.float32) for v in (scene.domain.low, scene.domain.high))
    return torch.where(high > low, high - low, torch.ones_like(high)), 1.0


def _nearest(x: Tensor, rows: Tensor, unit: Tensor) -> Tensor:
    return rows[((rows - x) / unit).flatten(1).norm(dim=1).argmin()]


def _mean(name: str, values: Tensor, case: Case) -> Measurement:
    array = values.numpy()
    low, high = bootstrap(lambda rows: float(np.mean(array[rows])), len(array), case.seed_for(name))
    return Measurement(
        name=name,
        value=float(array.mean()),
        low=low,
        high=high,
        n=len(array),
        unit="dB",
        method="mean over classes, bootstrap 95 %",
    )


def _caveats(values: Tensor, blind: Tensor) -> list[str]:
    if float(values.mean()) > float(blind.mean()):
        return []
    return ["the reconstructions come no nearer to training rows than the plain mean of the data does"]


def _exhibit(
    rebuilt: Tensor, nearest: Tensor, means: Tensor, control: Tensor, classes: list[int], case: Case
) -> Exhibit:
    """Pictures where the inputs are pictures, a table of the first features otherwise."""
    title = "What the model gives away about each class"
    note = "Rebuilt from the model alone; beside it the nearest training row and the mean of the class's training rows."
    names = [_name(c, case.domain.label_names) for c in classes]
    kinds = (("rebuilt", rebuilt), ("nearest training row", nearest), ("class mean", means))
    if case.domain.kind == "image" and rebuilt.dim() >= 3:
        pictures = [
            Picture(caption=f"{name}: {what}", png=_png(x[i], case))
            for i, name in enumerate(names[:10])
            for what, x in kinds
        ]
        pictures.append(Picture(caption="blind control: mean of the data", png=_png(control[0], case)))
        return Exhibit(title=title, note=note, pictures=pictures)
    width = min(6, rebuilt[0].numel())
    features = [_name(i, case.domain.feature_names) for i in range(width)]
    rows = [
        [name, what, *(f"{v:.3g}" for v in x[i].flatten()[:width].tolist())]
        for i, name in enumerate(names[:10])
        for what, x in kinds
    ]
    return Exhibit(title=title, note=note, columns=["class", "", *features], rows=rows)


def _name(index: int, names: tuple[str, ...]) -> str:
    return names[index] if index < len(names) else str(index)


def _png(x: Tensor, case: Case) -> str:
    """A picture `[h, w]`, `[1, h, w]` or `[3, h, w]` as base64 PNG, enlarged without smoothing."""
    low, high = (float(torch.as_tensor(v).min()) for v in (case.domain.low, case.domain.high))
    pixels = ((x - low) / max(high - low, 1e-12) * 255).round().clamp(0, 255).to(torch.uint8)
    pixels = pixels[None] if pixels.dim() == 2 else pixels
    pixels = pixels if len(pixels) == 3 else pixels[:1].expand(3, *pixels.shape[1:])
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    factor = max(1, SIDE // min(image.size))
    buffer = io.BytesIO()
    image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
