"""Scores of a latent diffusion that was trained on captioned pictures of one's own, for which there is no classifier.

How often the right caption ranks first among up to a hundred, by the CLIP model that trained the text encoder: of
held-back pictures, and of the images generated for their captions (R-precision, Park et al. 2021, "Benchmark for
compositional text-to-image synthesis"). It was trained on the same data: it tells whether an image shows what its
caption says, not how good it looks; samples.png shows that.
"""

from __future__ import annotations

import pathlib
import warnings
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from zoo.evaluation.diffusion import GUIDANCE_SCALES, NUM_STEPS, smallest_sufficient_guidance
from zoo.evaluation.diffusion_plots import plot_grid
from zoo.io import files
from zoo.io.model_files import load_model
from zoo.presets import find_preset
from zoo.tasks.text_to_image import TextToImage
from zoo.typing import StrPath

if TYPE_CHECKING:
    from zoo.data.captioned_folder import CaptionedFolder

CANDIDATES = 100  # captions of which one is right
DEFAULT_GUIDANCE = 2.0  # where nothing scores the images
_COLUMNS = 10  # of samples.png


def caption_precision(clip_model: keras.Model, images: np.ndarray, token_ids: np.ndarray) -> float:
    """Fraction of images whose own caption ranks first among at most a hundred.

    Args:
        clip_model: [token ids, images] -> logits, a row per image.
        images: (N, H, W, 3) uint8.
        token_ids: (N, S), of different captions, in the order of the images.

    Returns:
        the fraction.
    """
    parts = np.array_split(np.arange(len(images)), -(-len(images) // CANDIDATES))
    correct = 0
    for rows in parts:
        logits = clip_model.predict_on_batch((token_ids[rows], images[rows].astype("float32")))
        correct += int((keras.ops.convert_to_numpy(logits).argmax(1) == np.arange(len(rows))).sum())
    return correct / len(images)


def evaluate_pictures(
    preset: StrPath,
    dataset: CaptionedFolder,
    folder: StrPath,
    *,
    clip_file: StrPath,
    num_prompts: int = 1000,
    num_steps: int = NUM_STEPS,
    guidance_scale: float | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Score a latent diffusion on held-back pictures and their captions; print a report and write it.

    Args:
        preset: name or folder of a preset.
        dataset: `CaptionedFolder`, of which the validation part chooses the guidance scale and the test part scores.
        folder: for report.txt, metrics.json, and samples.png: held-back pictures above what their captions give.
        clip_file: model that `recipes/diffusion_text_encoder.py` leaves; without the file, nothing ranks captions.
        num_prompts: most captions.
        num_steps: sampling steps.
        guidance_scale: None to choose it: the smallest with which the caption of a generated image ranks first as often
            as that of a real one.
        seed: of the noise.

    Returns:
        the metrics, a dict: reconstruction_error (mean, of 255), and with `clip_file` candidates, real and generated:
        the fractions of `caption_precision`; captions: of samples.png.
    """
    task = TextToImage.from_preset(find_preset(preset).folder)
    clip = load_model(clip_file) if pathlib.Path(clip_file).is_file() else None
    folder, lines = files.prepare_folder(folder), []

    def log(line):
        print(line, flush=True)
        lines.append(line)

    def generate(captions, scale):
        options = {"num_steps": num_steps, "guidance_scale": scale, "seed": seed, "batch_size": 50}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of unknown words, in each image
            return task.generate(captions, **options)

    def precision(images, captions):
        return caption_precision(clip, images, task.preprocess(captions))

    backend = keras.backend.backend()
    metrics: dict[str, Any] = {"backend": backend, "num_steps": num_steps, "seed": seed}
    log(f"{backend} backend, {num_steps} steps of {task.pipeline_config['sampler']}")
    images, captions = _one_of_each(dataset, "test", num_prompts)
    metrics |= {"num_prompts": len(captions), "reconstruction_error": _reconstruction_error(task, images)}
    log(
        f"Mean error of {len(images)} held-back pictures after encoding and decoding: "
        f"{metrics['reconstruction_error']:.2f} of 255"
    )
    if guidance_scale is None and clip is not None:
        real, prompts = _one_of_each(dataset, "validation", max(10, num_prompts // 5))
        by_scale = {scale: precision(generate(prompts, scale), prompts) for scale in GUIDANCE_SCALES}
        guidance_scale = smallest_sufficient_guidance(by_scale, precision(real, prompts))
        metrics["by_guidance_scale"] = by_scale
        log(
            f"The right caption of {min(len(prompts), CANDIDATES)} first, by guidance scale: "
            + ", ".join(f"{scale:g}: {value:.1%}" for scale, value in by_scale.items())
        )
    metrics["guidance_scale"] = scale = DEFAULT_GUIDANCE if guidance_scale is None else guidance_scale
    generated = generate(captions, scale)
    if clip is not None:
        metrics |= {"candidates": min(len(captions), CANDIDATES), "real": precision(images, captions)}
        metrics["generated"] = precision(generated, captions)
        log(
            f"The right caption of {metrics['candidates']} first: {metrics['real']:.1%} of {len(captions)} held-back "
            f"pictures, {metrics['generated']:.1%} of the images generated for their captions (guidance {scale:g})"
        )
    shown = slice(_COLUMNS)
    plot_grid(folder / "samples.png", [images[shown], generated[shown]], captions[shown])
    metrics["captions"] = captions[shown]
    files.write_text(folder / "report.txt", "\n".join(lines) + "\n")
    files.write_json(folder / "metrics.json", metrics)
    return metrics


def _one_of_each(dataset, split, most):
    """(pictures, captions) of a part, of each caption the first picture, at most so many."""
    first = {}
    for row, caption in enumerate(dataset.captions[split]):
        first.setdefault(caption, row)
    captions = list(first)[:most]
    batch = dataset.render(split, np.array([first[caption] for caption in captions]))
    return batch.images, captions


def _reconstruction_error(task, images, batch_size=50):
    """Mean absolute error of images after the autoencoder, of 255."""
    error, scale = 0.0, task.pipeline_config["scaling_factor"]
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        mean, _ = task.components["encoder"].predict_on_batch(part.astype("float32") / 127.5 - 1)
        restored = task.decode(keras.ops.convert_to_numpy(mean) * scale)
        error += float(np.abs(restored.astype("float32") - part).mean((1, 2, 3)).sum())
    return error / len(images)
