"""What a classified slice comes back as."""

from dataclasses import dataclass

__all__ = ["ImageFailure", "Prediction"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One classified slice.

    `organ` is the class without its side where the model pairs sides ("femur" of "femur-left" and
    "femur-right"): the one with the highest probability after the two sides' are added, so it need
    not be `label`'s organ.
    """

    path: str | None  # as given; None for an array or a Pillow image
    label: str
    index: int
    probability: float
    probabilities: tuple[float, ...]  # in class order; they sum to 1
    organ: str
    organ_probability: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ImageFailure:
    """A path that could not be classified, and why, in one line."""

    path: str
    error: str
