"""De-randomised smoothing: the vote over narrow bands of a picture, which a patch can change only some of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from vauban.core.data import Data
from vauban.core.defence import Context, Hardened
from vauban.core.rng import Rng
from vauban.core.target import Target
from vauban.defences.certify.voting import Voting, VotingTarget
from vauban.defences.common import (
    Reader,
    Redone,
    TorchModel,
    around,
    lessons,
    loaded,
    placement,
    row_losses,
    torch_backed,
    training_rows,
)
from vauban.defences.preprocess.front import need_pictures
from vauban.parts.training import Batch, fit
from vauban.schema.access import Access
from vauban.schema.cards import DefenceCard, Source
from vauban.schema.errors import NotOffered


@dataclass(frozen=True, kw_only=True)
class BandSmoothing:
    """Answers with the class that the model gives most often to single bands of a picture, all else blank.

    Each copy shows `band` adjacent columns (the last go on with the first) and nothing of the others. A patch `w` columns wide is in
    sight of at most w + band - 1 copies; where the winning class leads by more than twice as many votes, no patch of that width,
    wherever it lies and whatever it shows, changes the answer: `certify` of the new target says where that is so. The model is first
    trained on with random bands, for it never saw a picture without most of its columns. The adaptive attack climbs the mean
    softmax of the copies, whose gradient is the new target's.

    Source: Levine and Feizi 2020 (arXiv:2002.10733, section 3: column smoothing).
    Departures: blank columns show the mean of the training pictures' own columns instead of a value of their own in further
    channels, so that the model keeps its input; every copy has one vote, and none abstains.

    Args:
        band: columns that a copy shows, 1 or more and fewer than the picture has.
        patch: width, in columns, of the patches that the report speaks of.
        epochs: passes over the training rows with random bands beforehand; 0 to leave the model as it is.
        batch_size: rows a step of this training.
        rate: learning rate of Adam in this training.
    """

    card: ClassVar[DefenceCard] = DefenceCard(
        id="certify.bands",
        name="De-randomised smoothing against patches",
        summary="Lets the model vote over narrow bands of a picture, so that no patch of a given width can turn the answer.",
        needs=Access.WEIGHTS_READ | Access.DATA_READ,
        tasks=("classification",),
        modalities=("image",),
        adaptive=("evasion.apgd", "evasion.pgd", "evasion.square"),
        adaptive_settings={"evasion.pgd": {"loss": "ce"}},
        threats=("evasion",),
        sources=(
            Source(
                title="(De)randomized smoothing for certifiable defense against patch attacks",
                where="Levine, Feizi, NeurIPS 2020, arXiv:2002.10733, section 3",
            ),
        ),
    )

    band: int = 4
    patch: int = 2
    epochs: int = 20
    batch_size: int = 64
    rate: float = 1e-3

    def __post_init__(self) -> None:
        for name, least in (("band", 1), ("patch", 1), ("epochs", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.rate > 0:
            raise ValueError(f"rate must be above 0, got {self.rate}")

    def __call__(self, target: Target, data: Data, rng: Rng, context: Context) -> Hardened:
        model = self._checked(target, data)
        x, y = (lessons if self.epochs else training_rows)(model, data, self.card)
        blank = _blank(model, x)
        made = self._taught(model, blank, x, y, int(rng.child("train").seed), context)
        defended = self._around(made, model, blank)
        sure = defended.certify(data.x_test, self.patch)
        share = float((sure & (defended.forward(data.x_test).labels == data.y_test)).double().mean())
        facts = {"band": self.band, "epochs": self.epochs, "patch": self.patch, "certified_against_patches": share}
        told = (
            f"Right and proved against patches of {self.patch} columns: {share:.1%} of {len(data.x_test)} test inputs."
        )
        return Hardened(defended, facts, (told,))

    def restore(self, target: Target, data: Data, state: Mapping[str, Tensor]) -> Target:
        model = self._checked(target, data)
        defended = self._around(model, model, _blank(model, data.x_train))
        return defended.around(loaded(defended.clone(), state), "")

    def _checked(self, target: Target, data: Data) -> TorchModel:
        model = torch_backed(target, self.card)
        training_rows(model, data, self.card)
        need_pictures(data, self.card)
        if self.band >= data.shape[-1]:
            raise NotOffered(
                f"certify.bands with a band of {self.band} columns hides nothing of pictures {data.shape[-1]} wide: set a smaller band."
            )
        return model

    def _taught(
        self, model: TorchModel, blank: Tensor, x: Tensor, y: Tensor, seed: int, context: Context | None
    ) -> TorchModel:
        if not self.epochs:
            return model
        device, _ = placement(model.module)
        wide = x.shape[-1]

        def step(module: nn.Module, batch: Batch) -> Tensor:
            starts = torch.randint(wide, (len(batch.x),), device="cpu").to(device)
            outputs = model.read(module(banded(batch.x.to(device), blank, starts, self.band)))
            return row_losses(outputs, batch.y.to(device)).mean()

        module = fit(
            model.clone(), x, y, seed=seed, epochs=self.epochs, batch_size=self.batch_size, rate=self.rate,
            schedule="cosine", step=step, progress=None if context is None else context.progress,
        )  # fmt: skip
        return around(model, module, "")

    def _around(self, made: TorchModel, given: TorchModel, blank: Tensor) -> BandedTarget:
        def voting(model: TorchModel, blank: Tensor) -> BandedTarget:
            module = Banded(model.clone(), blank, self.band, Reader(model, blank[None])).eval()
            return BandedTarget(around(model, module, "+certify.bands"), None)

        plain = given.recipe
        if plain is None:
            return voting(made, blank)

        def again(x: Tensor, y: Tensor, seed: int) -> Target:
            anew = cast(TorchModel, plain.fit(x, y, seed))
            mean = _blank(anew, x)
            return voting(self._taught(anew, mean, x.to(mean.dtype), y, seed, None), mean)

        return replace(voting(made, blank), recipe=Redone(again))


def _blank(model: TorchModel, x: Tensor) -> Tensor:
    """What columns show that are not in sight: the mean of the training pictures' own, a picture's shape."""
    device, dtype = placement(model.module)
    return x.to(dtype).mean(0).to(device)


def banded(x: Tensor, blank: Tensor, starts: Tensor, band: int) -> Tensor:
    """`x` `[n, ..., width]` with `band` columns in sight, from those of number `starts` `[n]` on."""
    wide = x.shape[-1]
    seen = (torch.arange(wide, device=x.device) - starts[:, None]) % wide < band
    return torch.where(seen.reshape(len(x), *(1,) * (x.dim() - 2), wide), x, blank)


class Banded(Voting):
    """The vote of a model over all bands of a picture."""

    blank: Tensor

    def __init__(self, model: nn.Module, blank: Tensor, band: int, read: Reader) -> None:
        super().__init__(model, read)
        self.register_buffer("blank", blank.clone())
        self.band = band

    @property
    def copies(self) -> int:
        return self.blank.shape[-1]

    def copy(self, x: Tensor, k: int) -> Tensor:
        """With the band in sight that begins at that column."""
        return banded(x, self.blank, torch.full((len(x),), k, device=x.device), self.band)


@dataclass(frozen=True, eq=False)
class BandedTarget(VotingTarget):
    """A target that votes; `certify` proves for each input whether a patch can turn the vote."""

    def certify(self, x: Tensor, patch: int) -> Tensor:
        """bool `[n]`: no change within `patch` adjacent columns (these may go on at the other edge) turns the answer."""
        voting = cast(Banded, self.module)
        votes = torch.cat([voting.counts(part) for part in x.split(256)])
        first, second = votes.topk(2, 1).values.unbind(1)
        return first - second > 2 * min(voting.copies, patch + voting.band - 1)
