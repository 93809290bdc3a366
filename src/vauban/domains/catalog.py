"""Every kind of data: name -> where its modality lives; and the facts about inputs that the data completes."""

from __future__ import annotations

from dataclasses import replace

import torch

from vauban.core.data import Data
from vauban.core.registry import Catalogue
from vauban.core.space import Modality
from vauban.core.target import Domain
from vauban.schema.errors import BadOption

MODALITIES: Catalogue[type[Modality]] = Catalogue(
    "kind of data",
    "vauban.domains",
    {
        "image": "vauban.domains.image.modality:Image",
        "tabular": "vauban.domains.tabular.modality:Tabular",
    },
)


def modality(kind: str) -> Modality:
    return MODALITIES.load(kind)()


def settle(domain: Domain, data: Data) -> Domain:
    """`domain` with what it leaves open taken from the data: kind by shape, task by labels, box by range.

    Pictures within [0, 1] get the box [0, 1]; everything else gets each feature's own range over the rows at hand.
    Raises BadOption where the kind that was said cannot be that of rows of this shape.
    """
    kind = domain.kind or data.kind or ("image" if len(data.shape) >= 2 else "tabular")
    if kind == "image" and len(data.shape) < 2:
        raise BadOption(
            f"kind is image, but a row of the data has shape {data.shape}: leave kind out, or give pictures "
            "[rows, channels, height, width]."
        )
    task = domain.task or ("regression" if data.y_test.is_floating_point() else "classification")
    seen = data.x_test if data.x_train is None else torch.cat([data.x_train, data.x_test])
    low, high = domain.low, domain.high
    if low is None or high is None:
        unit = kind == "image" and float(seen.min()) >= 0 and float(seen.max()) <= 1
        low = (0.0 if unit else seen.amin(0)) if low is None else low
        high = (1.0 if unit else seen.amax(0)) if high is None else high
    return replace(
        domain,
        kind=kind,
        task=task,
        low=low,
        high=high,
        step=domain.step or data.step,
        label_names=domain.label_names or data.label_names,
        feature_names=domain.feature_names or data.feature_names,
    )
