"""Data sets as NumPy arrays, and batches whose order depends on (seed, epoch) alone."""

from zoo.data.batches import Batches, epoch_order
from zoo.data.images import DATASETS, ImageDataset, choose_dataset, load, split_validation

__all__ = ["DATASETS", "Batches", "ImageDataset", "choose_dataset", "epoch_order", "load", "split_validation"]
