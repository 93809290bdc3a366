"""A target from whatever names or is a model."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import nn

from vauban.core.target import Target
from vauban.schema.errors import BadTarget, CorruptFile, NotOffered, UnknownName
from vauban.targets.demo import DEMOS
from vauban.targets.named import named
from vauban.targets.options import Options, merged, options
from vauban.targets.torch import TorchTarget, Training, retrainable

Loader = Callable[[Path, Options], Any]

LOADERS: Mapping[str, str] = {
    ".pt2": "vauban.targets.torch_export:load",
    ".safetensors": "vauban.targets.statedict:load",
    ".pt": "vauban.targets.statedict:load",
    ".pth": "vauban.targets.statedict:load",
    ".skops": "vauban.targets.skops:load",
    ".pkl": "vauban.targets.pickles:load",
    ".pickle": "vauban.targets.pickles:load",
    ".joblib": "vauban.targets.pickles:load",
}
"""File suffix -> what reads it."""

LATER: Mapping[str, str] = {
    ".onnx": "ONNX files",
    ".keras": "Keras files",
    ".h5": "Keras files",
    ".txt": "LightGBM files",
    ".json": "XGBoost files",
    ".ubj": "XGBoost files",
}
"""Formats that this version does not read."""


class Maker(NamedTuple):
    """What makes targets of one kind of object. Plug-ins name one in the entry-point group `vauban.targets`."""

    accepts: Callable[[Any], bool]
    make: Callable[[Any, Options], Target]


def load_target(
    spec: str | Path,
    *,
    factory: str | Callable[[], Any] | None = None,
    bounds: Any = None,
    classes: int | None = None,
    task: str | None = None,
    kind: str | None = None,
    output: str | None = None,
    trust_pickle: bool = False,
    device: str = "cpu",
) -> Target:
    """The model that `spec` names.

    A file: `.pt2` (torch.export), `.safetensors` or a state dict `.pt`, `.pth` with `factory` (`module:callable` or
    `file.py:callable`), `.skops`; pickles only with `trust_pickle`. A Python object: `module:attribute` or
    `file.py:attribute`. A demo: `demo:digits-cnn` and others. `bounds` `(low, high)`, `classes`, `task` and `kind`
    are facts about its inputs and outputs; what is not said is taken from the data.

    Raises UnknownName, CorruptFile, UntrustedFile, BadTarget, MissingExtra, NotOffered, each saying what to do.
    """
    text = str(spec)
    asked = options(
        bounds=bounds,
        classes=classes,
        task=task,
        kind=kind,
        id=Path(text).name,
        output=output,
        factory=named(factory) if isinstance(factory, str) else factory,
        trust_pickle=trust_pickle,
        device=device,
    )
    if text.startswith("demo:"):
        demo = DEMOS.load(text)()
        return demo.settled(merged(demo.domain, asked.domain))
    if text.startswith(("http://", "https://")):
        raise NotOffered(
            f"{text}: this version does not attack endpoints; give the model itself, or a Python callable."
        )
    path = Path(text)
    suffix = path.suffix.lower()
    if suffix in LATER or path.is_dir():
        what = LATER.get(suffix, "model folders")
        raise NotOffered(
            f"{text}: this version does not read {what}; give {', '.join(LOADERS)}, or module:attribute for an object."
        )
    if suffix in LOADERS:
        return _from_file(path, asked)
    if ":" in text:
        return _made(named(text), replace(asked, id=text))
    raise UnknownName(f"The target {text!r} is no model file, Python object (module:attribute) or demo: name.")


def target(
    obj: Any,
    *,
    bounds: Any = None,
    classes: int | None = None,
    task: str | None = None,
    kind: str | None = None,
    output: str | None = None,
    factory: Callable[[], Any] | None = None,
    training: Training | None = None,
    id: str | None = None,
) -> Target:
    """A target around a Python object: an nn.Module, a scikit-learn estimator, or a callable `numpy -> scores`.

    `output` is `logits`, `probabilities`, `labels` or `values`, found out where it is not said. `factory` (an untrained
    module) or `training` (all settings) tell how models like it are trained. Raises BadTarget for anything else.
    """
    name = id or type(obj).__name__
    facts = options(
        bounds=bounds, classes=classes, task=task, kind=kind, id=name, output=output, factory=factory, training=training
    )
    return _made(obj, facts)


def _from_file(path: Path, asked: Options) -> Target:
    if not path.is_file():
        raise UnknownName(f"There is no file {str(path)!r}: check the path of the model.")
    if path.stat().st_size == 0:
        raise CorruptFile(f"The model file {str(path)!r} is empty: write it again.")
    module, _, name = LOADERS[path.suffix.lower()].partition(":")
    loader: Loader = getattr(importlib.import_module(module), name)
    return _made(loader(path, asked), asked)


def _made(obj: Any, asked: Options) -> Target:
    for maker in (*_plugins(), *MAKERS):
        if maker.accepts(obj):
            return maker.make(obj, asked)
    what = f"the class {obj.__name__}" if isinstance(obj, type) else f"something of type {type(obj).__name__}"
    raise BadTarget(
        f"{asked.id}: {what} cannot be attacked: give an nn.Module, a scikit-learn estimator, or a callable that takes "
        "inputs and returns scores (an instance, not a class)."
    )


def _plugins() -> list[Maker]:
    """Makers of other packages; one that fails to load is named in a warning and left out."""
    found: list[Maker] = []
    for point in entry_points(group="vauban.targets"):
        try:
            found.append(point.load())
        except Exception as error:  # another package's code may raise anything
            warnings.warn(f"The target plug-in {point.name} failed to load and is left out: {error}", stacklevel=2)
    return found


def _torch(module: nn.Module, asked: Options) -> Target:
    training = asked.training
    if training is None and asked.factory is not None:
        training = Training(factory=asked.factory)
    if training is None and retrainable(module):
        training = Training()
    module = module.to(asked.device) if asked.device != "cpu" else module
    return TorchTarget(module, id=asked.id, domain=asked.domain, output=asked.output, training=training)


def _sklearn(estimator: Any, asked: Options) -> Target:
    from vauban.targets.sklearn import sklearn_target

    return sklearn_target(estimator, asked)


def _callable(function: Any, asked: Options) -> Target:
    from vauban.targets.callable import CallableTarget

    return CallableTarget(function, id=asked.id, domain=asked.domain, output=asked.output)


def _is_target(obj: Any) -> bool:
    return not isinstance(obj, type) and hasattr(obj, "offers") and hasattr(obj, "settled")


def _is_estimator(obj: Any) -> bool:
    return not isinstance(obj, type) and hasattr(obj, "get_params") and hasattr(obj, "predict")


MAKERS: tuple[Maker, ...] = (
    Maker(_is_target, lambda obj, asked: cast(Target, obj).settled(merged(obj.domain, asked.domain))),
    Maker(lambda obj: isinstance(obj, nn.Module), _torch),
    Maker(_is_estimator, _sklearn),
    Maker(lambda obj: callable(obj) and not isinstance(obj, type), _callable),
)
"""In this order."""
