"""What a classifier sees in picture files of any kind: the likeliest classes of each, as text."""

import numpy as np

from zoo.errors import UserError
from zoo.io import files

INVERT = ("auto", "yes", "no")
BAR = 30  # characters for a probability of 1


def read_picture(path):
    """Read a picture as Pillow RGB, upright as its EXIF data says, with white behind what is transparent.

    Raises:
        UserError: if the file is missing or not a picture.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith(("I", "F")):  # 16 bits or more a pixel, which Pillow would cut off at 255
                image = _to_eight_bits(image)
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"There is no picture at {path}: give the path of an image file.") from error
    except Exception as error:  # Pillow raises many kinds for what it cannot read
        reason = getattr(error, "strerror", None) or "Pillow cannot read it"
        raise UserError(f"{path} is not a picture ({reason}): give an image file, e.g. PNG or JPEG.") from error


def _to_eight_bits(image):
    from PIL import Image

    pixels = np.asarray(image, np.float64)
    if image.mode.startswith("I;16") or pixels.max() > 255:
        pixels = pixels / 257
    elif image.mode == "F" and pixels.max() <= 1:
        pixels = pixels * 255
    return Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))


def check_classifier(model):
    """Raise UserError unless the model maps images (N, H, W, 1 or 3) to numbers for two classes or more (N, K)."""
    takes, gives = getattr(model, "input_shape", None), getattr(model, "output_shape", None)
    pictures = isinstance(takes, tuple) and len(takes) == 4 and takes[-1] in (1, 3)
    if not pictures or not isinstance(gives, tuple) or len(gives) != 2 or (gives[1] or 0) < 2:
        raise UserError(
            f"{model.name} maps {takes} to {gives}, but to classify pictures takes a model from (batch, height, width, "
            "1 or 3) to (batch, classes): choose another with --model."
        )


def prepare(picture, model, invert="auto"):
    """Make of a Pillow picture what a classifier takes.

    Args:
        picture: what `read_picture` returns.
        model: the classifier.
        invert: "yes", "no", or "auto": models of one channel take light ink on dark ground, so for them a picture is
            inverted when its border is lighter than mid-grey.

    Returns:
        (array (1, H, W, C) uint8, whether it was inverted).
    """
    from PIL import Image

    _, height, width, channels = model.input_shape
    picture = picture.convert("L" if channels == 1 else "RGB")
    if height and width:
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    elif limit := _largest_useful_side(model):
        picture.thumbnail((limit, limit), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture).reshape(picture.height, picture.width, channels)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    inverted = invert == "yes" or (invert == "auto" and channels == 1 and border.mean() > 127.5)
    return (255 - pixels if inverted else pixels)[None], inverted


def _largest_useful_side(model):
    """Twice the size that the model's own resizing layer brings pictures to; None if it has none.

    That layer takes single pixels and would miss the strokes of a large scan, which Pillow averages.
    """
    import keras

    resizing = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Resizing)]
    return max((2 * max(layer.height, layer.width) for layer in resizing), default=None)


def probabilities(model, pixels):
    """Probabilities (N, K) in float64 that a classifier gives for images (N, H, W, C)."""
    import keras

    outputs = keras.ops.convert_to_numpy(model(keras.ops.convert_to_tensor(pixels), training=False))
    outputs = outputs.astype(np.float64)
    if outputs.min() >= 0 and np.abs(outputs.sum(axis=1) - 1).max() < 1e-3:
        return outputs  # the model ends in a softmax of its own
    exponentials = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def classify(paths, load, *, top=3, invert="auto", say=print):
    """Classify picture files; the report goes to `say`, a line at a time.

    Args:
        paths: picture files, all of which are read before the model is loaded.
        load: function that returns (`keras.Model`, path of its file).
        top: how many classes to name.
        invert: "auto", "yes" or "no"; see `Classifier.prepare`.

    Raises:
        UserError: if a file is not a picture or the model no classifier.
    """
    if top < 1:
        raise UserError(f"--top must be at least 1, got {top}.")
    pictures = [(path, read_picture(path)) for path in paths]
    model, model_path = load()
    check_classifier(model)
    card = files.read_card(model_path) or {}
    names = [str(name) for name in card.get("class_names") or range(model.output_shape[1])]
    if len(names) != model.output_shape[1]:
        raise UserError(f"The card of {model_path} names {len(names)} classes, the model has {model.output_shape[1]}.")
    for path, picture in pictures:
        pixels, inverted = prepare(picture, model, invert)
        p = probabilities(model, pixels)[0]
        best = np.argsort(-p, kind="stable")[:top]
        width = max(len(names[k]) for k in best)
        remark = (
            {"auto": "  (inverted, because its border is light)", "yes": "  (inverted)"}[invert] if inverted else ""
        )
        say(f"{path}{remark}")
        for k in best:
            say(f"  {names[k]:<{width}}  {p[k]:>6.1%}  {'█' * round(BAR * p[k])}".rstrip())
