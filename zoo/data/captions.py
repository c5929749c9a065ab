"""Captioned pictures: real digits and clothes, drawn in an ink on a background, and a sentence that says so.

A picture is made when it is asked for, from a grey scan g (28x28, 0 to 1, brought to 48x48), an ink and a background:

    pixel = background + g · (ink - background)

Its caption names the class, the ink and the background in one of several ways. One tenth of the (class, ink,
background) combinations is never trained on, so that a model can be asked for something it has never seen.
"""

import dataclasses
import hashlib

import numpy as np

from zoo.data.batches import epoch_order
from zoo.data.images import choose_dataset, load
from zoo.errors import UserError

SIZE = 48
COLOURS = {
    "red": (220, 30, 40),
    "orange": (245, 135, 20),
    "yellow": (250, 220, 50),
    "green": (30, 150, 60),
    "blue": (40, 80, 210),
    "purple": (140, 50, 170),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
PALETTE = np.array(list(COLOURS.values()), "float32")  # (8, 3)
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLOTHES = (  # Fashion-MNIST's classes, in its order
    *("t-shirt", "pair of trousers", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
TEMPLATES = (
    "{a_ink} {thing} on {a_background} background",
    "{a_thing} in {ink} on {background}",
    "{a_ink} {thing} on {background}",
    "{thing}, {ink} on {background}",
    "{ink} {thing}, {background} background",
    "on {a_background} background {a_ink} {thing}",
)
VALIDATION = 0.05  # of the training scans of each class


@dataclasses.dataclass(frozen=True)
class Batch:
    """Captioned pictures.

    Attributes:
        images: (N, 48, 48, 3) uint8.
        captions: N sentences.
        labels, inks, backgrounds: (N,) int: the class, and places in `COLOURS`.
    """

    images: np.ndarray
    captions: list
    labels: np.ndarray
    inks: np.ndarray
    backgrounds: np.ndarray


@dataclasses.dataclass(frozen=True)
class CaptionedImages:
    """Grey scans of several classes from which captioned pictures are drawn.

    Attributes:
        name: of the data.
        class_names: one a class, as captions say it.
        scans: {"train", "validation", "test": (N, side, side) uint8}.
        labels: {part: (N,) int}.
    """

    name: str
    class_names: tuple
    scans: dict
    labels: dict

    def draw(self, part, rows, *, seed, held_out=False):
        """Draw pictures of some scans with colours and words of their own, all a function of the arguments.

        Args:
            part: "train", "validation" or "test".
            rows: (N,) places of the scans in that part.
            seed: int or list of ints.
            held_out: draw combinations that are never trained on, instead of the others.

        Returns:
            `Batch`.
        """
        rng, labels = np.random.default_rng(seed), self.labels[part][rows]
        open_ = (held_out_combinations(len(self.class_names)) == held_out) & possible()  # (K, 8, 8)
        inks, backgrounds = np.zeros((2, len(labels)), int)
        for place, label in enumerate(labels):
            choices = np.argwhere(open_[label])
            inks[place], backgrounds[place] = choices[rng.integers(len(choices))]
        captions = [self.caption(*names, rng) for names in zip(labels, inks, backgrounds)]
        return Batch(paint(self.scans[part][rows], inks, backgrounds), captions, labels, inks, backgrounds)

    def batches(self, part, batch_size, *, seed, epoch=0, held_out=False):
        """Every scan of a part once, in an order and with colours and words that are a function of (seed, epoch)."""
        order = epoch_order(len(self.labels[part]), seed=seed, epoch=epoch)
        for number, begin in enumerate(range(0, len(order), batch_size)):
            rows = order[begin : begin + batch_size]
            yield self.draw(part, rows, seed=[seed, epoch, number], held_out=held_out)

    def caption(self, label, ink, background, rng):
        """One sentence for a class and two colours, by place; `rng` chooses the template."""
        return say(TEMPLATES[rng.integers(len(TEMPLATES))], self.class_names[label], ink, background)

    def prompts(self, count, *, held_out=False, seed=0):
        """Sentences to draw from: (captions, labels, inks, backgrounds), every combination before one comes again."""
        rng = np.random.default_rng([seed, held_out])
        every = np.argwhere((held_out_combinations(len(self.class_names)) == held_out) & possible())
        rounds = [rng.permutation(every) for _ in range(-(-count // len(every)))]
        chosen = np.concatenate(rounds)[:count]
        return [self.caption(*names, rng) for names in chosen], *chosen.T

    def limited(self, count, seed=0):
        """The same with at most `count` scans of each part, chosen at random."""
        rng = np.random.default_rng(seed)
        rows = {part: np.sort(rng.permutation(len(labels))[:count]) for part, labels in self.labels.items()}
        scans = {part: self.scans[part][rows[part]] for part in rows}
        return dataclasses.replace(self, scans=scans, labels={part: self.labels[part][rows[part]] for part in rows})

    def fingerprint(self):
        """sha256 over scans and labels of the three parts."""
        digest = hashlib.sha256()
        for part in ("train", "validation", "test"):
            for array in (self.scans[part], self.labels[part]):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def load_captioned(data_dir=None):
    """The scans: MNIST and Fashion-MNIST through tensorflow-datasets, else scikit-learn's digits.

    Args:
        data_dir: a tensorflow-datasets folder (default `TFDS_DATA_DIR`, else ~/tensorflow_datasets).

    Returns:
        (`CaptionedImages`, one line saying what was taken instead, or None).

    Raises:
        UserError: if one of the two is there and the other is not.
    """
    name, remark = choose_dataset(data_dir)
    if name == "digits":
        digits = load("digits")
        return _captioned("digits", DIGITS, [digits]), remark
    sources = [load(name, data_dir) for name in ("mnist", "fashion_mnist")]
    return _captioned("mnist and fashion_mnist", DIGITS + CLOTHES, sources), None


def _captioned(name, class_names, sources):
    scans, labels = {}, {}
    parts = {"train": [], "validation": [], "test": []}
    for place, source in enumerate(sources):
        first, rng = 10 * place, np.random.default_rng([0, place])
        apart = np.zeros(len(source.y_train), bool)
        for label in np.unique(source.y_train):
            rows = np.flatnonzero(source.y_train == label)
            apart[rng.permutation(rows)[: max(1, round(VALIDATION * len(rows)))]] = True
        parts["train"].append((source.x_train[~apart], source.y_train[~apart] + first))
        parts["validation"].append((source.x_train[apart], source.y_train[apart] + first))
        parts["test"].append((source.x_test, source.y_test + first))
    for part, pieces in parts.items():
        scans[part] = np.concatenate([images[..., 0] for images, _ in pieces])
        labels[part] = np.concatenate([numbers for _, numbers in pieces]).astype(int)
    return CaptionedImages(name, class_names, scans, labels)


def possible():
    """(8, 8) bool: an ink is drawn on any background but its own."""
    return ~np.eye(len(COLOURS), dtype=bool)


def held_out_combinations(num_classes, seed=0):
    """(K, 8, 8) bool, True for the tenth of the (class, ink, background) combinations that is never trained on."""
    every = np.argwhere(np.broadcast_to(possible(), (num_classes, len(COLOURS), len(COLOURS))))
    chosen = np.random.default_rng(seed).permutation(every)[: round(len(every) / 10)]
    held_out = np.zeros((num_classes, len(COLOURS), len(COLOURS)), bool)
    held_out[tuple(chosen.T)] = True
    return held_out


def say(template, thing, ink, background):
    """Fill a template; `ink` and `background` are places in `COLOURS`."""
    names = list(COLOURS)
    words = {"thing": thing, "ink": names[ink], "background": names[background]}
    return template.format(**words, **{f"a_{key}": f"{_article(word)} {word}" for key, word in words.items()})


def _article(word):
    return "an" if word[0] in "aeiou" else "a"


def paint(scans, inks, backgrounds):
    """Pictures (N, 48, 48, 3) uint8 of scans (N, side, side) uint8, brought to size by linear interpolation.

    Raises:
        UserError: if the scans are not square.
    """
    side = scans.shape[1]
    if scans.ndim != 3 or scans.shape[2] != side:
        raise UserError(f"Scans must have the shape (N, side, side), got {scans.shape}.")
    resize = _interpolation(side)
    grey = resize @ (scans.astype("float32") / 255) @ resize.T  # (N, 48, 48)
    ink, background = PALETTE[inks][:, None, None], PALETTE[backgrounds][:, None, None]  # (N, 1, 1, 3)
    return np.rint(background + grey[..., None] * (ink - background)).astype("uint8")


def _interpolation(side):
    """(48, side) float32: each row has the shares of the two nearest of `side` pixels, centres aligned."""
    place = np.clip((np.arange(SIZE) + 0.5) * side / SIZE - 0.5, 0, side - 1)
    below = np.minimum(place.astype(int), side - 2)
    matrix = np.zeros((SIZE, side), "float32")
    matrix[np.arange(SIZE), below] = below + 1 - place
    matrix[np.arange(SIZE), below + 1] = place - below
    return matrix


def judge_colours(images):
    """Which of the colours a picture is drawn in: (inks (N,), backgrounds (N,)), places in `COLOURS`.

    The background is the colour nearest to the median of the pixels on the border. The ink is the one whose mixtures
    with that background come nearest to the picture, in squared distance summed over the pixels.

    Args:
        images: (N, H, W, 3), 0 to 255.
    """
    images = np.asarray(images, "float32")
    border = np.concatenate([images[:, :2].reshape(len(images), -1, 3), images[:, -2:].reshape(len(images), -1, 3)], 1)
    middle = np.median(border, axis=1)  # (N, 3)
    backgrounds = ((middle[:, None] - PALETTE) ** 2).sum(-1).argmin(1)
    base = PALETTE[backgrounds][:, None]  # (N, 1, 3)
    offset = images.reshape(len(images), -1, 3) - base  # (N, H·W, 3)
    misfits = np.full((len(images), len(PALETTE)), np.inf)
    for ink in range(len(PALETTE)):
        direction = PALETTE[ink] - base  # (N, 1, 3)
        length = np.maximum((direction**2).sum(-1, keepdims=True), 1e-6)
        share = np.clip((offset * direction).sum(-1, keepdims=True) / length, 0, 1)
        misfits[:, ink] = ((offset - share * direction) ** 2).sum((1, 2))
    misfits[np.arange(len(images)), backgrounds] = np.inf
    return misfits.argmin(1), backgrounds
