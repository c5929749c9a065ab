"""Image files: reading them, writing PNG files with metadata, strips and animations."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from zoo.errors import UserError
from zoo.io import files
from zoo.typing import ImageLike, StrPath

if TYPE_CHECKING:
    import PIL.Image

MAX_STRIP_FRAMES, MAX_GIF_FRAMES = 8, 24
_FRAME_MILLISECONDS = 120  # of a frame in an animation; the last is shown ten times as long


def load_image(image: ImageLike) -> np.ndarray:
    """Load an image as RGB pixels: upright as its EXIF data says, with a white background behind transparency.

    Args:
        image: path of an image file, `PIL.Image.Image`, or array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of integers
            from 0 to 255.

    Returns:
        array (H, W, 3) uint8.

    Raises:
        UserError: if the file is missing or no image, or the array is none.

    Example:
        >>> load_image("docs/images/digit.png").shape
        (28, 28, 3)
    """
    return np.asarray(open_image(image))


def load_init_image(
    image: ImageLike,
    mask_image: ImageLike | None = None,
    *,
    size: Sequence[int] | None = None,
    multiple: int = 8,
    max_side: int = 1024,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Load the initial image of image-to-image generation, and the mask of what inpainting repaints.

    Args:
        image: as in `load_image`.
        mask_image: as `image`, of the same size, white (or True) where `image` is to be repainted; or None.
        size: (width, height) to which both are resized; None for their own, rounded down to a multiple, of which the
            longer side is at most `max_side`.
        multiple: number that divides width and height.
        max_side: see `size`.

    Returns:
        (array (H, W, 3) uint8, mask (H, W) bool or None).

    Raises:
        UserError: if a file is not an image, or the mask has another size.
    """
    from PIL import Image

    picture = open_image(image)
    if size is None:
        scale = min(1.0, max_side / max(picture.size))
        size = [max(multiple, int(side * scale) // multiple * multiple) for side in picture.size]
    width, height = size
    pixels = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))
    if mask_image is None:
        return pixels, None
    mask = open_image(mask_image).convert("L")
    if mask.size != picture.size:
        sizes = [f"{width}x{height}" for width, height in (mask.size, picture.size)]
        names = [f" {one}" if isinstance(one, (str, os.PathLike)) else "" for one in (mask_image, image)]
        raise UserError(
            f"The mask{names[0]} is {sizes[0]} and the image{names[1]} {sizes[1]}: give a mask of the image's size."
        )
    return pixels, np.asarray(mask.resize((width, height), Image.Resampling.LANCZOS)) >= 128


def check_image_path(path: StrPath, suffixes: Sequence[str]) -> None:
    """Check that an image file could be written.

    Args:
        path: of the file, in a folder that exists.
        suffixes: those allowed, e.g. [".png"].

    Raises:
        UserError: if it could not.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{path} does not end in {' or '.join(suffixes)}: give another name.")
    if not path.parent.is_dir():
        raise UserError(f"There is no folder {path.parent} to write {path.name} to: make it, or name another.")


def write_png(path: StrPath, image: np.ndarray, metadata: Mapping[str, str]) -> None:
    """Write an image as PNG.

    Args:
        path: of the file.
        image: (H, W, 3) uint8.
        metadata: written as text chunks.

    Raises:
        UserError: if the file cannot be written.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, text in metadata.items():
        info.add_itxt(key, text)
    _save(Image.fromarray(image), path, format="PNG", pnginfo=info)


def write_strip(path: StrPath, frames: Sequence[np.ndarray]) -> None:
    """Write a grid with a row of frames for each image.

    Args:
        path: of the image file.
        frames: arrays (B, H, W, 3) uint8, one a column.

    Raises:
        UserError: if the file cannot be written.
    """
    from PIL import Image

    _save(Image.fromarray(_side_by_side([np.concatenate(frame) for frame in frames])), path)


def write_gif(path: StrPath, frames: Sequence[np.ndarray]) -> None:
    """Write an animation of images side by side.

    Args:
        path: of the GIF file.
        frames: arrays (B, H, W, 3) uint8, one after the other.

    Raises:
        UserError: if the file cannot be written.
    """
    from PIL import Image

    first, *rest = (Image.fromarray(_side_by_side(frame)) for frame in frames)
    duration = [_FRAME_MILLISECONDS] * len(rest) + [10 * _FRAME_MILLISECONDS]
    _save(first, path, format="GIF", save_all=True, append_images=rest, duration=duration, loop=0)


def frame_steps(num_steps: int, max_frames: int) -> set[int]:
    """The steps of which a frame is shown, evenly spread, the last among them.

    Args:
        num_steps: number of steps.
        max_frames: most frames.

    Returns:
        a set of numbers counted from 1.
    """
    return set(np.linspace(num_steps, 1, min(num_steps, max_frames)).round().astype(int).tolist())


def open_image(image: ImageLike) -> PIL.Image.Image:
    """Open an image for Pillow, as `load_image` does.

    Args:
        image: as in `load_image`.

    Returns:
        `PIL.Image.Image` in the mode RGB; `image` itself if it is one and needs no change.

    Raises:
        UserError: as `load_image`.
    """
    from PIL import Image

    if isinstance(image, Image.Image):
        return _to_rgb(image)
    if isinstance(image, (str, os.PathLike)):
        try:
            with Image.open(image) as opened:
                opened.load()
                return _to_rgb(opened)
        except FileNotFoundError as error:
            raise UserError(f"There is no image at {image}: give the path of an image file.") from error
        except Exception as error:  # Pillow raises many kinds for what it cannot read
            reason = getattr(error, "strerror", None) or "Pillow cannot read it"
            raise UserError(f"{image} is not an image ({reason}): give an image file, e.g. PNG or JPEG.") from error
    pixels = np.asarray(image)
    if pixels.dtype == bool:
        pixels = pixels * np.uint8(255)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    shaped = pixels.size and (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (3, 4)))
    if not shaped or pixels.dtype.kind not in "iu" or pixels.min() < 0 or pixels.max() > 255:
        raise UserError(
            f"An image is (H, W), (H, W, 3) or (H, W, 4), integers from 0 to 255, got {pixels.dtype} of shape "
            f"{pixels.shape}: convert it, or give the path of an image file."
        )
    return _to_rgb(Image.fromarray(pixels.astype(np.uint8)))


def _to_rgb(image):
    from PIL import ExifTags, Image, ImageOps

    image.load()  # of a PNG file, EXIF data may stand behind the pixels
    # Copies that change nothing are left out: they take a quarter of the time of decoding a JPEG file and resizing it.
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # 16 bits or more a pixel, which Pillow would clip at 255
        pixels = np.asarray(image, np.float64)
        if image.mode.startswith("I;16") or pixels.max() > 255:
            pixels = pixels / 257
        elif image.mode == "F" and pixels.max() <= 1:
            pixels = pixels * 255
        image = Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _side_by_side(images):
    """Images (H, W, 3) of the same height as one."""
    return np.concatenate(list(images), axis=1)


def _save(image, path, **options):
    try:
        with files.atomic_write(path) as temporary:
            image.save(temporary, **options)
    except (OSError, ValueError) as error:  # Pillow raises the latter for a suffix that it does not know
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"Cannot write {path} ({reason}): name another file.") from error
