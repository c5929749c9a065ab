"""Random affine augmentation that stays inside the compiled step on every backend.

`keras.layers.RandomRotation` does the same on paper, but in Keras 3.15 it declares `supports_jit = False` (so JAX
falls back to running the whole step op by op) and on PyTorch it resamples image by image in a Python loop. This
layer is the same bilinear resampling as one batched gather.

Letters: B batch, H height, W width, C channels.
"""

import math
from typing import Any

import keras
from keras import ops

from zoo.typing import Tensor


@keras.saving.register_keras_serializable("zoo")
class RandomAffine(keras.layers.Layer):
    """Rotate, scale, shear and shift each image of a batch by its own random amount; the identity at inference.

    The output pixel at p (measured from the image centre) is the bilinear sample of the input at
    `M p + t`, where `M = rotation @ shear / scale`. Samples outside the image take the nearest edge pixel.
    Input and output are float tensors (B, H, W, C).

    Source: the inverse-mapping formulation of affine warps, e.g. Szeliski, "Computer Vision: Algorithms and
    Applications", section 3.6.1.

    Args:
        rotation: largest rotation either way, in degrees.
        translation: largest shift either way along each axis, as a fraction of the side.
        scale: largest change of size either way; 0.1 means a factor between 0.9 and 1.1.
        shear: largest shear angle either way, in degrees.
        seed: integer seed of the layer's own random stream, or None.
        **kwargs: those of `keras.layers.Layer`.

    Raises:
        ValueError: if an amount is negative, or `scale` is 1 or more.
    """

    def __init__(
        self,
        *,
        rotation: float = 0.0,
        translation: float = 0.0,
        scale: float = 0.0,
        shear: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        amounts = {"rotation": rotation, "translation": translation, "scale": scale, "shear": shear}
        for argument, value in amounts.items():
            if value < 0:
                raise ValueError(f"{argument} must not be negative, got {value}.")
        if scale >= 1:
            raise ValueError(f"scale must be below 1 (0.1 means factors between 0.9 and 1.1), got {scale}.")
        self.rotation, self.translation, self.scale, self.shear = rotation, translation, scale, shear
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.built = True

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def call(self, images: Tensor, training: bool = False) -> Tensor:
        if not training:
            return images
        # (B, 5) random numbers in [-1, 1]: rotation, shear, scale, shift in x, shift in y.
        uniform = keras.random.uniform((ops.shape(images)[0], 5), -1.0, 1.0, seed=self.seed_generator)
        angle = uniform[:, 0] * math.radians(self.rotation)
        shear = ops.tan(uniform[:, 1] * math.radians(self.shear))
        factor = 1.0 + uniform[:, 2] * self.scale
        cos, sin = ops.cos(angle) / factor, ops.sin(angle) / factor
        # rotation @ [[1, shear], [0, 1]] / scale, one 2x2 matrix an image
        matrix = ops.stack([cos, cos * shear - sin, sin, sin * shear + cos], axis=1)  # (B, 4)
        return affine_resample(images, matrix, uniform[:, 3:] * self.translation)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        names = ("rotation", "translation", "scale", "shear", "seed")
        return config | {name: getattr(self, name) for name in names}


def affine_resample(images: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """Resample images under an affine map about their centre, bilinearly, repeating the edge outside.

    Args:
        images: float tensor (B, H, W, C) with static H, W and C.
        matrix: (B, 4), rows of the 2x2 map (xx, xy, yx, yy) from output to input offsets, in pixels.
        shift: (B, 2), shift (x, y) as a fraction of the width and the height.

    Returns:
        Float tensor (B, H, W, C).
    """
    height, width, channels = images.shape[1:]
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    grid_y = ops.reshape(ops.repeat(ops.arange(height, dtype="float32") - centre_y, width), (1, -1))  # (1, H·W)
    grid_x = ops.reshape(ops.tile(ops.arange(width, dtype="float32") - centre_x, [height]), (1, -1))  # (1, H·W)
    x = matrix[:, 0:1] * grid_x + matrix[:, 1:2] * grid_y + shift[:, 0:1] * width + centre_x  # (B, H·W)
    y = matrix[:, 2:3] * grid_x + matrix[:, 3:4] * grid_y + shift[:, 1:2] * height + centre_y
    x, y = ops.clip(x, 0.0, width - 1.0), ops.clip(y, 0.0, height - 1.0)
    # The last row and column are reached with weight 1 on the far neighbour, so 0 <= left <= W - 2.
    left, top = ops.clip(ops.floor(x), 0, width - 2), ops.clip(ops.floor(y), 0, height - 2)
    right_weight, bottom_weight = (x - left)[..., None], (y - top)[..., None]  # (B, H·W, 1)
    index = ops.cast(top * width + left, "int32")  # (B, H·W)
    pixels = ops.reshape(images, (-1, height * width, channels))  # (B, H·W, C)

    def at(offset):
        return ops.take_along_axis(pixels, (index + offset)[..., None], axis=1)  # (B, H·W, C)

    upper = at(0) * (1 - right_weight) + at(1) * right_weight
    lower = at(width) * (1 - right_weight) + at(width + 1) * right_weight
    return ops.reshape(upper * (1 - bottom_weight) + lower * bottom_weight, (-1, height, width, channels))
