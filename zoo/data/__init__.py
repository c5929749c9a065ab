"""Data sets as NumPy arrays, and batches whose order depends on (seed, epoch) alone."""

from zoo.data.batches import Batches, PrefetchedBatches, epoch_order
from zoo.data.captioned_folder import CaptionedFolder, load_captioned_folder
from zoo.data.image_folder import ImageFiles, ImageFolder, decode_image, load_image_folder, load_tfds_folder
from zoo.data.images import IMAGE_DATASETS, ImageDataset, default_image_dataset, hold_out, load_images, split_validation
from zoo.data.pairs import BucketedBatches, PairDataset, load_pairs
from zoo.data.text import BPTTBatches, ShuffledWindows, TextDataset, load_text

__all__ = [
    "BPTTBatches",
    "Batches",
    "BucketedBatches",
    "CaptionedFolder",
    "IMAGE_DATASETS",
    "ImageDataset",
    "ImageFiles",
    "ImageFolder",
    "PairDataset",
    "PrefetchedBatches",
    "ShuffledWindows",
    "TextDataset",
    "decode_image",
    "default_image_dataset",
    "epoch_order",
    "hold_out",
    "load_captioned_folder",
    "load_image_folder",
    "load_images",
    "load_pairs",
    "load_text",
    "load_tfds_folder",
    "split_validation",
]
