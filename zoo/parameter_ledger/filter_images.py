"""The filters of a convolution as an image, and images as PNG files."""

import struct
import zlib

import keras
import numpy as np
from keras import layers

_MAX_TILES = 64  # filters, or slices of them, in an image


def filter_image(layer: keras.layers.Layer) -> tuple[np.ndarray, str]:
    """The filters of a 2-D convolution as an image, a pixel for each weight.

    Args:
        layer: a built `Conv2D` or `DepthwiseConv2D`.

    Returns:
        (RGBA pixels, uint8; a caption). Colours are scaled to the largest weight, symmetric about zero: grey for one
        channel in, RGB for three, blue below and red above zero for slices of more.
    """
    kernel = np.nan_to_num(np.asarray(keras.ops.convert_to_numpy(layer.kernel), dtype="float32"))
    limit = float(np.abs(kernel).max())
    kernel = kernel / (limit or 1)
    height, width, channels, filters = kernel.shape
    columns, scale = 8, f"White is 0, full red +{limit:.2g}, full blue −{limit:.2g}."
    if isinstance(layer, layers.DepthwiseConv2D):
        tiles = _diverging(kernel.reshape(height, width, -1).transpose(2, 0, 1)[:_MAX_TILES])
        what = f"{_num_filters_text(channels * filters)} of {height}·{width} weights, {filters} for each channel"
    elif channels in (1, 3):
        tiles = np.round(127.5 + 127.5 * kernel.transpose(3, 0, 1, 2)[:_MAX_TILES]).astype("uint8")
        tiles = tiles.repeat(3 // channels, axis=-1)
        drawn = " in: red, green and blue" if channels == 3 else ""
        what = f"{_num_filters_text(filters)} of {height}·{width} weights for each channel{drawn}"
        scale = f"Mid-grey is 0, full brightness +{limit:.2g}, black −{limit:.2g}."
    else:
        down, columns = min(8, filters), min(8, channels)
        tiles = _diverging(kernel[:, :, :columns, :down].transpose(3, 2, 0, 1).reshape(-1, height, width))
        what = (
            f"Slices of {height}·{width} weights: a row for each of the first {down} of {filters:,} filters, "
            f"a column for each of the first {columns} of {channels:,} channels that a filter takes"
        )
    return _tiled(tiles, columns), f"{what}. {scale}"


def _num_filters_text(number):
    """The number of filters shown, in words."""
    if number > _MAX_TILES:
        return f"The first {_MAX_TILES} of {number:,} filters"
    return "1 filter" if number == 1 else f"{number} filters"


def _diverging(values):
    """Colours of values in -1…1: blue, white at zero, red."""
    ends = np.where(values[..., None] < 0, np.array([33, 102, 172.0]), np.array([178, 24, 43.0]))
    return np.round(255 + np.abs(values[..., None]) * (ends - 255)).astype("uint8")


def _tiled(tiles, columns):
    """RGB tiles (n, height, width, 3) in a grid; between them transparent lines as wide as a weight."""
    number, height, width, _ = tiles.shape
    columns = min(columns, number)
    rows = -(-number // columns)
    image = np.zeros((rows * columns, height + 1, width + 1, 4), "uint8")
    image[:number, :height, :width, :3] = tiles
    image[:number, :height, :width, 3] = 255
    grid = image.reshape(rows, columns, height + 1, width + 1, 4).swapaxes(1, 2)
    return grid.reshape(rows * (height + 1), columns * (width + 1), 4)[:-1, :-1]


def encode_png(pixels: np.ndarray, scale: int = 1) -> bytes:
    """Encode pixels as a PNG file.

    Args:
        pixels: RGBA (height, width, 4) uint8.
        scale: how often each pixel is repeated, both ways.

    Returns:
        the bytes of the file.
    """

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    wide = pixels.repeat(scale, axis=1)
    height, width = scale * len(wide), wide.shape[1]
    # A line as it is (filter 0), then repeated as no difference from the one above (filter 2).
    again = (b"\2" + bytes(4 * width)) * (scale - 1)
    lines = b"".join(b"\0" + line.tobytes() + again for line in wide)
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
