"""What an attacker may see and touch: a set of rights, not a ladder."""

from __future__ import annotations

from enum import Flag, auto


class Access(Flag):
    """Rights over a model. An attack *needs* some, a threat model *grants* some, a target *offers* some."""

    NONE = 0
    LABELS = auto()
    """The predicted class (or, for regression, the predicted value)."""
    SCORES = auto()
    """A number for each class: probabilities or logits."""
    LOGITS = auto()
    """The numbers before the softmax."""
    GRADIENTS = auto()
    """Derivatives of the output with respect to the input."""
    FEATURES = auto()
    """Activations of internal layers."""
    WEIGHTS_READ = auto()
    """The parameters themselves."""
    WEIGHTS_WRITE = auto()
    """Changing the parameters of a deployed copy."""
    DATA_READ = auto()
    """The training data, or data of the same distribution."""
    DATA_WRITE = auto()
    """Adding or changing training rows."""
    TRAINING = auto()
    """Training further models in the way the target was trained."""
    ARTIFACT = auto()
    """The model file as bytes."""

    def words(self) -> list[str]:
        """The rights in lower case, in a fixed order: what goes into reports."""
        return [flag.name.lower() for flag in Access if flag in self and flag.name]

    @classmethod
    def parse(cls, words: list[str]) -> Access:
        """The inverse of `words`; raises KeyError on an unknown right."""
        access = cls.NONE
        for word in words:
            access |= cls[word.upper()]
        return access


EVERYTHING = ~Access.NONE
BLACK_BOX_LABELS = Access.LABELS
