"""Attacks that see scores alone beside their peers: queries at equal success, and what a query costs.

    python bench/score_based.py [--only square robust,square natural,all robust,time] [--seeds 0,1,2,3,4] [--images 250]
        [--queries 1000] [--threads 2] [--peers torchattacks,art]

The two MNIST models, in Linf. `square` counts, for each image, the queries until its first success: every input that
goes through a peer's model is told apart by its nearest clean image, and counts, whatever the peer calls a query; ours
are metered by the oracle, and one for the clean input is counted for everybody. An image counts as broken only if
`common.broken` (float64 norm, box, fresh forward) confirms the result. Ours runs twice: with other (training) images to
borrow content from, as in an audit, and without, which is what the peers know. `all` shows our other score-based
attacks on the same images. `time` compares the seconds a query with those of a bare forward in batches of all images,
with no row leaving early. Writes results/score_based.json and prints tables.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import common
import models
import ours
import peers
import torch
from torch import Tensor, nn

from vauban.engine.batching import answers
from vauban.targets.torch import TorchTarget

warnings.filterwarnings("ignore")
EPS = {"robust": models.EPS, "natural": 0.15}
MARKS = (10, 30, 100, 300, 1000)
LEVELS = (0.25, 0.5, 0.75, 1.0)
"""Shares of the best peer's successes at which queries are compared."""
DONORS = 1000
OTHERS = ("simba", "simba_dct", "nes", "spsa", "zoo", "gen_attack", "sign_hunter")
SETTINGS: dict[str, dict[str, Any]] = {"simba_dct": {"basis": "dct"}}


class Watching(nn.Module):
    """The model, noting for each clean image after how many inputs the first was broken that lies within eps of it."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, eps: float) -> None:
        super().__init__()
        # nothing is timed here, so everybody gets the fastest layout
        self.model = copy.deepcopy(model).to(memory_format=torch.channels_last)
        self.x, self.y, self.eps = x, y, eps
        # the pixels that tell images apart best
        self.pixels = x.flatten(1).var(0).topk(64).indices
        self.known = x.flatten(1)[:, self.pixels]
        self.asked = torch.zeros(len(x), dtype=torch.int64)
        self.first = torch.full((len(x),), torch.inf)
        self.rows = 0

    def forward(self, z: Tensor) -> Tensor:
        z = z.float()
        self.rows += len(z)
        answer = torch.cat([self.model(part.contiguous(memory_format=torch.channels_last)) for part in z.split(64)])
        who = self._whose(z.detach().flatten(1))
        self.asked += torch.bincount(who, minlength=len(self.x))
        hit = who[answer.argmax(1) != self.y[who]]
        self.first[hit] = torch.minimum(self.first[hit], self.asked[hit].float())
        return answer

    def _whose(self, z: Tensor) -> Tensor:
        """The number of the one clean image that each input lies within eps of."""
        near = torch.cdist(z[:, self.pixels], self.known, p=torch.inf) <= self.eps + 1e-4
        several = (near.sum(1) > 1).nonzero().flatten()
        if len(several):  # told apart by all pixels
            near[several] &= torch.cdist(z[several], self.x.flatten(1), p=torch.inf) <= self.eps + 1e-4
        assert bool((near.sum(1) == 1).all()), "an input that belongs to no image, or to several"
        return near.to(torch.uint8).argmax(1)


def watched(attack: peers.Attack, model: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> Tensor:
    """Queries until each image's first success that the final result confirms; inf where there is none."""
    seen = Watching(model, x, y, eps).eval()
    torch.manual_seed(seed)
    found = attack(seen, x, y, eps, seed)
    confirmed, _ = common.broken(model, x, y, found, "linf", eps)
    return torch.where(confirmed, seen.first, torch.inf)


