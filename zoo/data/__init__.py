"""Data sets as NumPy arrays, and batches whose order depends on (seed, epoch) alone."""

from zoo.data.batches import Batches, epoch_order
from zoo.data.images import IMAGE_DATASETS, ImageDataset, default_image_dataset, load_images, split_validation
from zoo.data.pairs import BucketedBatches, PairDataset, load_pairs
from zoo.data.text import BPTTBatches, ShuffledWindows, TextDataset, load_text

__all__ = [
    "BPTTBatches",
    "Batches",
    "BucketedBatches",
    "IMAGE_DATASETS",
    "ImageDataset",
    "PairDataset",
    "ShuffledWindows",
    "TextDataset",
    "default_image_dataset",
    "epoch_order",
    "load_images",
    "load_pairs",
    "load_text",
    "split_validation",
]
