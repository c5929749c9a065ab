"""Data sets as NumPy arrays, and batches whose order depends on (seed, epoch) alone."""

from zoo.data.batches import Batches, epoch_order
from zoo.data.images import DATASETS, ImageDataset, choose_dataset, load, split_validation
from zoo.data.pairs import PairBatches, PairDataset, load_pairs
from zoo.data.text import Streams, TextDataset, Windows, load_text

__all__ = [
    "DATASETS",
    "Batches",
    "ImageDataset",
    "PairBatches",
    "PairDataset",
    "Streams",
    "TextDataset",
    "Windows",
    "choose_dataset",
    "epoch_order",
    "load",
    "load_pairs",
    "load_text",
    "split_validation",
]
