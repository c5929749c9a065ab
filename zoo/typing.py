"""Words that type hints share."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image

StrPath: TypeAlias = str | os.PathLike[str]
ImageLike: TypeAlias = "StrPath | PIL.Image.Image | np.ndarray"  # one image; arrays (H, W) or (H, W, C)
Tensor: TypeAlias = Any  # of Keras, TensorFlow, JAX or PyTorch, which share no type
Log: TypeAlias = Callable[[str], object]  # takes a line, as `print` does
