"""Do generated images show the class of their prompt? Read by a network that no part of the pipeline has learnt from.

    KERAS_BACKEND=jax python benchmarks/independent_judge.py --data-dir ../shared/data --output runs/judge

The classifier that scores a latent diffusion also taught its text encoder. The judge here is of another architecture,
a residual network (He et al. 2016), trained on the plain grey scans alone. It reads a generated image as a scan: each
pixel is projected from the background to the ink of the prompt, and the resize to 48x48 is inverted by least squares.
Its own accuracy is on test scans that were colored, resized and read in the same way. Intervals are Wilson's, 95 %.

A judge that is there is not trained again. The last line is JSON.
"""

import argparse
import json
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
NUM_DIGITS = 10  # of the classes; the others are clothes


def build_judge(num_classes):
    """From scans (N, 28, 28, 1), 0 to 1, to logits: six 3x3 convolutions in three residual stages."""
    import keras
    from keras import layers

    from zoo.blocks.augmentation import RandomAffine

    def convolution(x, width, strides=1):
        x = layers.Conv2D(width, 3, strides, padding="same", use_bias=False, data_format="channels_last")(x)
        return layers.BatchNormalization(axis=-1)(x)

    scan = keras.Input((28, 28, 1), name="scan")
    x = RandomAffine(rotation=8.0, translation=0.06, scale=0.08, shear=5.0, seed=0)(scan)
    x = layers.ReLU()(convolution(x, 24))
    for width in (24, 48, 96):
        strides = 1 if width == 24 else 2
        y = layers.ReLU()(convolution(x, width, strides))
        shortcut = x if strides == 1 else layers.Conv2D(width, 1, strides, data_format="channels_last")(x)
        x = layers.ReLU()(shortcut + convolution(y, width))
    x = layers.Dropout(0.2, seed=1)(layers.GlobalAveragePooling2D(data_format="channels_last")(x))
    return keras.Model(scan, layers.Dense(num_classes)(x), name="judge")


def train_judge(path, dataset, epochs, seed):
    """Train on the scans of the split "train", or load the judge that is there."""
    import keras

    if path.is_file():
        return keras.saving.load_model(path)
    keras.utils.set_random_seed(seed)
    judge = build_judge(len(dataset.class_names))
    steps = epochs * -(-len(dataset.labels["train"]) // 128)
    judge.compile(
        optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps)),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    parts = [
        (dataset.glyphs[split][..., None].astype("float32") / 255, dataset.labels[split])
        for split in ("train", "validation")
    ]
    judge.fit(*parts[0], batch_size=128, epochs=epochs, validation_data=parts[1], verbose=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    keras.Model(judge.inputs, judge.outputs).save(path)
    return judge


def read_scans(images, foregrounds, backgrounds, side=28):
    """Images as scans (N, side, side, 1), 0 to 1: the inverse of `zoo.data.captions.colorize`.

    Args:
        images: (N, 48, 48, 3), 0 to 255.
        foregrounds: (N,) indices of the ink's color.
        backgrounds: (N,) indices of the background's color.
        side: of the scans.

    Returns:
        float32 array.
    """
    from zoo.data.captions import PALETTE, interpolation_matrix

    ink, paper = (PALETTE[colors][:, None, None] for colors in (foregrounds, backgrounds))  # (N, 1, 1, 3)
    grey = ((images - paper) * (ink - paper)).sum(-1) / ((ink - paper) ** 2).sum(-1)  # (N, 48, 48)
    inverse = np.linalg.pinv(interpolation_matrix(side).astype("float64"))  # (side, 48)
    return np.clip(inverse @ grey @ inverse.T, 0, 1)[..., None].astype("float32")


def wilson_interval(right, count):
    """(lower, upper) limit of a share, 95 %: Wilson 1927."""
    import scipy.stats

    return tuple(map(float, scipy.stats.binomtest(right, count).proportion_ci(0.95, method="wilson")))


def judge_images(judge, images, labels, foregrounds, backgrounds):
    """{"digits", "clothes", "all", "all three": {share, interval, count}} of images that show their class."""
    from zoo.data.captions import classify_colors

    logits = judge.predict(read_scans(images, foregrounds, backgrounds), batch_size=250, verbose=0)
    right = np.asarray(logits).argmax(-1) == labels
    colors = [found == wanted for found, wanted in zip(classify_colors(images), (foregrounds, backgrounds))]
    whole = np.ones(len(labels), bool)
    groups = {"digits": labels < NUM_DIGITS, "clothes": labels >= NUM_DIGITS, "all": whole}
    counted = {name: right[members] for name, members in groups.items() if members.any()}
    counted["all three"] = np.logical_and.reduce([right, *colors])
    return {
        name: {
            "share": float(values.mean()),
            "interval": wilson_interval(int(values.sum()), len(values)),
            "count": len(values),
        }
        for name, values in counted.items()
    }


def format_scores(title, scores):
    cells = (f"{s['share']:.1%} ({s['interval'][0]:.1%}–{s['interval'][1]:.1%})" for s in scores.values())
    return f"{title:24}" + "".join(f"{cell:>24}" for cell in cells)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder of the data that the preset was trained on")
    parser.add_argument("--output", default="runs/judge", help="folder of judge.keras (runs/judge)")
    parser.add_argument("--preset", default="diffusion_captions", help="name or folder (diffusion_captions)")
    parser.add_argument("--num-prompts", type=int, default=1000, help="of each kind (1000)")
    parser.add_argument("--num-steps", type=int, default=20, help="sampling steps (20)")
    parser.add_argument("--sampler", help="default the preset's")
    parser.add_argument("--guidance-scale", type=float, default=2.0, help="of the sampling (2)")
    parser.add_argument("--epochs", type=int, default=4, help="of the judge's training (4)")
    parser.add_argument("--seed", type=int, default=0, help="of the judge, the prompts and the noise (0)")
    args = parser.parse_args()

    import zoo
    from zoo.data.captions import load_captioned_images

    dataset, remark = load_captioned_images(args.data_dir)
    print(remark or f"{dataset.name}: {len(dataset.labels['train']):,} training scans", flush=True)
    judge = train_judge(pathlib.Path(args.output) / "judge.keras", dataset, args.epochs, args.seed)
    rng = np.random.default_rng(args.seed)
    rows = rng.permutation(len(dataset.labels["test"]))[: 10 * args.num_prompts]
    batch = dataset.render("test", rows, seed=args.seed)
    scores = {"real test images": judge_images(judge, batch.images, batch.labels, batch.foregrounds, batch.backgrounds)}
    print(f"{'':24}" + "".join(f"{name:>24}" for name in scores["real test images"]))
    print(format_scores("real test images", scores["real test images"]), flush=True)
    task = zoo.TextToImage.from_preset(args.preset)
    options = {"num_steps": args.num_steps, "guidance_scale": args.guidance_scale, "sampler": args.sampler}
    for kind, held_out in (("trained combinations", False), ("held-out combinations", True)):
        captions, *attributes = dataset.prompts(args.num_prompts, held_out=held_out, seed=args.seed)
        images = task.generate(captions, seed=args.seed, batch_size=100, **options)
        scores[kind] = judge_images(judge, images, *attributes)
        print(format_scores(kind, scores[kind]), flush=True)
    print(json.dumps({"preset": args.preset, "seed": args.seed, **options, "scores": scores}))


if __name__ == "__main__":
    main()
