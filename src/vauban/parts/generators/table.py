"""A generator of rows of a table."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vauban.core.defence import Store
from vauban.core.rng import Rng
from vauban.parts.generators import Original, Progress
from vauban.parts.generators.columns import Layout, Levels, columns
from vauban.parts.generators.quality import column_distances, correlation_difference
from vauban.parts.generators.wgan import Game, Hand, Lessons, learn, unlikely
from vauban.parts.training import quiet_rng

NOISE = 64
"""Numbers that a row is made from."""
SHARP = 0.2
"""Temperature of the choices that the generator makes while it learns."""
TOGETHER = 1024
"""Rows that are made at once."""


@dataclass(frozen=True, kw_only=True)
class TableLearner:
    """A conditional generator for tables `[n, d]` after CTGAN; rows of any other shape are flattened and put back.

    Real columns are split into modes and places in them; discrete columns, and neighbours of which one alone is 1, are
    choices. The generator is told the class of the row and one value of one discrete column, drawn so that rare values
    come up often enough; rows are then made with values as frequent as in the original.

    Source: Xu et al. 2019 (arXiv:1907.00503, sections 4.2 to 4.4); Lin et al. 2018 (arXiv:1712.04086, PacGAN) for `pack`.
    Departures: those of `wgan.learn` and `columns.Modes`; the class is always told, and a classifier that learns
    from real rows shows the generator how well it keeps to it; columns are taken as discrete by how
    few values they have (at most ten); no dropout in the critic; layers of the generator are
    normalised over their units instead of over the batch.

    Args:
        width: hidden units of each layer.
        pack: rows that the critic judges together (10 in the paper).
        lessons: by which steps it learns.
    """

    width: int = 64
    pack: int = 4
    lessons: Lessons = field(default_factory=lambda: Lessons(critics=3, batch_size=128))

    def __call__(
        self,
        original: Original,
        rounds: int,
        seed: int,
        device: torch.device,
        store: Store | None = None,
        progress: Progress | None = None,
    ) -> Table:
        with quiet_rng(seed):
            game = TableGame(original, self.width, self.pack, np.random.default_rng(seed)).to(device)
        made = learn(game, self.lessons, rounds, seed, pack=self.pack, store=store, progress=progress)
        return Table(game.eval(), original, made.ended)


class Conditions:
    """What a row may be drawn for: its class, and one value of one discrete column (or no more than the class).

    Conditions are `[m, width]`: the class, then all values of all discrete columns, of which one at most is set. Every
    discrete column comes up equally often; so does the class alone.
    """

    def __init__(self, original: Original, layout: Layout) -> None:
        flat = original.x.flatten(1).double().numpy()
        self.classes = original.classes
        choices = [c for c in layout.columns if isinstance(c, Levels) and c.width > 1]
        blocks = [
            np.eye(self.classes)[original.y.numpy()],
            *(np.eye(c.width)[c.which(flat[:, list(c.at)])] for c in choices),
        ]
        member = torch.from_numpy(np.concatenate(blocks, 1))
        self.width = member.shape[1]
        counts = member.sum(0)
        sizes = [block.shape[1] for block in blocks]
        evenly = torch.cat([(1 + part).log() / (1 + part).log().sum() for part in counts.split(sizes)])
        self.often = torch.where(counts > 0, evenly, 0.0) / len(sizes)
        """How often each value is learnt from: by the logarithm of how often it occurs."""
        self.rows = torch.cat([member[:, k].nonzero()[:, 0] for k in range(self.width)])
        self.counts, self.starts = counts.long(), (counts.cumsum(0) - counts).long()
        self.label = F.one_hot(original.y, self.classes).float()
        within = torch.stack([self._within(member[original.y == c], sizes) for c in range(self.classes)])
        self.within = within.cumsum(1)
        """For each class, how often each value occurs among its rows, summed up."""

    def _within(self, member: Tensor, sizes: list[int]) -> Tensor:
        shares = member.sum(0) / max(len(member), 1) / len(sizes)
        return torch.cat([torch.zeros(self.classes), shares[self.classes :]])

    def deal(self, count: int) -> tuple[Tensor, Tensor]:
        """Numbers `[m]` of rows to learn from, and the conditions that they were drawn for; from torch's global numbers."""
        value = torch.multinomial(self.often, count, replacement=True)
        place = (torch.rand(count, dtype=torch.float64) * self.counts[value]).long()
        rows = self.rows[self.starts[value] + place]
        return rows, self.of(self.label[rows], value)

    def asked(self, y: Tensor, u: Tensor) -> Tensor:
        """Conditions of new rows of classes `y` `[m]`; `u` `[m]` in [0, 1) draws the rest."""
        value = torch.searchsorted(self.within[y], u.double()[:, None])[:, 0]
        # beyond the last sum: the class alone
        return self.of(F.one_hot(y, self.classes).float(), torch.where(value < self.width, value, 0))

    def of(self, label: Tensor, value: Tensor) -> Tensor:
        rest = F.one_hot(value, self.width).float()[:, self.classes :]
        return torch.cat([label, rest], 1)


