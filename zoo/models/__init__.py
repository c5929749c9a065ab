"""Functions that build `keras.Model`s: no reading or writing, no training.

zoo.models.cnn            the 48x48 image classifier
zoo.models.preprocessing  from a raw image to what a classifier takes
"""

from zoo.models import cnn, preprocessing

__all__ = ["cnn", "preprocessing"]
