"""Picture files: read to begin a drawing with, written with the settings inside, strips and animations."""

import numpy as np

from zoo.errors import UserError
from zoo.io import files
from zoo.tasks.image_classifier import read_picture

STRIP, ANIMATION = 8, 24  # the most pictures in a strip and in an animation
MILLISECONDS = 120  # of a picture in an animation; the last stays ten times as long


def read_start(path, mask_path=None, *, size=None, multiple=8, largest=1024):
    """Read a picture to begin a drawing with, and a mask of what is to be drawn anew.

    Args:
        path: picture file.
        mask_path: picture file of the same size, white where `path` is to be drawn anew, or None.
        size: (width, height) to bring both to; None for their own, rounded down to the multiple, of which the longer
            side is made `largest` where it is more.
        multiple: what width and height must be divisible by.
        largest: see `size`.

    Returns:
        (array (H, W, 3) uint8, mask (H, W) bool or None).

    Raises:
        UserError: if a file is not a picture, or the mask has another size.
    """
    from PIL import Image

    picture = read_picture(path)
    if size is None:
        shrink = min(1.0, largest / max(picture.size))
        size = [max(multiple, int(side * shrink) // multiple * multiple) for side in picture.size]
    pixels = np.asarray(picture.resize(tuple(size), Image.Resampling.LANCZOS))
    if mask_path is None:
        return pixels, None
    mask = read_picture(mask_path).convert("L")
    if mask.size != picture.size:
        told = [f"{width}x{height}" for width, height in (mask.size, picture.size)]
        raise UserError(f"The mask {mask_path} is {told[0]} and the picture {path} {told[1]}: make them alike.")
    return pixels, np.asarray(mask.resize(tuple(size), Image.Resampling.LANCZOS)) >= 128


def write_png(path, pixels, texts):
    """Write pixels (H, W, 3) uint8 as PNG, with `texts`, a dict of str, inside.

    Raises:
        UserError: if the file cannot be written.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, text in texts.items():
        info.add_itxt(key, text)
    _save(Image.fromarray(pixels), path, format="PNG", pnginfo=info)


def write_strip(path, frames):
    """Write a row of pictures for each drawing: `frames` is a list of arrays (B, H, W, 3), one for each moment."""
    from PIL import Image

    _save(Image.fromarray(side_by_side([np.concatenate(frame) for frame in frames])), path)


def write_gif(path, frames):
    """Write an animation of drawings side by side; `frames` as in `write_strip`."""
    from PIL import Image

    first, *rest = (Image.fromarray(side_by_side(frame)) for frame in frames)
    duration = [MILLISECONDS] * len(rest) + [10 * MILLISECONDS]
    _save(first, path, format="GIF", save_all=True, append_images=rest, duration=duration, loop=0)


def side_by_side(pictures):
    """Pictures (H, W, 3) of the same height as one."""
    return np.concatenate(list(pictures), axis=1)


def moments(total, most):
    """Which of `total` steps are shown where there is room for `most` pictures: numbers, the last among them."""
    return set(np.linspace(total, 1, min(total, most)).round().astype(int).tolist())


def _save(image, path, **options):
    try:
        with files.atomic(path) as temporary:
            image.save(temporary, **options)
    except (OSError, ValueError) as error:  # Pillow raises the latter for a suffix that it does not know
        why = getattr(error, "strerror", None) or error
        raise UserError(f"Cannot write {path} ({why}): name another file.") from error