def metered(
    id: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    seed: int,
    queries: int,
    donors: Tensor | None,
    **how: Any,
) -> Tensor:
    result = ours.through_oracle(
        f"evasion.{id}", model, x, y, "linf", eps, seed, donors=donors, queries=queries, **how
    )  # fmt: skip
    confirmed, _ = common.broken(model, x, y, result.x, "linf", eps)
    return torch.where(confirmed, result.spent.queries.float(), torch.inf)


def right(name: str, images: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The model, and the first images that it gets right."""
    model = models.MODELS[name]()
    x, y = (part[: 2 * images] for part in models.mnist("test"))
    with torch.no_grad():
        fine = torch.cat([model(a).argmax(1) for a in x.split(250)]) == y
    return model, x[fine][:images], y[fine][:images]


def curve(first: Tensor, queries: int) -> dict[str, Any]:
    return {
        "broken": int(first.isfinite().sum()),
        "mean_queries": round(float(first.clamp_max(queries).mean()), 1),
        **{f"at_{mark}": int((first <= mark).sum()) for mark in MARKS if mark <= queries},
    }


def needed(first: Tensor, count: int) -> float:
    """Queries a row until so many images are broken; inf where they never are."""
    return float(first.sort().values[count - 1]) if count else 0.0


def contenders(model: nn.Module, x: Tensor, y: Tensor, eps: float, given: Any) -> dict[str, Callable[[int], Tensor]]:
    donors = models.mnist("train")[0][:DONORS]
    theirs = {name: a for name, a in peers.square(given.queries).items() if name in given.peers.split(",")}
    return {
        "vauban": lambda seed: metered("square", model, x, y, eps, seed, given.queries, donors),
        "vauban, no donors": lambda seed: metered("square", model, x, y, eps, seed, given.queries, None),
        **{
            name: lambda seed, attack=attack: watched(attack, common.freeze_trace(model), x, y, eps, seed)
            for name, attack in theirs.items()
        },
    }


def square(name: str, given: Any) -> dict[str, Any]:
    """The seeds that are asked for, beside those that were run before."""
    eps = EPS[name]
    model, x, y = right(name, given.images)
    tries = contenders(model, x, y, eps, given)
    parts: dict[str, Any] = common.stored("score_based", f"square {name}").get("parts", {})
    for seed in given.seeds.split(","):
        found = {contender: tries[contender](int(seed)) for contender in common.turns(tries, int(seed))}
        parts[seed] = {contender: _written(found[contender]) for contender in tries}
    return {"rows": summary(name, len(x), parts, given), "parts": parts}


def _written(first: Tensor) -> str:
    """Queries until the first success of each image, `-` where there is none."""
    return " ".join("-" if math.isinf(value) else f"{value:.0f}" for value in first.tolist())


def _read(first: str) -> Tensor:
    return torch.tensor([math.inf if value == "-" else float(value) for value in first.split()])


def summary(name: str, images: int, parts: dict[str, Any], given: Any) -> list[dict[str, Any]]:
    """A row a contender over the seeds that were run: medians."""
    found = {who: [_read(part[who]) for part in parts.values()] for who in next(iter(parts.values()))}
    rows = []
    for contender, firsts in found.items():
        curves = [curve(first, given.queries) for first in firsts]
        row: dict[str, Any] = {"model": name, "eps": EPS[name], "contender": contender, "images": images}
        row |= {"seeds": len(firsts)} | {key: statistics.median(c[key] for c in curves) for key in curves[0]}
        for peer in (who for who in found if not who.startswith("vauban")):
            shares = {
                level: statistics.median(
                    _ratio(mine, theirs, level) for mine, theirs in zip(firsts, found[peer], strict=True)
                )
                for level in LEVELS
            }
            # None: never as many
            row[f"of_{peer}"] = {str(level): share if math.isfinite(share) else None for level, share in shares.items()}
        rows.append(row)
    return rows


def _ratio(mine: Tensor, theirs: Tensor, level: float) -> float:
    count = round(level * int(theirs.isfinite().sum()))
    return round(needed(mine, count) / max(needed(theirs, count), 1.0), 3)


def others(name: str, given: Any) -> list[dict[str, Any]]:
    """Our other attacks, one seed, on the same images."""
    eps = EPS[name]
    model, x, y = right(name, given.images)
    rows = []
    for other in OTHERS:
        how = SETTINGS.get(other, {})
        first = metered(other.removesuffix("_dct"), model, x, y, eps, 0, given.queries, None, **how)
        rows.append({"model": name, "eps": eps, "contender": other, "images": len(x)} | curve(first, given.queries))
    return rows


def timed(name: str, given: Any) -> list[dict[str, Any]]:
    """Seconds a query over those of a bare forward; everybody on the same images, all of which stay to the end."""
    eps, queries = EPS[name], 20
    model, x, y = right(name, given.images)
    donors = models.mnist("train")[0][:DONORS]
    counted = dict.fromkeys(("bare forwards", "bare forwards of vauban's target"), float(queries * len(x)))

    def mine(lent: Tensor | None, who: str) -> common.Contender:
        def run(seed: int) -> None:
            result = ours.through_oracle(
                "evasion.square", model, x, y, "linf", eps, seed, leave=False, donors=lent, queries=queries
            )
            counted[who] = float(result.spent.queries.sum())

        return run

    def theirs(attack: peers.Attack, who: str) -> common.Contender:
        def run(seed: int) -> None:
            seen = Counting(common.freeze_trace(model)).eval()
            attack(seen, x, y, eps, seed)
            counted[who] = float(seen.rows)

        return run

    tries: dict[str, common.Contender] = {
        "bare forwards": lambda seed: peers.bare_forwards(model, x, queries),
        # the same micro-batches as the attack's, so that what is left is the search itself
        "bare forwards of vauban's target": lambda seed: bare_target(model, x, queries),
        "vauban": mine(donors, "vauban"),
        "vauban, no donors": mine(None, "vauban, no donors"),
        **{n: theirs(a, n) for n, a in peers.square(queries).items() if n in given.peers.split(",")},
    }
    runs = common.race(tries, 5)
    floor, inner = runs["bare forwards"], runs["bare forwards of vauban's target"]
    scale = {who: counted["bare forwards"] / count for who, count in counted.items()}
    return [
        {
            "model": name, "contender": who, "images": len(x), "queries": queries, "error": r.error,
            "seconds": common.median(r.wall),
            "per_query": common.ratio([t * scale[who] for t in r.wall], floor.wall),
            "per_query_cpu": common.ratio([t * scale[who] for t in r.cpu], floor.cpu),
            "of_target_cpu": common.ratio([t * scale[who] for t in r.cpu], inner.cpu),
        }
        for who, r in runs.items()
    ]  # fmt: skip


def bare_target(model: nn.Module, x: Tensor, queries: int) -> None:
    target = TorchTarget(module=model, domain=ours.DOMAIN)
    for _ in range(queries):
        answers(target, x)


class Counting(nn.Module):
    """The model, counting its inputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.rows = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return self.model(x.float())


PARTS: dict[str, tuple[Callable[..., Any], str]] = {
    "square robust": (square, "robust"),
    "square natural": (square, "natural"),
    "all robust": (others, "robust"),
    "time": (timed, "robust"),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", default=",".join(PARTS), help="parts, comma-separated")
    options.add_argument("--seeds", default="0,1,2,3,4", help="of `square`")
    options.add_argument("--images", type=int, default=250)
    options.add_argument("--queries", type=int, default=1000)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--peers", default="torchattacks,art")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    for part in given.only.split(","):
        run, model = PARTS[part]
        started = time.perf_counter()
        found = run(model, given)
        rows = found["rows"] if isinstance(found, dict) else found
        print(f"\n{part}  ({time.perf_counter() - started:.0f} s)")
        print(common.table(rows, [key for key in rows[0] if key not in ("images", "error")]))
        common.update("score_based", part, found)


if __name__ == "__main__":
    main()
