"""The images of `zoo generate`: PNG files that carry their settings, a strip and an animation of how they came about."""

import pathlib
import re
import sys
import time
import warnings

import keras

from zoo import __version__
from zoo.cli.common import log
from zoo.errors import UserError
from zoo.io import images
from zoo.tasks.text_to_image import TextToImage

_BAR = 30  # characters of the progress bar
_MAX_STRIP_SIZE = 128  # pixels: up to this size an image always comes with a strip


def generate_images(
    preset,
    prompt,
    *,
    seed=0,
    num_images=None,
    image=None,
    mask_image=None,
    save_strip=None,
    save_gif=None,
    output=None,
    **settings,
):
    """Generate images of a prompt and write them.

    Args:
        preset, prompt, seed: see `TextToImage`.
        num_images: number of images; 1 if None.
        image, mask_image: image files, or None.
        save_strip, save_gif: files to write of intermediate images, or None; images of up to 128x128 always come with a
            strip, beside them if no file is named.
        output: PNG file to write; the seed is added to its name where there are several. None for a name made of the
            prompt.
        **settings: further arguments of `TextToImage.stream`; None for the preset's.

    Raises:
        UserError: if an argument is out of range, or a file cannot be read or written; before anything is generated.
    """
    task, output = TextToImage.from_preset(preset), pathlib.Path(output or _file_name(prompt))
    if save_strip is None and task.pipeline_config["image_size"] <= _MAX_STRIP_SIZE:
        save_strip = output.with_stem(f"{output.stem}-steps")
    for path, suffixes in ((output, [".png"]), (save_gif, [".gif"]), (save_strip, [".png", ".jpg", ".jpeg", ".webp"])):
        _check_writable(path, suffixes)
    num_images = num_images or 1
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *rest: print(f"note: {message}", file=sys.stderr)
        steps = task.stream(
            prompt, image=image, mask_image=mask_image, seed=seed, num_images_per_prompt=num_images, **settings
        )
    start, frames = time.perf_counter(), {"strip": [], "gif": []}
    files = {"strip": (save_strip, images.MAX_STRIP_FRAMES), "gif": (save_gif, images.MAX_GIF_FRAMES)}
    for step in steps:
        _show_progress(step, start)
        shown = [
            kind
            for kind, (path, max_frames) in files.items()
            if path and step.step in images.frame_steps(step.num_evaluations, max_frames)
        ]
        if shown or step.step == step.num_evaluations:
            pixels = task.decode(step.latents)
            for kind in shown:
                frames[kind].append(pixels)
    seconds = time.perf_counter() - start

    settings = task.resolve_settings(**settings)
    metadata = {"model": task.card.get("name") or pathlib.Path(preset).name, "prompt": prompt}
    metadata |= {name: settings[name] for name in ("negative_prompt", "num_steps", "guidance_scale", "sampler")}
    metadata["size"] = f"{pixels.shape[2]}x{pixels.shape[1]}"
    metadata |= {"eta": settings["eta"]} if settings["sampler"] == "ddim" else {}
    metadata |= {"image": image, "strength": settings["strength"]} if image is not None else {}
    metadata |= {"mask_image": mask_image} if mask_image is not None else {}
    metadata["Software"] = f"zoo {__version__}"
    for index, image_pixels in enumerate(pixels):
        path = output if num_images == 1 else output.with_stem(f"{output.stem}-{seed + index}")
        texts = metadata | {"seed": seed + index}
        images.write_png(path, image_pixels, {key: str(value) for key, value in texts.items()})
        log(f"{path}: {metadata['size']}, seed {seed + index}")
    if save_strip:
        images.write_strip(save_strip, frames["strip"])
        shown = images.frame_steps(step.num_evaluations, images.MAX_STRIP_FRAMES)
        log(f"{save_strip}: the image after steps {', '.join(map(str, sorted(shown)))}")
    if save_gif:
        images.write_gif(save_gif, frames["gif"])
        log(f"{save_gif}: {len(frames['gif'])} of {step.num_evaluations} steps")
