"""Child process of `zoo.data`: read a tensorflow-datasets data set and write its arrays, or its text, to an .npz file.

python -m zoo.data.tfds_export mnist ~/tensorflow_datasets arrays.npz
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np


def main(name, folder, target):
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=folder)
    if not builder.is_prepared():
        builder.download_and_prepare()
    if "text" in builder.info.features:
        parts = [tfds.as_numpy(builder.as_dataset(split=split)) for split in ("train", "validation", "test")]
        text = b"".join(example["text"] for part in parts for example in part)
        np.savez(target, text=np.frombuffer(text, np.uint8))
        return
    array_record = builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    arrays = {"class_names": np.array(builder.info.features["label"].names)}
    for split in ("train", "test"):
        if array_record:
            source = builder.as_data_source(split=split)
            examples = source.__getitems__(list(range(len(source))))
            x, y = np.stack([e["image"] for e in examples]), np.array([e["label"] for e in examples])
        else:
            x, y = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1, as_supervised=True))
        expected = builder.info.splits[split].num_examples
        if len(x) != expected:
            raise SystemExit(f"{split} holds {len(x)} of {expected} images")
        arrays[f"x_{split}"], arrays[f"y_{split}"] = x, y.astype(np.int32)
    np.savez(target, **arrays)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:
        raise SystemExit(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from None
