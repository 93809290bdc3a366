"""Training with generated data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from vauban.core.data import Data
from vauban.core.defence import Context, Store
from vauban.core.rng import Rng
from vauban.defences.common import TorchModel, placement, row_batches
from vauban.defences.preprocess.front import sides
from vauban.defences.train.augmented import Augmented
from vauban.defences.train.course import Drill
from vauban.defences.train.inner import Inner
from vauban.parts.generators import GENERATORS, Original
from vauban.parts.generators.quality import copies, forest_right
from vauban.parts.shelves import shelf
from vauban.parts.training import Batch
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard, Source
from vauban.schema.errors import NotOffered

LABELS = ("condition", "model", "agreed")
MEASURED, TAUGHT = 1000, 4000
"""Test rows that generated data are measured on, at most; rows that are learnt from to measure them."""


@dataclass(frozen=True, kw_only=True)
class GeneratedData(Augmented):
    """Learns a generator of rows like the training rows, and trains on both: adversarially, or plainly without `adversarial`.

    The generator is trained here, on the training rows alone: a conditional WGAN-GP for pictures, one after CTGAN for
    tables. Before the training it makes `pool` rows for each training row; in every batch a share of the rows then gives way to
    generated rows of the same class, so that steps, batch size and classes stay as they are. Labels are those that the generator
    was asked for (`condition`), or what the given model says of its rows (`model`); `agreed` keeps the rows on which both
    agree. A model with a backdoor hands it on through labels of its own.

    A small generator adds no knowledge that the rows do not hold: published gains come from generators that were trained on far more data
    or far longer. Whether it helps here is to be measured (`bench/generated.py`); facts say how much a model learns from generated
    rows alone, how near they lie to training rows, and for tables how far columns are off. Without `adversarial`
    this is no defence against attacks, and any gradient attack breaks it.

    Source: Gowal et al. 2021 (arXiv:2110.09468, section 4); Sehwag et al. 2022 (arXiv:2104.09425, section 3).
    Departures: a small GAN that is trained on the spot instead of a diffusion model; PGD training instead of TRADES; generated
    rows take the place of rows of their class. The rest is as in `train.pgd`.

    Args:
        epochs: passes over the training rows.
        generated: share of each batch that is generated, above 0 to 1.
        adversarial: train on the worst inputs within the threat; false for plain training.
        steps: gradient steps of the inner attack, 1 or more.
        labels: `condition`, `model` or `agreed`.
        rounds: steps of the generator, 1 or more.
        pool: rows that are generated for each training row, above 0.
        batch_size: rows a step.
        rate: first learning rate of Adam.
        weight_decay: L2 penalty on the weights.
        schedule: of the rate: `constant`, `cosine` (epoch by epoch) or `cycle` (up over a fifth of the run, down to nothing).
        ramp: share of the run in which the radius grows to its full size, in [0, 1].
        average: decay, a step, of averaged weights, which are then the result; 0 for none.
        validation: share of the training rows that are kept aside; the epoch that is most robust on them is the result.
        patience: epochs without a better one after which training ends; 0 for never.
        accumulate: parts in which the gradient of a batch is summed up, to save memory; the step is that of the whole batch.
        search: precision of the inner attack, `float32` or `bf16`, which takes half the time on processors that have it.
        precision: of the passes, `float32` or `bf16`, which is faster on GPUs that have it; weights stay in float32.
        crop: pictures are moved by up to so many pixels, at random and anew every epoch; their edge goes on where that leaves a gap.
        flip: half of the pictures are mirrored at random, left to right.
        from_scratch: start from fresh weights.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="train.generated",
        name="Training with generated data",
        summary="Learns to make more rows like the training rows, and trains the model on both, with or without attacks on them.",
        needs=Access.WEIGHTS_READ | Access.DATA_READ,
        tasks=("classification",),
        adaptive=("evasion.apgd", "evasion.apgd_targeted", "evasion.square"),
        threats=("evasion",),
        sources=(
            Source(
                title="Improving robustness using generated data",
                where="Gowal et al., NeurIPS 2021, arXiv:2110.09468, section 4",
            ),
            Source(
                title="Robust learning meets generative models: can proxy distributions improve adversarial robustness?",
                where="Sehwag et al., ICLR 2022, arXiv:2104.09425, section 3",
            ),
            Source(
                title="Improved training of Wasserstein GANs (the generator of pictures)",
                where="Gulrajani et al., NeurIPS 2017, arXiv:1704.00028, algorithm 1",
            ),
            Source(
                title="Modeling tabular data using conditional GAN (the generator of tables)",
                where="Xu et al., NeurIPS 2019, arXiv:1907.00503, section 4",
            ),
        ),
    )

    generated: float = 0.3
    adversarial: bool = True
    labels: str = "agreed"
    rounds: int = 400
    pool: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.generated <= 1:
            raise ValueError(f"generated is a share of each batch, above 0 to 1, got {self.generated}")
        if self.rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {self.rounds}")
        if self.labels not in LABELS:
            raise ValueError(f"labels is one of {', '.join(LABELS)}, got {self.labels!r}")
        if not self.pool > 0:
            raise ValueError(f"pool must be above 0, got {self.pool}: nothing would be generated")

    def prepare(self, drill: Drill, x: Tensor, y: Tensor, data: Data, context: Context) -> None:
        """The generator learns, and fills the pool: rows in the order of their labels."""
        model, seed = drill.target, drill.rng.child("generator").seed
        kind = model.domain.kind or data.kind or ("image" if x.dim() > 2 else "tabular")
        if kind not in GENERATORS:
            raise NotOffered(f"{self.card.id} makes rows of {' or '.join(GENERATORS.ids())} data, and this is {kind}.")
        low, high = (side.cpu().float() for side in sides(model, data))
        original = Original(x.float(), y, low, high, model.domain.step or data.step)
        learner = GENERATORS.load(kind)()
        generator = learner(
            original, self.rounds, int(seed), placement(model.module)[0], shelf(context.store, "generator"),
            lambda done, total: context.progress(done, total, "learning to generate data"),
        )  # fmt: skip
        rng = Rng(int(seed), max(round(self.pool * len(x)), 1))
        asked = y[torch.from_numpy(rng.numpy("classes").permutation(len(rng.ids))) % len(y)]
        made = generator.sample(asked, rng).to(x.dtype)
        said = _said(model, made)
        labels = said if self.labels == "model" else asked
        kept = (said == asked) if self.labels == "agreed" else torch.ones_like(asked, dtype=torch.bool)
        order = labels[kept].argsort(stable=True)
        starts = _starts(labels[kept], original.classes)
        drill.memory |= {"pool": made[kept][order], "starts": starts}
        test = data.head(MEASURED)
        measured = _measured(original, made.float(), asked, test, rng)
        drill.told |= {"generator": kind, "pool": int(kept.sum()), "agreed": float((said == asked).double().mean())}
        drill.told |= measured | generator.likeness(made, test.x_test)
        lacking = [c for c in y.unique().tolist() if starts[c] == starts[c + 1]]
        drill.caveats += _caveats(measured, generator.ended, lacking)

    def store(self, context: Context) -> Store | None:
        """Beside the generator's, so that neither is made twice."""
        return shelf(context.store, "training")

    def loss(self, inner: Inner, batch: Batch) -> Tensor:
        """That of the worst inputs around rows of which a share is generated."""
        return self.attacked(inner, self.mixed(inner, batch))

    def mixed(self, inner: Inner, batch: Batch) -> Batch:
        """The batch with the last rows generated, of the classes of those that stood there; a class that the pool lacks keeps its own."""
        count = round(self.generated * len(batch.x))
        pool, starts = inner.memory["pool"], inner.memory["starts"]
        y = batch.y[len(batch.y) - count :].cpu()
        many = (starts[1:] - starts[:-1])[y]
        places = starts[y] + inner.rng.child("generated").integers(batch.rows[len(batch.y) - count :].cpu(), many)[:, 0]
        x = batch.x.clone()
        there = torch.arange(len(x) - count, len(x))[many > 0]
        x[there.to(x.device)] = pool[places[many > 0]].to(x)
        return replace(batch, x=x)

    def facts(self) -> dict[str, Any]:
        return {"generated": self.generated, "labels": self.labels, "rounds": self.rounds, **super().facts()}


