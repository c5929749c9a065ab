"""LoRA teaches a denoiser a class that it has never been trained on; what that costs the other classes.

    KERAS_BACKEND=tensorflow python benchmarks/lora_new_class.py --data-dir FOLDER --output runs/lora_new_class

Text encoder, autoencoder and classifier are those of the preset `diffusion_captions`, which know all 20 classes. A
denoiser is trained as `recipes/diffusion_denoiser.py` does, on all classes but one; then, with `--lora-rank`, on
pictures of that class, and as many again of the others, so that these are kept. Both generate a picture of each
combination of class and colors, and the classifier says how many show the class that was asked for. A run that is there
is not made again, and an interrupted one goes on.
"""

import argparse
import dataclasses
import json
import pathlib
import shutil
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from zoo import backends

backends.import_keras_or_exit()

from recipes import diffusion_denoiser
from zoo import TextToImage
from zoo.data.captions import load_captioned_images
from zoo.io.model_files import load_model
from zoo.presets import find_preset

NUM_PROMPTS = 1000  # about fifty of each class
PARTS = ("text_encoder.keras", "tokenizer.json", "encoder.keras", "decoder.keras", "classifier.keras")


def select(dataset, count_by_class):
    """The data set with so many training and validation glyphs of each class; None for all."""
    glyphs, labels = dict(dataset.glyphs), dict(dataset.labels)
    for split in ("train", "validation"):
        rows = [np.flatnonzero(labels[split] == label)[:count] for label, count in count_by_class.items()]
        rows = np.sort(np.concatenate(rows))
        glyphs[split], labels[split] = glyphs[split][rows], labels[split][rows]
    return dataclasses.replace(dataset, glyphs=glyphs, labels=labels)


def train(dataset, folder, *flags):
    """Train a denoiser for the other parts of the preset, unless that is done."""
    if (folder / "denoiser" / "metrics.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name in PARTS:
        shutil.copyfile(find_preset("diffusion_captions").file(name), folder / name)
    interrupted = (folder / "denoiser" / "checkpoint.npz").is_file()
    flags = ["--output", folder, "--resume" if interrupted else "--overwrite", *flags]
    diffusion_denoiser.main(diffusion_denoiser.parse_args([str(word) for word in flags]), dataset)


def accuracy_by_class(folder, dataset):
    """(K,) fractions of generated pictures that the classifier takes for the class of their caption."""
    path = folder / "accuracy_by_class.json"
    if not path.is_file():
        captions, labels, *_ = dataset.prompts(NUM_PROMPTS)
        images = TextToImage.from_preset(folder).generate(captions, num_steps=20, guidance_scale=2.0, batch_size=100)
        logits = load_model(folder / "classifier.keras").predict(images, batch_size=250, verbose=0)
        correct = np.asarray(logits).argmax(-1) == labels
        found = {name: float(correct[labels == label].mean()) for label, name in enumerate(dataset.class_names)}
        path.write_text(json.dumps(found, indent=2))
    return np.array(list(json.loads(path.read_text()).values()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder of MNIST and Fashion-MNIST, prepared by tensorflow-datasets")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder of the runs")
    parser.add_argument("--new-class", default="pair of trousers", help="what is withheld (pair of trousers)")
    parser.add_argument("--base-epochs", type=int, default=2, help="of the denoiser without it (2)")
    parser.add_argument("--epochs", type=int, default=15, help="of LoRA (15)")
    parser.add_argument("--images", type=int, default=1900, help="of the new class, and again of all others (1900)")
    parser.add_argument("--lora-rank", type=int, default=16, help="(16)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="of LoRA (2e-3)")
    parser.add_argument("--only-new", action="store_true", help="train LoRA on no pictures of the other classes")
    args = parser.parse_args()
    dataset, remark = load_captioned_images(args.data_dir)
    if remark:
        sys.exit(remark)
    new, names = dataset.class_names.index(args.new_class), dataset.class_names
    others = [label for label in range(len(names)) if label != new]
    base = args.output / "base"
    train(select(dataset, dict.fromkeys(others)), base, "--epochs", args.base_epochs)
    flags = ("--init-from", base, "--lora-rank", args.lora_rank, "--learning-rate", args.learning_rate)
    flags += ("--ema-decay", 0.99)  # an average over few steps: there are few
    kept = {} if args.only_new else dict.fromkeys(others, args.images // len(others))
    adapted = args.output / f"lora_{args.lora_rank}{'_only_new' if args.only_new else ''}"
    train(select(dataset, {new: args.images, **kept}), adapted, "--epochs", args.epochs, *flags)

    after, before = accuracy_by_class(adapted, dataset), accuracy_by_class(base, dataset)
    print(f"{'class':20}{'before':>8}{'after':>8}")
    for name, *row in zip(names, before, after):
        print(f"{name:20}" + "".join(f"{value:8.1%}" for value in row) + ("  <- new" if name == args.new_class else ""))
    print(f"{'the others, mean':20}{before[others].mean():8.1%}{after[others].mean():8.1%}")
    size = (adapted / "denoiser" / "lora.safetensors").stat().st_size
    print(f"LoRA file: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
