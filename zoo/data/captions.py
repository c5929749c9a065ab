"""Captioned images: digits and clothes of MNIST and Fashion-MNIST, colorized, with a caption that names the colors.

An image is computed on demand from a grey glyph g (28x28 in [0, 1], resized to 48x48), a foreground and a background
color:

    pixel = background + g · (foreground - background)

The caption names the class and both colors, by one of six templates. One tenth of the (class, foreground, background)
combinations is held out of training, to test whether a model composes what it has never been trained on.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from zoo.data.batches import epoch_order
from zoo.data.images import default_image_dataset, load_images
from zoo.errors import UserError
from zoo.typing import StrPath

IMAGE_SIZE = 48
COLORS = {
    "red": (220, 30, 40),
    "orange": (245, 135, 20),
    "yellow": (250, 220, 50),
    "green": (30, 150, 60),
    "blue": (40, 80, 210),
    "purple": (140, 50, 170),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
PALETTE = np.array(list(COLORS.values()), "float32")  # (8, 3)
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLOTHES = (  # Fashion-MNIST's classes, in its order
    *("t-shirt", "pair of trousers", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
TEMPLATES = (
    "{a_foreground} {class_name} on {a_background} background",
    "{a_class_name} in {foreground} on {background}",
    "{a_foreground} {class_name} on {background}",
    "{class_name}, {foreground} on {background}",
    "{foreground} {class_name}, {background} background",
    "on {a_background} background {a_foreground} {class_name}",
)
VALIDATION_FRACTION = 0.05  # of the training glyphs of each class


@dataclasses.dataclass(frozen=True)
class CaptionedBatch:
    """A batch of captioned images.

    Attributes:
        images: (N, 48, 48, 3) uint8.
        captions: list of N strings.
        labels: (N,) int, class indices.
        foregrounds: (N,) int, indices into `COLORS`.
        backgrounds: (N,) int, indices into `COLORS`.
    """

    images: np.ndarray
    captions: list[str]
    labels: np.ndarray
    foregrounds: np.ndarray
    backgrounds: np.ndarray

    @property
    def content_ids(self) -> np.ndarray:
        """(N,) int, index of (label, foreground, background) among the K·8·8: equal where captions say the same."""
        return (self.labels * len(COLORS) + self.foregrounds) * len(COLORS) + self.backgrounds


@dataclasses.dataclass(frozen=True)
class CaptionedImages:
    """A data set of grey glyphs that `render` turns into captioned images.

    Attributes:
        name: name of the data set.
        class_names: class names as captions use them.
        glyphs: {"train", "validation", "test": (N, side, side) uint8}.
        labels: {split: (N,) int}.
    """

    name: str
    class_names: tuple[str, ...]
    glyphs: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]

    image_size = IMAGE_SIZE
    num_paraphrases = len(TEMPLATES)  # captions of a content id, which follow each other in `all_captions`

    def count(self, split: str) -> int:
        """Number of images.

        Args:
            split: "train", "validation" or "test".

        Returns:
            N.
        """
        return len(self.labels[split])

    def all_captions(self) -> list[str]:
        """Every caption, (K·8·8·templates), ordered by (label, foreground, background, template)."""
        colors = range(len(COLORS))
        return [
            fill_template(template, name, foreground, background)
            for name in self.class_names
            for foreground in colors
            for background in colors
            for template in TEMPLATES
        ]

    def vocabulary_captions(self) -> list[str]:
        """The captions that a tokenizer's words are taken from: all, since no word is held out."""
        return self.all_captions()

    def example_prompts(self, count: int = 10) -> list[str]:
        """Captions to generate examples from.

        Args:
            count: at most so many.

        Returns:
            captions, of which the second half is of held-out combinations.
        """
        return [text for held_out in (False, True) for text in self.prompts(count // 2, held_out=held_out, seed=1)[0]]

    def render(
        self, split: str, indices: np.ndarray, *, seed: int | Sequence[int], held_out: bool = False
    ) -> CaptionedBatch:
        """Colorize and caption some glyphs; the result is a function of the arguments alone.

        Args:
            split: "train", "validation" or "test".
            indices: (N,) indices of the glyphs in that split.
            seed: int or list of ints.
            held_out: use the held-out combinations instead of the others.

        Returns:
            `CaptionedBatch`.
        """
        rng, labels = np.random.default_rng(seed), self.labels[split][indices]
        allowed = (held_out_combinations(len(self.class_names)) == held_out) & distinct_color_pairs()  # (K, 8, 8)
        foregrounds, backgrounds = np.zeros((2, len(labels)), int)
        for i, label in enumerate(labels):
            choices = np.argwhere(allowed[label])
            foregrounds[i], backgrounds[i] = choices[rng.integers(len(choices))]
        captions = [self.caption(*combination, rng) for combination in zip(labels, foregrounds, backgrounds)]
        images = colorize(self.glyphs[split][indices], foregrounds, backgrounds)
        return CaptionedBatch(images, captions, labels, foregrounds, backgrounds)

    def batches(
        self, split: str, batch_size: int, *, seed: int, epoch: int = 0, held_out: bool = False
    ) -> Iterator[CaptionedBatch]:
        """Iterate once over a split; order, colors and captions are a function of (seed, epoch).

        Args:
            split: "train", "validation" or "test".
            batch_size: images in a batch.
            seed: integer from 0 up.
            epoch: its number, from 0.
            held_out: use the held-out combinations instead of the others.

        Yields:
            `CaptionedBatch`.
        """
        order = epoch_order(len(self.labels[split]), seed=seed, epoch=epoch)
        for step, start in enumerate(range(0, len(order), batch_size)):
            indices = order[start : start + batch_size]
            yield self.render(split, indices, seed=[seed, epoch, step], held_out=held_out)

    def caption(self, label: int, foreground: int, background: int, rng: np.random.Generator) -> str:
        """Write a caption.

        Args:
            label: class index.
            foreground: index into `COLORS`.
            background: index into `COLORS`.
            rng: chooses the template.

        Returns:
            the caption.
        """
        return fill_template(TEMPLATES[rng.integers(len(TEMPLATES))], self.class_names[label], foreground, background)

    def prompts(
        self, count: int, *, held_out: bool = False, seed: int = 0
    ) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
        """Evaluation prompts, each combination once before any repeats.

        Args:
            count: number of prompts.
            held_out: use the held-out combinations instead of the others.
            seed: of the choice and of the templates.

        Returns:
            (captions, labels (N,), foregrounds (N,), backgrounds (N,)).
        """
        rng = np.random.default_rng([seed, held_out])
        combinations = np.argwhere((held_out_combinations(len(self.class_names)) == held_out) & distinct_color_pairs())
        rounds = [rng.permutation(combinations) for _ in range(-(-count // len(combinations)))]
        chosen = np.concatenate(rounds)[:count]
        captions = [self.caption(label, foreground, background, rng) for label, foreground, background in chosen]
        labels, foregrounds, backgrounds = chosen.T
        return captions, labels, foregrounds, backgrounds

    def subset(self, count: int, seed: int = 0) -> CaptionedImages:
        """A copy with fewer glyphs, chosen at random.

        Args:
            count: most glyphs of each split.
            seed: of the choice.

        Returns:
            `CaptionedImages`.
        """
        rng = np.random.default_rng(seed)
        indices = {split: np.sort(rng.permutation(len(labels))[:count]) for split, labels in self.labels.items()}
        glyphs = {split: self.glyphs[split][indices[split]] for split in indices}
        labels = {split: self.labels[split][indices[split]] for split in indices}
        return dataclasses.replace(self, glyphs=glyphs, labels=labels)

    def fingerprint(self) -> str:
        """sha256 of the glyphs and labels of the three splits."""
        digest = hashlib.sha256()
        for split in ("train", "validation", "test"):
            for array in (self.glyphs[split], self.labels[split]):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def load_captioned_images(data_dir: StrPath | None = None) -> tuple[CaptionedImages, str | None]:
    """Load MNIST and Fashion-MNIST through tensorflow-datasets, or scikit-learn's digits where these are missing.

    Args:
        data_dir: tensorflow-datasets folder (default `TFDS_DATA_DIR`, else ~/tensorflow_datasets).

    Returns:
        (`CaptionedImages`, remark): the remark is one line where the digits were used instead, else None.

    Raises:
        UserError: if one of the two data sets is there and the other is not.
    """
    name, remark = default_image_dataset(data_dir)
    if name == "digits":
        return _captioned("digits", DIGITS, [load_images("digits")]), remark
    sources = [load_images(name, data_dir) for name in ("mnist", "fashion_mnist")]
    return _captioned("mnist and fashion_mnist", DIGITS + CLOTHES, sources), None


def _captioned(name, class_names, sources):
    splits = {"train": [], "validation": [], "test": []}
    for k, source in enumerate(sources):
        first_label, rng = 10 * k, np.random.default_rng([0, k])
        validation = np.zeros(len(source.y_train), bool)
        for label in np.unique(source.y_train):
            indices = np.flatnonzero(source.y_train == label)
            validation[rng.permutation(indices)[: max(1, round(VALIDATION_FRACTION * len(indices)))]] = True
        splits["train"].append((source.x_train[~validation], source.y_train[~validation] + first_label))
        splits["validation"].append((source.x_train[validation], source.y_train[validation] + first_label))
        splits["test"].append((source.x_test, source.y_test + first_label))
    glyphs = {split: np.concatenate([images[..., 0] for images, _ in parts]) for split, parts in splits.items()}
    labels = {split: np.concatenate([labels for _, labels in parts]).astype(int) for split, parts in splits.items()}
    return CaptionedImages(name, class_names, glyphs, labels)


def distinct_color_pairs() -> np.ndarray:
    """(8, 8) bool, True where foreground and background differ."""
    return ~np.eye(len(COLORS), dtype=bool)


def held_out_combinations(num_classes: int, seed: int = 0) -> np.ndarray:
    """The tenth of the (class, foreground, background) combinations that is held out of training.

    Args:
        num_classes: K.
        seed: of the choice.

    Returns:
        (K, 8, 8) bool, True for those held out.
    """
    shape = (num_classes, len(COLORS), len(COLORS))
    combinations = np.argwhere(np.broadcast_to(distinct_color_pairs(), shape))
    chosen = np.random.default_rng(seed).permutation(combinations)[: round(len(combinations) / 10)]
    held_out = np.zeros(shape, bool)
    held_out[tuple(chosen.T)] = True
    return held_out


def fill_template(template: str, class_name: str, foreground: int, background: int) -> str:
    """Write a caption from a template.

    Args:
        template: one of `TEMPLATES`.
        class_name: as captions use it.
        foreground: index into `COLORS`.
        background: index into `COLORS`.

    Returns:
        the caption.
    """
    names = list(COLORS)
    words = {"class_name": class_name, "foreground": names[foreground], "background": names[background]}
    return template.format(**words, **{f"a_{key}": f"{_article(word)} {word}" for key, word in words.items()})


def _article(word):
    return "an" if word[0] in "aeiou" else "a"


def colorize(glyphs: np.ndarray, foregrounds: np.ndarray, backgrounds: np.ndarray) -> np.ndarray:
    """Color grey glyphs, resized linearly to 48x48.

    Args:
        glyphs: (N, side, side) uint8.
        foregrounds: (N,) indices into `COLORS`.
        backgrounds: (N,) indices into `COLORS`.

    Returns:
        (N, 48, 48, 3) uint8.

    Raises:
        UserError: if the glyphs are not square.
    """
    side = glyphs.shape[1]
    if glyphs.ndim != 3 or glyphs.shape[2] != side:
        raise UserError(f"Glyphs must have the shape (N, side, side), got {glyphs.shape}.")
    resize = interpolation_matrix(side)
    grey = resize @ (glyphs.astype("float32") / 255) @ resize.T  # (N, 48, 48)
    foreground, background = PALETTE[foregrounds][:, None, None], PALETTE[backgrounds][:, None, None]  # (N, 1, 1, 3)
    return np.rint(background + grey[..., None] * (foreground - background)).astype("uint8")


def interpolation_matrix(side: int) -> np.ndarray:
    """The matrix with which `colorize` resizes: linear interpolation, pixel centres aligned.

    Args:
        side: pixels of a glyph's side.

    Returns:
        float32 (48, side).
    """
    position = np.clip((np.arange(IMAGE_SIZE) + 0.5) * side / IMAGE_SIZE - 0.5, 0, side - 1)
    below = np.minimum(position.astype(int), side - 2)
    matrix = np.zeros((IMAGE_SIZE, side), "float32")
    matrix[np.arange(IMAGE_SIZE), below] = below + 1 - position
    matrix[np.arange(IMAGE_SIZE), below + 1] = position - below
    return matrix


def classify_colors(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest foreground and background colors of images.

    The background is the color nearest to the median of the border pixels. The foreground is the color whose mixtures
    with that background fit the image best, in squared distance summed over the pixels.

    Args:
        images: (N, H, W, 3), 0 to 255.

    Returns:
        (foregrounds (N,), backgrounds (N,)), indices into `COLORS`.
    """
    images = np.asarray(images, "float32")
    border = np.concatenate([images[:, :2].reshape(len(images), -1, 3), images[:, -2:].reshape(len(images), -1, 3)], 1)
    median = np.median(border, axis=1)  # (N, 3)
    backgrounds = ((median[:, None] - PALETTE) ** 2).sum(-1).argmin(1)
    base = PALETTE[backgrounds][:, None]  # (N, 1, 3)
    offset = images.reshape(len(images), -1, 3) - base  # (N, H·W, 3)
    residuals = np.full((len(images), len(PALETTE)), np.inf)
    for foreground in range(len(PALETTE)):
        direction = PALETTE[foreground] - base  # (N, 1, 3)
        length = np.maximum((direction**2).sum(-1, keepdims=True), 1e-6)
        fraction = np.clip((offset * direction).sum(-1, keepdims=True) / length, 0, 1)
        residuals[:, foreground] = ((offset - fraction * direction) ** 2).sum((1, 2))
    residuals[np.arange(len(images)), backgrounds] = np.inf
    return residuals.argmin(1), backgrounds