def _said(model: TorchModel, x: Tensor) -> Tensor:
    """Classes `[m]` that the given model answers."""
    device, _ = placement(model.module)
    return row_batches(lambda rows: model.forward(x[rows].to(device)).labels, len(x))


def _starts(labels: Tensor, classes: int) -> Tensor:
    """Where each class begins among sorted labels, and the end `[classes + 1]`."""
    counts = torch.bincount(labels, minlength=classes)
    return torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])


def _measured(original: Original, made: Tensor, asked: Tensor, test: Data, rng: Rng) -> dict[str, Any]:
    """What generated rows are worth, measured on test rows that neither learnt from; as many are learnt from as there are real ones."""
    x, y = test.x_test.float(), test.y_test
    count = min(len(original.x), len(made), TAUGHT)
    right = {}
    for name, rows, labels in (("real", original.x, original.y), ("generated", made, asked)):
        some = torch.from_numpy(rng.numpy(name).permutation(len(rows))[:count])
        right[name] = float(forest_right(rows[some], labels[some], x, y, rng.seed).double().mean())
    found = copies(made, original.x, x)
    return {
        "learnt_from_real": right["real"],
        "learnt_from_generated": right["generated"],
        "measured_on": len(x),
        "nearest_distance": found.distance,
        "nearer_than_usual": found.near,
        "copied": found.copied,
    }


def _caveats(measured: dict[str, Any], ended: str, lacking: list[int]) -> tuple[str, ...]:
    real, made = measured["learnt_from_real"], measured["learnt_from_generated"]
    return (
        f"A forest that learns from generated rows alone answers {made:.1%} of {measured['measured_on']} test rows right, "
        f"one that learns from the training rows {real:.1%}.",
        *((_COPIES,) if measured["copied"] else ()),
        *((f"The generator ended early: {ended}.",) if ended else ()),
        *(
            (f"No generated row was kept of {len(lacking)} classes, whose rows stayed as they were.",)
            if lacking
            else ()
        ),
    )


_COPIES = (
    "Generated rows lie nearer to single training rows than test rows do: the generator repeats some of its training rows, "
    "which adds nothing to training, and such rows must not be passed on as if they were nobody's."
)
