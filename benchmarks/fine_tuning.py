"""Accuracy on new classes from ten pictures of each: fine-tuned from a model of other classes, and from scratch.

    KERAS_BACKEND=torch python benchmarks/fine_tuning.py --data gtsrb_32_q6.npz --output runs/fine_tuning

Ten classes of GTSRB are set aside. A base is trained on the others with `recipes/cnn_gtsrb.py`. Then, for each of five
draws of ten pictures a class, no two of one track, the recipe trains twice with the same settings: from scratch, and
with `--init-from BASE --new-head`. Both are tested on all test images of the ten classes. A run that is there is not
made again.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
NUM_NEW_CLASSES, PICTURES, DRAWS = 10, 10, 5


def write_subset(data, classes, path, rows=None):
    """The classes of the data set, relabelled, as an `.npz` file; of the training images only some rows if given."""
    number = {int(old): new for new, old in enumerate(classes)}
    rows = np.flatnonzero(np.isin(data["y_train"], classes)) if rows is None else rows
    test = np.isin(data["y_test"], classes)
    np.savez(
        path,
        x_train=data["x_train"][rows],
        y_train=np.array([number[int(label)] for label in data["y_train"][rows]], np.uint8),
        track_train=data["track_train"][rows],
        x_test=data["x_test"][test],
        y_test=np.array([number[int(label)] for label in data["y_test"][test]], np.uint8),
        class_names=data["class_names"][classes],
    )
    return path


def draw(data, classes, rng):
    """Rows of ten training images of each class, of different tracks."""
    rows = []
    for label in classes:
        members = np.flatnonzero(data["y_train"] == label)
        tracks = rng.choice(np.unique(data["track_train"][members]), PICTURES, replace=False)
        rows += [int(rng.choice(members[data["track_train"][members] == track])) for track in tracks]
    return np.array(rows)


def train(path, output, *flags):
    """Test accuracy of a run of the recipe, or of that run where it is finished."""
    if not (output / "metrics.json").is_file():
        command = [sys.executable, ROOT / "recipes" / "cnn_gtsrb.py", "--data-dir", path, "--output", output, *flags]
        subprocess.run([str(word) for word in [*command, "--overwrite"]], check=True, stdout=subprocess.DEVNULL)
    return json.loads((output / "metrics.json").read_text())["test_accuracy"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the .npz file of GTSRB that recipes/cnn_gtsrb.py reads")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder of the runs")
    parser.add_argument("--base-epochs", type=int, default=8, help="of the base (8)")
    parser.add_argument("--epochs", type=int, default=60, help="of each run on ten pictures a class (60)")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    with np.load(args.data) as stored:
        data = {key: stored[key] for key in stored.files}
    labels = np.unique(data["y_train"])
    tracks = {label: len(np.unique(data["track_train"][data["y_train"] == label])) for label in labels}
    enough = [label for label in labels if tracks[label] >= PICTURES + 2]
    new = np.sort(np.random.default_rng(0).choice(enough, NUM_NEW_CLASSES, replace=False))
    base = args.output / "base"
    accuracy = train(
        write_subset(data, np.setdiff1d(labels, new), args.output / "base.npz"), base, "--epochs", args.base_epochs
    )
    print(f"base, {len(labels) - len(new)} classes: {accuracy:.2%}", flush=True)
    found = {"from scratch": [], "fine-tuned": []}
    for number in range(DRAWS):
        rows = draw(data, new, np.random.default_rng([1, number]))
        path = write_subset(data, new, args.output / f"draw_{number}.npz", rows)
        for name, flags in (("from scratch", ()), ("fine-tuned", ("--init-from", base, "--new-head"))):
            output = args.output / f"{name.replace(' ', '_')}_{number}"
            options = ("--epochs", args.epochs, "--batch-size", 32, "--seed", number)
            found[name].append(train(path, output, *options, *flags))
            print(f"draw {number}, {name}: {found[name][-1]:.2%}", flush=True)
    for name, accuracies in found.items():
        spread = statistics.stdev(accuracies)
        print(f"{name}: mean {statistics.mean(accuracies):.2%}, standard deviation {spread:.2%} of {DRAWS} draws")


if __name__ == "__main__":
    main()
