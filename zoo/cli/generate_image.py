"""The command `zoo draw`: a prompt into picture files that carry all settings, with a strip and an animation."""

import pathlib
import re
import sys
import time
import warnings

import keras

from zoo import __version__
from zoo.errors import UserError
from zoo.generation.diffusion.noise_sampler import skipped
from zoo.io import images as pictures
from zoo.tasks.text_to_image import load_painter, read_settings

BAR = 30  # characters of the progress bar
SMALL = 128  # pixels: up to this size a picture comes with a strip


def draw(
    folder,
    prompt,
    *,
    negative="",
    steps=None,
    guidance=None,
    sampler=None,
    eta=0.0,
    seed=0,
    count=1,
    size=None,
    start=None,
    strength=None,
    mask=None,
    strip=None,
    gif=None,
    output=None,
    say=print,
):
    """Draw pictures of a prompt and write them.

    Args:
        folder: what `zoo convert stable-diffusion` wrote.
        prompt, negative, eta, count, seed, size: see `Painter.draw`.
        steps, guidance: numbers; None for those of the model's pipeline.json, else 30 and 7.5.
        sampler: a name; None for what the model was published with.
        start: picture file to begin with, or None.
        strength: None for 0.8, or with a mask 1.
        mask: picture file, white where `start` is to be drawn anew, or None.
        strip, gif: files to write of how the pictures came about, or None; pictures of up to 128x128 always come with
            a strip, beside them if no file is named.
        output: PNG file to write; the seed is added to its name where there are several. None for a name made of the
            prompt.
        say: is given each line of what was done.

    Raises:
        UserError: if an option is out of range, or a file cannot be read or written; before anything is drawn.
    """
    settings, output = read_settings(folder), pathlib.Path(output or _name(prompt))
    if strip is None and settings["image_size"] <= SMALL:
        strip = output.with_stem(f"{output.stem}-steps")
    for path, suffixes in ((output, [".png"]), (gif, [".gif"]), (strip, [".png", ".jpg", ".jpeg", ".webp"])):
        _check_writable(path, suffixes)
    steps = settings.get("steps", 30) if steps is None else steps
    guidance = settings.get("guidance", 7.5) if guidance is None else guidance
    options = {"negative": negative, "steps": steps, "guidance": guidance, "eta": eta, "count": count, "seed": seed}
    options |= {"sampler": sampler or settings["sampler"], "size": size}
    if start is not None:
        image, painted = pictures.read_start(
            start,
            mask,
            size=size,
            multiple=settings["downsampling"],
            largest=2 * settings["image_size"],
        )
        if strength is None:
            strength = 0.8 if mask is None else 1.0
        options |= {"image": image, "mask": painted, "strength": strength}
    painter = load_painter(folder, encoder=start is not None)
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *rest: print(f"note: {message}", file=sys.stderr)
        walk = painter.draw(prompt, **options)
    began, frames = time.perf_counter(), {"strip": [], "gif": []}
    rooms = {"strip": (strip, pictures.STRIP), "gif": (gif, pictures.ANIMATION)}
    for step in walk:
        _progress(step, began)
        wanted = [
            key for key, (path, most) in rooms.items() if path and step.number in pictures.moments(step.total, most)
        ]
        last = step.number == step.total
        if wanted or last:
            drawn = painter.pictures(step.latents)
            for key in wanted:
                frames[key].append(drawn)
    seconds = time.perf_counter() - began

    facts = {"model": pathlib.Path(folder).name, "prompt": prompt, "negative": negative, "steps": steps}
    facts |= {"guidance": guidance, "sampler": options["sampler"], "size": f"{drawn.shape[2]}x{drawn.shape[1]}"}
    facts |= {"eta": eta} if options["sampler"] == "ddim" else {}
    facts |= {"from": start, "strength": strength} if start is not None else {}
    facts |= {"mask": mask} if mask is not None else {}
    facts["Software"] = f"zoo {__version__}"
    for place, picture in enumerate(drawn):
        path = output if count == 1 else output.with_stem(f"{output.stem}-{seed + place}")
        texts = facts | {"seed": seed + place}
        pictures.write_png(path, picture, {key: str(value) for key, value in texts.items()})
        say(f"{path}: {facts['size']}, seed {seed + place}")
    if strip:
        pictures.write_strip(strip, frames["strip"])
        say(f"{strip}: the picture after steps {_listed(pictures.moments(step.total, pictures.STRIP))}")
    if gif:
        pictures.write_gif(gif, frames["gif"])
        say(f"{gif}: {len(frames['gif'])} of {step.total} steps")
    taken = f"{steps - left_out} of {steps}" if (left_out := skipped(steps, options.get("strength", 1.0))) else steps
    say(f"{taken} steps of {options['sampler']} in {seconds:.1f} s on {keras.backend.backend()}")


def _listed(numbers):
    return ", ".join(map(str, sorted(numbers)))


def _name(prompt):
    """A file name made of a prompt."""
    return f"{'-'.join(re.findall('[a-z0-9]+', prompt.lower()))[:40].strip('-') or 'drawing'}.png"


def _check_writable(path, suffixes):
    """Raise UserError unless a file could be written there; None is no file."""
    if path is None:
        return
    path = pathlib.Path(path)
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{path} does not end in {' or '.join(suffixes)}: give another name.")
    if not path.parent.is_dir():
        raise UserError(f"There is no folder {path.parent} to write {path.name} to: make it, or name another.")


def _progress(step, began):
    """Show how far it is, in a terminal."""
    if not sys.stderr.isatty():
        return
    full = BAR * step.number // step.total
    rate = (time.perf_counter() - began) / step.number
    bar = "█" * full + "░" * (BAR - full)
    end = "\n" if step.number == step.total else ""
    line = f"\r{bar} {step.number}/{step.total}  {rate:.2f} s a step, {rate * (step.total - step.number):.0f} s left "
    print(line, end=end, file=sys.stderr, flush=True)
