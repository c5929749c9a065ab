"""Functions that build `keras.Model`s: no reading or writing, no training."""

from zoo.models.cnn import cnn
from zoo.models.preprocessing import PIPELINES, preprocessing, with_preprocessing

__all__ = ["PIPELINES", "cnn", "preprocessing", "with_preprocessing"]
