"""Child process of `zoo.data`: read a tensorflow-datasets data set and write its arrays, or its text, to an .npz file.

python -P zoo/data/tfds_export.py mnist ~/tensorflow_datasets arrays.npz

It is started as a file, since its package imports Keras. What is prepared is read without TensorFlow, whose import
takes longer than the reading: the files hold `tf.train.Example` messages, which tensorflow-datasets parses by itself.
"""

import io
import os
import struct
import sys

from zoo.typing import StrPath

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np


def main(
    name: str, folder: StrPath, target: StrPath, image_size: str | None = None, most_bytes: str | None = None
) -> None:
    """Write the arrays of a data set.

    Args:
        name: of the tensorflow-datasets data set.
        folder: tensorflow-datasets folder.
        target: `.npz` file to write.
        image_size: height and width in pixels of images that differ in size, for any data set of image classification;
            None for one that has images of one size, called "image" and "label".
        most_bytes: upper bound of the arrays then.
    """
    import tensorflow_datasets as tfds
    from PIL import Image

    try:
        builder = tfds.builder(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError:
        from zoo.errors import did_you_mean

        close = did_you_mean(name, tfds.list_builders(with_community_datasets=False))
        np.savez(target, message=np.array(f"is no data set of tensorflow-datasets: give the name of one.{close}"))
        return
    if not builder.is_prepared():
        builder.download_and_prepare()
    if "text" in builder.info.features:
        parts = (example["text"].bytes_list.value for split in builder.info.splits for example in _read(builder, split))
        np.savez(target, text=np.frombuffer(b"".join(text for values in parts for text in values), np.uint8))
        return
    if image_size is not None:
        np.savez(target, **_classification(builder, int(image_size), int(most_bytes or 0)))
        return
    shape = builder.info.features["image"].shape
    arrays = {"class_names": np.array(builder.info.features["label"].names)}
    for split in ("train", "test"):
        count = builder.info.splits[split].num_examples
        x, y = np.empty((count, *shape), np.uint8), np.empty(count, np.int32)
        read = 0
        for read, example in enumerate(_read(builder, split), start=1):
            if read > count:
                break
            image = Image.open(io.BytesIO(example["image"].bytes_list.value[0]))
            x[read - 1] = np.asarray(image).reshape(shape)
            y[read - 1] = example["label"].int64_list.value[0]
        if read != count:
            raise SystemExit(f"{split} holds {read} of {count} images")
        arrays |= {f"x_{split}": x, f"y_{split}": y}
    np.savez(target, **arrays)  # type: ignore[arg-type]  # as if for allow_pickle, too


def _classification(builder, image_size, most_bytes):
    """{name: array} of the splits train, validation and test, or {"message": what is wrong}."""
    import tensorflow_datasets as tfds
    from PIL import Image

    from zoo.io.images import load_image

    features = dict(builder.info.features)
    images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    keys = builder.info.supervised_keys
    if isinstance(keys, tuple) and len(keys) == 2 and keys[0] in images and keys[1] in labels:
        images, labels = [keys[0]], [keys[1]]
    if len(images) != 1 or len(labels) != 1:
        counts = ((len(images), "image"), (len(labels), "class label"))
        found = " and ".join(f"{count or 'no'} {what}{'s' if count > 1 else ''}" for count, what in counts)
        return {"message": np.array(f"has {found} an example: image classification needs one of each.")}
    if "train" not in builder.info.splits:
        return {"message": np.array(f"has the splits {', '.join(builder.info.splits)}: training needs train.")}
    shape = features[images[0]].shape
    resized = None in shape or shape[-1] not in (1, 3)
    shape = (image_size, image_size, 3) if resized else shape
    splits = [split for split in ("train", "validation", "test") if split in builder.info.splits]
    size = sum(builder.info.splits[split].num_examples for split in splits) * int(np.prod(shape))
    if size > most_bytes:
        return {"message": np.array(f"has {size:,} bytes of images, more than {most_bytes:,}: use a smaller one.")}
    arrays = {"class_names": np.array(features[labels[0]].names)}
    for split in splits:
        x, y = [], []
        for example in _read(builder, split):
            label = example[labels[0]].int64_list.value[0]
            if label < 0:  # as tensorflow-datasets marks a test split whose labels are not published
                continue
            image: Image.Image = Image.open(io.BytesIO(example[images[0]].bytes_list.value[0]))
            if resized:
                image = Image.fromarray(load_image(image)).resize(shape[:2], Image.Resampling.BILINEAR)
            x.append(np.asarray(image).reshape(shape))
            y.append(label)
        if x:
            arrays |= {f"x_{split}": np.stack(x).astype(np.uint8), f"y_{split}": np.array(y, np.int32)}
    return arrays


def _read(builder, split):
    """Yield the examples of a split, {name: tf.train.Feature}, in the order of its files."""
    from tensorflow_datasets.proto import tf_example_pb2

    for path in builder.info.splits[split].filepaths:
        for record in _array_records(path) if "array_record" in path.name else _tf_records(path):
            yield tf_example_pb2.Example.FromString(record).features.feature


def _array_records(path):
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(str(path)).read_all()


def _tf_records(path):
    """Yield the records of a TFRecord file: length (8 bytes), its checksum (4), data, their checksum (4)."""
    with open(path, "rb") as file:
        while header := file.read(12):
            record = file.read(struct.unpack("<Q4x", header)[0])
            if len(file.read(4)) < 4:
                raise SystemExit(f"{path.name} is cut short")
            yield record


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:
        raise SystemExit(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from None
