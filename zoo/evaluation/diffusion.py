"""Scores of a latent diffusion: prompt accuracy, Fréchet distance, samplers and steps, ablation; scores of parts.

A classifier, the 20-class 48x48 CNN, predicts the class of an image; its colors are compared with a palette.

Letters: N images, H x W pixels, F features.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from zoo.data.captions import classify_colors
from zoo.errors import UserError
from zoo.evaluation import diffusion_plots as plots
from zoo.fast_paths.layers import use_fast_paths
from zoo.generation.diffusion.noise_sampler import SAMPLERS, add_noise, alphas_cumprod_from_config
from zoo.io import files
from zoo.io.images import write_gif, write_strip
from zoo.io.model_files import load_model
from zoo.models.captioned_image_classifier import feature_extractor
from zoo.presets import find_preset
from zoo.tasks.text_to_image import TextToImage
from zoo.typing import StrPath

if TYPE_CHECKING:
    from zoo.data.captioned_folder import CaptionedFolder
    from zoo.data.captions import CaptionedImages

NUM_STEPS = 20
GUIDANCE_SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
STEP_COUNTS, DDPM_STEPS = (5, 10, 20, 50), 200  # of the table of samplers; DDPM needs more
ATTRIBUTES = ("class", "foreground", "background", "all")


def prompt_accuracy(
    classifier: keras.Model, images: np.ndarray, labels: np.ndarray, foregrounds: np.ndarray, backgrounds: np.ndarray
) -> dict[str, float]:
    """Fractions of images whose class, foreground and background are those of the prompt, and of those with all three.

    Args:
        classifier: images (N, H, W, 3) -> logits (N, K).
        images: (N, H, W, 3) uint8.
        labels: (N,) int, classes that the prompts ask for.
        foregrounds: (N,) int, colors that they ask for.
        backgrounds: (N,) int, colors that they ask for.

    Returns:
        dict with the keys `ATTRIBUTES`.
    """
    logits = classifier.predict(images, batch_size=250, verbose=0)
    predicted = (np.asarray(logits).argmax(-1), *classify_colors(images))
    correct = [one == other for one, other in zip(predicted, (labels, foregrounds, backgrounds))]
    correct.append(np.logical_and.reduce(correct))
    return {name: float(fraction.mean()) for name, fraction in zip(ATTRIBUTES, correct)}


def frechet_distance(features: np.ndarray, other: np.ndarray) -> float:
    """The squared Fréchet distance of two normal distributions with the means and covariances of features.

        |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½)                                     Heusel et al. 2017, equation 6

    Args:
        features: (N, F), more rows than columns.
        other: (M, F), more rows than columns.

    Returns:
        the distance.

    Raises:
        ValueError: if there are fewer than two rows, which have no covariance.
    """
    if min(len(features), len(other)) < 2:
        raise ValueError(f"A Fréchet distance needs at least 2 rows of each, got {len(features)} and {len(other)}.")
    means = [np.mean(part, axis=0, dtype="float64") for part in (features, other)]
    covariances = [np.cov(np.asarray(part, "float64"), rowvar=False) for part in (features, other)]
    # The trace of a root is the sum of the roots of the eigenvalues, here real and not negative but for rounding.
    eigenvalues = np.linalg.eigvals(covariances[0] @ covariances[1]).real
    roots = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    return float(((means[0] - means[1]) ** 2).sum() + np.trace(sum(covariances)) - 2 * roots)


def smallest_sufficient_guidance(accuracies: Mapping[float, float], required: float) -> float:
    """The smallest guidance scale with at least the required accuracy; the most accurate one if none reaches it.

    More guidance than that trades variety for nothing (Ho and Salimans 2022, section 4).

    Args:
        accuracies: {guidance scale: accuracy}.
        required: accuracy of real images.

    Returns:
        the guidance scale.
    """
    sufficient = [scale for scale, accuracy in accuracies.items() if accuracy >= required]
    return min(sufficient, default=max(accuracies, key=lambda scale: accuracies[scale]))


def retrieval_accuracy(
    clip_model: keras.Model,
    dataset: CaptionedImages | CaptionedFolder,
    tokenize: Callable[[Sequence[str]], np.ndarray],
    *,
    seed: int,
    rounds: int = 20,
    candidates: int = 100,
) -> dict[str, float]:
    """How often the matching one ranks first among test images and captions, no two of which say the same.

    Args:
        clip_model: [token ids, images] -> logits, a row per image.
        dataset: `CaptionedImages` or `CaptionedFolder`.
        tokenize: function of captions that returns token ids.
        seed: of images, colors and words.
        rounds: number of draws to average over.
        candidates: images and captions of each draw.

    Returns:
        dict: retrieval_caption (of an image), retrieval_image (of a caption), retrieval_among.
    """
    correct: dict[str, float] = {"retrieval_caption": 0, "retrieval_image": 0}
    rng, count = np.random.default_rng([seed, 2]), dataset.count("test")
    candidates = max(1, min(candidates, count // 2))
    for number in range(rounds):
        rows, used = [], set()
        batch = dataset.render("test", rng.permutation(count)[: 2 * candidates], seed=[seed, number])
        for row, content_id in enumerate(batch.content_ids.tolist()):
            if content_id not in used and len(rows) < candidates:
                used.add(content_id)
                rows.append(row)
        inputs = tokenize([batch.captions[row] for row in rows]), batch.images[rows].astype("float32")
        logits = keras.ops.convert_to_numpy(clip_model.predict_on_batch(inputs))
        for key, axis in (("retrieval_caption", 1), ("retrieval_image", 0)):
            correct[key] += float((logits.argmax(axis) == np.arange(len(rows))).mean()) / rounds
    return correct | {"retrieval_among": candidates}


def loss_by_timestep(
    denoiser: keras.Model, batches: keras.utils.PyDataset, num_train_timesteps: int, bins: int = 20
) -> np.ndarray:
    """Mean squared error of the predicted noise by timestep.

    Args:
        denoiser: [noisy latents, timesteps, contexts] -> noise.
        batches: of `zoo.training.diffusion.denoiser_batches`.
        num_train_timesteps: T.
        bins: number of equal ranges of timesteps.

    Returns:
        (bins,).
    """
    total, count = np.zeros(bins), np.zeros(bins)
    for index in range(len(batches)):
        inputs, noise = batches[index]
        error = ((keras.ops.convert_to_numpy(denoiser.predict_on_batch(inputs)) - noise) ** 2).mean((1, 2, 3))
        bin_indices = (inputs[1] * bins / num_train_timesteps).astype(int)
        np.add.at(total, bin_indices, error)
        np.add.at(count, bin_indices, 1)
    return total / np.maximum(count, 1)


def evaluate(
    preset: StrPath,
    dataset: CaptionedImages,
    folder: StrPath,
    *,
    num_prompts: int = 1000,
    num_steps: int = NUM_STEPS,
    guidance_scale: float | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Score a latent diffusion; print a report and write it, its metrics and images.

    Prompt accuracy and Fréchet distance come first; then, only if the guidance scale is chosen here, samplers with
    their numbers of steps and what each part contributes.

    Args:
        preset: name or folder of a preset that has a classifier.keras.
        dataset: `CaptionedImages`.
        folder: for report.txt, metrics.json, samples.png, images.npz (the first hundred); the long report adds
            steps.png, reverse.png, reverse.gif and forward.png.
        num_prompts: prompts of each kind.
        num_steps: sampling steps.
        guidance_scale: of the short report; None to choose it, for the long one.
        seed: of prompts and noise.

    Returns:
        the metrics, a dict.

    Raises:
        UserError: if a part is missing.
    """
    source, folder = find_preset(preset).folder, pathlib.Path(folder)
    if not (source / "classifier.keras").is_file():
        raise UserError(
            f"{source} has no classifier.keras, which scores the images: run recipes/diffusion_classifier.py first."
        )
    task, scorer = TextToImage.from_preset(source), _Scorer(load_model(source / "classifier.keras"))
    folder = files.prepare_folder(folder)
    lines, backend = [], keras.backend.backend()
    metrics: dict[str, Any] = {"backend": backend, "num_prompts": num_prompts, "num_steps": num_steps, "seed": seed}

    def log(line=""):
        print(line, flush=True)
        lines.append(line)

    def generate(prompts, **options):
        return task.generate(prompts, **{"num_steps": num_steps, "seed": seed, "batch_size": 100} | options)

    # (a) Prompt accuracy. The guidance scale is chosen on prompts of its own.
    log(f"{backend} backend, {num_steps} steps of {task.pipeline_config['sampler']}\n")
    real, real_accuracy = {}, {}
    for split in ("validation", "test"):
        real[split] = batch = dataset.render(split, _random_indices(dataset, split, num_prompts), seed=seed)
        real_accuracy[split] = scorer.accuracy(batch.images, (batch.labels, batch.foregrounds, batch.backgrounds))
    chosen: Any = guidance_scale
    if guidance_scale is None:
        captions, *attributes = dataset.prompts(max(20, num_prompts // 5), seed=seed + 1)
        metrics["by_guidance_scale"] = by_scale = {
            scale: scorer.accuracy(generate(captions, guidance_scale=scale, seed=10**6), attributes)
            for scale in GUIDANCE_SCALES
        }
        required = real_accuracy["validation"]["all"]
        chosen = smallest_sufficient_guidance({scale: row["all"] for scale, row in by_scale.items()}, required)
        log(f"{'guidance scale':14}" + _header() + f"     ({len(captions)} prompts to choose by)")
        for scale, row in by_scale.items():
            log(f"{scale:14}" + _row(row) + ("  <- chosen" if scale == chosen else ""))
        log(f"The smallest scale that is as accurate as real validation images, {required:.1%}.")
    prompts = {"seen": dataset.prompts(num_prompts, seed=seed)}
    prompts["held_out"] = dataset.prompts(num_prompts, held_out=True, seed=seed)
    log(f"\n{'combinations':14}" + _header() + f"     ({num_prompts} prompts each, guidance scale {chosen})")
    images = {}
    for kind, (captions, *attributes) in prompts.items():
        images[kind] = generate(captions, guidance_scale=chosen)
        metrics[kind] = scorer.accuracy(images[kind], attributes)
        log(f"{kind.replace('_', ' '):14}" + _row(metrics[kind]))
    metrics["real"] = real_accuracy["test"]
    log(f"{'real':14}" + _row(metrics["real"]) + "     (the classifier on test images)")

    # (b) Fréchet distance.
    features = {split: scorer.features(batch.images) for split, batch in real.items()}
    floor = frechet_distance(features["test"], features["validation"])
    distance = frechet_distance(features["test"], scorer.features(images["seen"]))
    metrics |= {"guidance_scale": chosen, "frechet": distance, "frechet_floor": floor}
    metrics["frechet_ratio"] = distance / floor
    log(f"\nFréchet distance to {len(features['test'])} test images, features of the classifier (dense1, 128 units):")
    log(f"generated {distance:.3f}, real validation images {floor:.3f}: {distance / floor:.2f} times")

    with files.atomic_write(folder / "images.npz") as temporary:
        np.savez_compressed(temporary, images=images["seen"][:100])
    captions = [caption for captions, *_ in prompts.values() for caption in captions[:16]]
    plots.plot_gallery(folder / "samples.png", np.concatenate([part[:16] for part in images.values()]), captions)
    if guidance_scale is None:
        half = [part[: -(-num_prompts // 2)] for part in prompts["seen"]]
        metrics["by_num_steps"] = _by_num_steps(generate, scorer, features["test"], half, chosen, log)
        plots.plot_steps(folder / "steps.png", metrics["by_num_steps"])
        metrics["ablation"] = _ablation(task, generate, scorer, half, chosen, seed, num_steps, log)
        options = {"num_steps": num_steps, "seed": seed}
        plot_forward_and_reverse_process(task, dataset, folder, guidance_scale=chosen, **options)
    files.write_text(folder / "report.txt", "\n".join(lines) + "\n")
    files.write_json(folder / "metrics.json", metrics)
    return metrics


class _Scorer:
    """Accuracy and features of images by a classifier."""

    def __init__(self, classifier):
        use_fast_paths(classifier)
        self.classifier, self.feature_extractor = classifier, feature_extractor(classifier)

    def accuracy(self, images, attributes):
        return prompt_accuracy(self.classifier, images, *attributes)

    def features(self, images):
        return np.asarray(self.feature_extractor.predict(images.astype("float32"), batch_size=250, verbose=0))


def _by_num_steps(generate, scorer, real_features, prompts, guidance_scale, log):
    """(c) {sampler: {number of steps: (Fréchet distance, accuracy)}}."""
    table = {}
    captions, *attributes = prompts
    log(f"\nFréchet distance / all three correct by sampler and number of steps ({len(captions)} prompts)")
    log(f"{'':16}" + "".join(f"{count:>16}" for count in (*STEP_COUNTS, DDPM_STEPS)))
    for sampler in (name for name in SAMPLERS if name != "lcm"):  # which needs a distilled denoiser
        table[sampler] = {}
        for count in (*STEP_COUNTS, *((DDPM_STEPS,) if sampler == "ddpm" else ())):
            images = generate(captions, num_steps=count, guidance_scale=guidance_scale, sampler=sampler)
            distance = frechet_distance(real_features, scorer.features(images))
            table[sampler][count] = distance, scorer.accuracy(images, attributes)["all"]
        log(f"{sampler:16}" + "".join(f"{f'{d:.2f} / {accuracy:.3f}':>16}" for d, accuracy in table[sampler].values()))
    return table


def _ablation(task, generate, scorer, prompts, guidance_scale, seed, num_steps, log):
    """(d) {what was changed: accuracy}."""
    captions, *attributes = prompts
    rng = np.random.default_rng(seed)
    components = task.components | {"text_encoder": keras.models.clone_model(task.components["text_encoder"])}
    for weight, trained in zip(components["text_encoder"].weights, task.components["text_encoder"].weights):
        value = keras.ops.convert_to_numpy(trained)
        weight.assign(rng.normal(size=value.shape) * float(np.std(value)) if value.ndim > 1 else value)
    untrained = TextToImage(components, task.tokenizer, task.pipeline_config)
    options = {"guidance_scale": guidance_scale, "num_steps": num_steps, "seed": seed, "batch_size": 100}
    images = {
        "as it is": generate(captions, guidance_scale=guidance_scale),
        "guidance 1": generate(captions, guidance_scale=1.0),
        "no captions": generate([""] * len(captions), guidance_scale=1.0),
        "untrained text encoder": untrained.generate(captions, **options),
    }
    log(f"\n{'ablation':24}" + _header())
    ablation = {name: scorer.accuracy(part, attributes) for name, part in images.items()}
    for name, row in ablation.items():
        log(f"{name:24}" + _row(row))
    return ablation


def plot_forward_and_reverse_process(
    task: TextToImage,
    dataset: CaptionedImages,
    folder: StrPath,
    *,
    guidance_scale: float,
    num_steps: int = NUM_STEPS,
    count: int = 4,
    seed: int = 0,
) -> None:
    """Plot images under more and more noise, and prompts while they are generated.

    Args:
        task: `zoo.tasks.text_to_image.TextToImage`.
        dataset: `CaptionedImages`.
        folder: where forward.png, reverse.png and reverse.gif go.
        guidance_scale: of the prompts.
        num_steps: sampling steps.
        count: number of images and of prompts.
        seed: of both.
    """
    folder = pathlib.Path(folder)
    seen, unseen = (dataset.prompts(count // 2, held_out=held_out, seed=seed)[0] for held_out in (False, True))
    steps = zip(
        *(
            task.stream(prompt, seed=seed + index, guidance_scale=guidance_scale, num_steps=num_steps)
            for index, prompt in enumerate([*seen, *unseen])
        )
    )
    frames = [task.decode(np.concatenate([step.latents for step in row])) for row in steps]
    write_strip(folder / "reverse.png", [frames[index] for index in np.linspace(0, len(frames) - 1, 10).astype(int)])
    write_gif(folder / "reverse.gif", frames)
    images = dataset.render("test", _random_indices(dataset, "test", count), seed=seed).images
    mean, _ = task.components["encoder"].predict_on_batch(images.astype("float32") / 127.5 - 1)
    clean = keras.ops.convert_to_numpy(mean) * task.pipeline_config["scaling_factor"]
    alphas_cumprod = alphas_cumprod_from_config(task.pipeline_config["noise_schedule"])
    noise = np.random.default_rng(seed).standard_normal(clean.shape, dtype="float32")
    shown = alphas_cumprod[np.linspace(0, len(alphas_cumprod) - 1, 10).astype(int)]
    write_strip(folder / "forward.png", [task.decode(add_noise(clean, noise, alpha)) for alpha in shown])


def _random_indices(dataset, split, count):
    """At most `count` indices of examples of a split, chosen at random."""
    size = len(dataset.labels[split])
    return np.random.default_rng([count, size]).permutation(size)[:count]


def _header():
    return "".join(f"{name:>12}" for name in ATTRIBUTES)


def _row(accuracy):
    return "".join(f"{accuracy[name]:12.1%}" for name in ATTRIBUTES)