class TableGame(Game):
    """The two networks, and the codes of the rows."""

    critic: nn.ModuleDict

    def __init__(self, original: Original, width: int, pack: int, rng: np.random.Generator) -> None:
        super().__init__()
        flat = original.x.flatten(1).double().numpy()
        self.layout = Layout(columns(flat, rng), flat.shape[1])
        self.codes = self.layout.encode(flat, rng)
        self.conditions = Conditions(original, self.layout)
        self.pack = pack
        self.generator = Maker(NOISE + self.conditions.width, self.layout.width, width)
        judge = pack * (self.layout.width + self.conditions.width)
        self.critic = nn.ModuleDict(
            {"real": dense(judge, width, 1), "classes": dense(self.layout.width, width, original.classes)}
        )

    @property
    def device(self) -> torch.device:
        return self.generator.last.weight.device

    def deal(self, count: int) -> Hand:
        drawn, condition = self.conditions.deal(max(count // self.pack, 1) * self.pack)
        return Hand(self.codes[drawn].to(self.device), condition.to(self.device))

    def make(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        raw = self.generator(torch.randn(len(condition), NOISE, device=condition.device), condition)
        made = [
            part.tanh() if real else F.gumbel_softmax(part, tau=SHARP)
            for real, part in zip(self._reals, raw.split(self._sizes, 1), strict=True)
        ]
        return torch.cat(made, 1), self._away(raw, condition)

    def _away(self, raw: Tensor, condition: Tensor) -> Tensor:
        """Cross-entropy `[m]` of the told value under the generator's choice; 0 where none was told."""
        start, at, away = 0, self.conditions.classes, condition.new_zeros(len(condition))
        for column in self.layout.columns:
            if isinstance(column, Levels) and column.width > 1:
                told = condition[:, at : at + column.width]
                away = away - (told * raw[:, start : start + column.width].log_softmax(1)).sum(1)
                at += column.width
            start += column.width
        return away

    def score(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        seen = torch.cat([x, condition], 1)
        told = self.critic["real"](seen.view(len(seen) // self.pack, -1))[:, 0]
        return told, unlikely(self.critic["classes"](x), condition[:, : self.conditions.classes])

    @property
    def _sizes(self) -> list[int]:
        """The codes in parts: real numbers, and choices."""
        return [n for c in self.layout.columns for n in (c.squashed, c.width - c.squashed) if n]

    @property
    def _reals(self) -> list[bool]:
        return [
            real for c in self.layout.columns for real, n in ((True, c.squashed), (False, c.width - c.squashed)) if n
        ]


def dense(inputs: int, width: int, outputs: int) -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.LeakyReLU(0.2),
        nn.Linear(width, width),
        nn.LeakyReLU(0.2),
        nn.Linear(width, outputs),
    )


class Maker(nn.Module):
    """Noise `[m, 64]` and conditions -> raw codes `[m, width]`; each layer sees what came before the one before it, too."""

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, width), nn.Linear(inputs + width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.last = nn.Linear(inputs + 2 * width, outputs)

    def forward(self, noise: Tensor, condition: Tensor) -> Tensor:
        x = torch.cat([noise, condition], 1)
        for norm, layer in zip(self.norms, (self.first, self.second), strict=True):
            x = torch.cat([norm(layer(x)).relu(), x], 1)
        raw: Tensor = self.last(x)
        return raw


@dataclass(frozen=True, eq=False)
class Table:
    """A generator of rows that has learnt."""

    game: TableGame
    original: Original
    ended: str = ""
    """Why learning ended before its time; empty where it did not."""

    @torch.no_grad()
    def sample(self, y: Tensor, rng: Rng) -> Tensor:
        """New rows `[m, ...]` of classes `y` `[m]`; discrete columns hold values of the original, others keep to its range."""
        game, o = self.game, self.original
        found = []
        for rows in torch.arange(len(y)).split(TOGETHER):
            condition = game.conditions.asked(y[rows], rng.uniform(rows, (1,))[:, 0])
            raw = game.generator(rng.normal(rows, (NOISE,)).to(game.device), condition.to(game.device)).cpu()
            u = rng.uniform(rows, (raw.shape[1],)).clamp(1e-7, 1 - 1e-7)
            # the largest of logits with such noise is a draw by their softmax
            drawn = raw - (-u.log()).log()
            parts = zip(game._reals, raw.split(game._sizes, 1), drawn.split(game._sizes, 1), strict=True)
            found.append(torch.cat([part.tanh() if real else noisy for real, part, noisy in parts], 1))
        x = torch.from_numpy(game.layout.decode(torch.cat(found).double().numpy())).to(o.x.dtype)
        return torch.minimum(torch.maximum(x.reshape(-1, *o.x.shape[1:]), o.low), o.high)

    def likeness(self, made: Tensor, real: Tensor) -> dict[str, float]:
        """Of columns the mean and the largest distance, and the mean difference of correlations."""
        one, two = (t.flatten(1).double().numpy() for t in (made, real))
        apart = column_distances(one, two, [c.at for c in self.game.layout.columns if isinstance(c, Levels)])
        return {
            "column_distance_mean": float(apart.mean()),
            "column_distance_largest": float(apart.max()),
            "correlation_difference": correlation_difference(one, two),
        }
