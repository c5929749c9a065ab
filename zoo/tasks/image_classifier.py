"""Image classification: images of any kind and size to the probabilities of classes.

classifier = ImageClassifier.from_preset("cnn_mnist")
classifier.classify("docs/images/digit.png", top_k=3)   # [{"label": "3", "score": 0.99…}, …]
classifier.predict(images)                              # (B, K) probabilities
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import numpy as np

from zoo.errors import UserError
from zoo.fast_paths import inference_function
from zoo.io import cards, schemas
from zoo.io.images import load_image
from zoo.tasks.base import Task
from zoo.typing import ImageLike, StrPath

if TYPE_CHECKING:
    import keras
    import numpy.typing as npt
    import PIL.Image


PREPROCESSING = ("none", "unit", "tf", "torch", "caffe")


class Prediction(TypedDict):
    """A class and its probability."""

    label: str
    score: float


class ImageClassifier(Task):
    """Names what images show.

    An image is a path, a Pillow image, or an array (H, W) or (H, W, C) of values from 0 to 255; a list of images, or
    an array (B, H, W, C), is a batch.

    Args:
        model: `keras.Model` from images (B, H, W, 1 or 3) to logits or probabilities (B, K), K at least 2.
        class_names: K names; those of the card, or else the numbers from 0, if None.
        preprocess_input: what happens to pixels from 0 to 255 before the model: "none"; "unit", divided by 255; or a
            mode of `keras.applications.imagenet_utils.preprocess_input`: "tf", from -1 to 1; "torch", ImageNet's mean
            and standard deviation; "caffe", BGR less ImageNet's mean. That of the card, or else "none", if None.
        card: dict, what is known about the model.
        generation_config: dict; `top_k` is the one setting.

    Raises:
        UserError: if the model is no such model, the number of names is not K, or `preprocess_input` is none of these.
    """

    task = "image-classification"
    DEFAULTS = {"top_k": 3}

    def __init__(
        self,
        model: keras.Model,
        *,
        class_names: Sequence[str] | None = None,
        preprocess_input: str | None = None,
        card: Mapping[str, Any] | None = None,
        generation_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, card=card, generation_config=generation_config)
        _check_classifier(model)
        self._run_model = inference_function(model)
        num_classes = model.output_shape[1]
        names = class_names if class_names is not None else self.card.get("class_names") or range(num_classes)
        self.class_names = [str(name) for name in names]
        if len(self.class_names) != num_classes:
            raise UserError(
                f"There are {len(self.class_names)} class names, but {model.name} has {num_classes} classes."
            )
        self.preprocess_input = preprocess_input or self.card.get("preprocess_input") or "none"
        if self.preprocess_input not in PREPROCESSING:
            raise UserError(
                f"preprocess_input must be one of {', '.join(PREPROCESSING)}, got {self.preprocess_input!r}."
            )
        if self.preprocess_input in ("torch", "caffe") and model.input_shape[-1] != 3:
            raise UserError(
                f"preprocess_input={self.preprocess_input!r} is for three channels, but {model.name} takes one."
            )
        stated = bool(self.card) or _rescales(model)
        self._unknown = {
            "preprocess_input": preprocess_input is None and not stated,
            "invert": not self.card and model.input_shape[-1] == 1,
            "class_names": class_names is None and not self.card.get("class_names"),
        }

    @overload
    def classify(  # type: ignore[overload-overlap]  # a str is a sequence, too
        self,
        images: StrPath | PIL.Image.Image,
        *,
        top_k: int | None = None,
        invert: bool | Literal["auto"] = "auto",
        batch_size: int = 32,
    ) -> list[Prediction]: ...
    @overload
    def classify(
        self,
        images: Sequence[ImageLike],
        *,
        top_k: int | None = None,
        invert: bool | Literal["auto"] = "auto",
        batch_size: int = 32,
    ) -> list[list[Prediction]]: ...
    @overload
    def classify(  # an array is one image or a batch by its number of axes
        self,
        images: np.ndarray,
        *,
        top_k: int | None = None,
        invert: bool | Literal["auto"] = "auto",
        batch_size: int = 32,
    ) -> list[Any]: ...
    def classify(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        top_k: int | None = None,
        invert: bool | Literal["auto"] = "auto",
        batch_size: int = 32,
    ) -> list[Any]:
        """The most probable classes of images.

        Args:
            images: one image or a batch, see above.
            top_k: how many classes; the preset's, or 3, if None.
            invert: whether to exchange dark and light; "auto" does so for models of one channel, which take light ink
                on dark ground, where the border of the image is lighter than mid-grey.
            batch_size: images of one size that go through the model at once.

        Returns:
            list of {"label": str, "score": float}, most probable first; for a batch, a list of such lists.

        Raises:
            UserError: if an image cannot be read, or an argument is out of range.
        """
        top_k = self._settings(top_k=top_k)["top_k"]
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise UserError(f"top_k must be a positive integer, got {top_k!r}.")
        return self._map(lambda chunk, _: self._top_classes(chunk, top_k, invert), images, batch_size)

    def predict(
        self, images: ImageLike | Sequence[ImageLike], *, invert: bool | Literal["auto"] = "auto", batch_size: int = 32
    ) -> np.ndarray:
        """The probabilities of all classes.

        Args:
            images: one image or a batch, as in `classify`.
            invert: as in `classify`.
            batch_size: as in `classify`.

        Returns:
            (B, K) float64, in the order of `class_names`; B is 1 for one image.

        Raises:
            UserError: as `classify`.
        """
        batch = [images] if self._is_item(images) else images
        rows = self._map(lambda chunk, _: list(self._probabilities(chunk, invert)), batch, batch_size)
        return np.array(rows).reshape(-1, len(self.class_names))

    def preprocess(self, image: ImageLike, *, invert: bool | Literal["auto"] = "auto") -> np.ndarray:
        """What the model takes, of one image.

        Arrays that fit the model keep their values; all else becomes uint8 of the model's channels and, if the model
        takes one size alone, is resized to it (bilinear, averaging where it shrinks). A model that takes any size
        resizes images itself, so that `model.predict` and `classify` see the same. `preprocess_input` comes last.

        Args:
            image: one image.
            invert: as in `classify`.

        Returns:
            (H, W, C).

        Raises:
            UserError: if the image cannot be read, or `invert` is out of range.
        """
        pixels = self._resized(image)
        pixels = 255 - pixels if self._inverts(pixels, invert) else pixels
        if self.preprocess_input == "none":
            return pixels
        pixels = pixels.astype("float32")
        if self.preprocess_input == "unit":
            return pixels / 255
        from keras.applications.imagenet_utils import preprocess_input

        return preprocess_input(pixels, data_format="channels_last", mode=self.preprocess_input)

    def postprocess(self, outputs: npt.ArrayLike) -> np.ndarray:
        """The probabilities that a model's outputs stand for.

        Args:
            outputs: (B, K), logits or probabilities already.

        Returns:
            probabilities (B, K) float64.
        """
        outputs = np.asarray(outputs, np.float64)
        if outputs.min() >= 0 and np.abs(outputs.sum(axis=1) - 1).max() < 1e-3:
            return outputs  # the model ends in a softmax
        exponentials = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    def is_inverted(self, image: ImageLike, invert: bool | Literal["auto"] = "auto") -> bool:
        """Whether `preprocess` exchanges dark and light in an image.

        Args:
            image: one image.
            invert: as in `classify`.

        Returns:
            True if it does.
        """
        return self._inverts(self._resized(image), invert)

    def assumptions(self) -> dict[str, str]:
        """What is taken for granted of the model, since neither its card nor its layers nor an argument states it.

        Returns:
            {name of the argument that states it: what is assumed}; {} if all is known.
        """
        assumed = {
            "preprocess_input": "pixels go in as 0 to 255",
            "invert": "images with a light border are inverted",
            "class_names": "classes are called by their numbers",
        }
        return {name: words for name, words in assumed.items() if self._unknown[name]}

    @classmethod
    def _constructor_arguments(cls, preset, model):
        """The names of the classes, for a file that no card describes: of the card or metrics.json beside it."""
        if "class_names" in preset.card:
            return {}
        metrics = preset.folder / cards.METRICS_FILE
        names = cards.read_card(preset.folder).get("class_names")
        names = names or schemas.check(cards.read_json(metrics), schemas.RunMetrics, metrics).class_names
        fits = names is not None and len(names) == (model.output_shape or [None])[-1]
        return {"card": {"class_names": names}} if fits else {}

    def save_to_preset(self, folder: StrPath, *, card: Mapping[str, Any] | None = None) -> pathlib.Path:
        described = {"class_names": self.class_names, "preprocess_input": self.preprocess_input}
        return super().save_to_preset(folder, card={**described, **(card or {})})

    save_to_preset.__doc__ = Task.save_to_preset.__doc__

    def _export_plan(self):
        from keras.layers import Resizing

        from zoo.compat.keras import flatten_layers
        from zoo.exporters.export_folder import ExportedPart, ExportPlan
        from zoo.parity.records import smooth_images

        _, height, width, channels = self.model.input_shape
        # The size that the model works on, where it takes any size.
        sizes = [(layer.height, layer.width) for layer in flatten_layers(self.model) if isinstance(layer, Resizing)]
        inner = sizes[0] if sizes else (48, 48)
        fixed_shape = (1, height or inner[0], width or inner[1], channels)
        # Larger than what the model works on, where it takes any size: runtimes differ in how they shrink images.
        shape = (2, height or 100, width or 80, channels)
        large = smooth_images(np.random.default_rng(0), shape).astype("float32")
        return ExportPlan(
            parts={"model": ExportedPart(self.model, ["logits"])},
            recorded={"model": self.model, "large_images": self.model},
            inputs={"large_images": [large + np.random.default_rng(1).uniform(-30, 30, shape).astype("float32")]},
            replays=[("call", ["model"], "model"), ("call", ["model"], "large_images")],
            fixed_shapes={"model": [fixed_shape]},
            fixed_inputs={"model": [smooth_images(np.random.default_rng(0), fixed_shape).astype("float32")]},
            config=self._export_config(
                class_names=self.class_names,
                preprocess_input=self.preprocess_input,
                invert_light_backgrounds=channels == 1,
            ),
        )

    def _is_item(self, value):
        from PIL import Image

        return isinstance(value, (str, os.PathLike, Image.Image)) or getattr(value, "ndim", None) in (2, 3)

    def _top_classes(self, images, top_k, invert):
        results = []
        for scores in self._probabilities(images, invert):
            best = np.argsort(-scores, kind="stable")[:top_k]
            results.append([{"label": self.class_names[k], "score": float(scores[k])} for k in best])
        return results

    def _probabilities(self, images, invert):
        """Probabilities (B, K) of a list of images; those of one size go through the model together."""
        import keras

        arrays = [self.preprocess(image, invert=invert) for image in images]
        groups = {}
        for index, array in enumerate(arrays):
            groups.setdefault((array.shape, array.dtype), []).append(index)
        probabilities = np.zeros((len(arrays), len(self.class_names)))
        for indices in groups.values():
            batch = np.stack([arrays[index] for index in indices])
            outputs = self._run_model(batch)
            probabilities[indices] = self.postprocess(keras.ops.convert_to_numpy(outputs))
        return probabilities

    def _resized(self, image):
        """One image as (H, W, C) of the model's channels, and of a size that it takes."""
        from PIL import Image

        _, height, width, channels = self.model.input_shape
        if getattr(image, "ndim", None) in (2, 3):
            pixels = np.asarray(image)
            pixels = pixels[..., None] if pixels.ndim == 2 else pixels
            if pixels.shape == (height or pixels.shape[0], width or pixels.shape[1], channels):
                return pixels
            if pixels.dtype.kind == "f":
                image = np.clip(np.round(pixels), 0, 255).astype("uint8")
        picture = Image.fromarray(load_image(image)).convert("L" if channels == 1 else "RGB")
        size = (width or picture.width, height or picture.height)
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.BILINEAR)
        return np.asarray(picture).reshape(picture.height, picture.width, channels)

    def _inverts(self, pixels, invert):
        if invert not in ("auto", True, False):
            raise UserError(f'invert must be "auto", True or False, got {invert!r}.')
        if invert == "auto":
            border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
            return bool(pixels.shape[2] == 1 and border.mean() > 127.5)
        return invert


def _rescales(model):
    """Whether a model changes the values of its pixels itself."""
    from keras import layers

    from zoo.compat.keras import flatten_layers

    return any(isinstance(layer, (layers.Rescaling, layers.Normalization)) for layer in flatten_layers(model))


def _check_classifier(model):
    """Raise UserError unless the model maps images (B, H, W, 1 or 3) to numbers for two classes or more (B, K)."""
    takes, gives = getattr(model, "input_shape", None), getattr(model, "output_shape", None)
    images = isinstance(takes, tuple) and len(takes) == 4 and takes[-1] in (1, 3)
    if not images or not isinstance(gives, tuple) or len(gives) != 2 or (gives[1] or 0) < 2:
        raise UserError(
            f"{model.name} maps {takes} to {gives}, but an image classifier maps (batch, height, width, 1 or 3) to "
            "(batch, classes): choose another model."
        )
