"""How well a latent diffusion draws what it is told: prompt accuracy, Fréchet distance, steps, and what each part does.

A judge, the 20-class 48x48 CNN, says what a picture shows; its ink and its background are judged by colour.
"""

import pathlib

import keras
import numpy as np

from zoo.data.captions import judge_colours
from zoo.errors import UserError
from zoo.evaluation import diffusion_plots as reports
from zoo.fast_paths.layers import use_fast_paths
from zoo.generation.diffusion.noise_sampler import SAMPLERS, noised, scheduled
from zoo.io import files
from zoo.io.images import write_gif, write_strip
from zoo.tasks.text_to_image import Painter, fast_pipeline, load_painter
from zoo.training.diffusion import features

STEPS = 20
GUIDANCES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
COUNTS, LONG = (5, 10, 20, 50), 200  # steps in the table of samplers; the long walk is for DDPM
SHARES = ("class", "ink", "background", "all")


def draw_prompts(painter, prompts, *, steps=STEPS, guidance=2.0, sampler=None, seed=0, batch_size=100):
    """Pictures (N, H, W, 3) uint8 of prompts; that of prompt k has the random numbers of `seed` + k."""
    pictures = []
    blank, _ = painter.tokens("")
    for begin in range(0, len(prompts), batch_size):
        ids = [painter.tokens(prompt)[0] for prompt in prompts[begin : begin + batch_size]]
        seeds = range(seed + begin, seed + begin + len(ids))
        options = {"steps": steps, "guidance": guidance, "sampler": sampler, "seeds": seeds}
        for step in painter.pipeline.draw(ids, negative_ids=blank, **options):
            latents = step
        pictures.append(painter.pictures(latents.latents))
    return np.concatenate(pictures)


def prompt_scores(judge, pictures, labels, inks, backgrounds):
    """Shares of pictures whose class, ink and background are those asked for, and of those with all three."""
    logits = judge.predict(pictures, batch_size=250, verbose=0)
    found = (np.asarray(logits).argmax(-1), *judge_colours(pictures))
    right = [one == other for one, other in zip(found, (labels, inks, backgrounds))]
    right.append(np.logical_and.reduce(right))
    return {name: float(share.mean()) for name, share in zip(SHARES, right)}


def least_as_good(shares, wanted):
    """The smallest guidance with so large a share of right pictures; the best one where none has.

    More guidance than that buys what is already clear with variety (Ho and Salimans 2022, section 4).
    """
    enough = [guidance for guidance, share in shares.items() if share >= wanted]
    return min(enough, default=max(shares, key=shares.get))


def report(folder, dataset, output, *, count=1000, seed=0, guidance=None):
    """Score a finished folder; write tables and pictures to `output`, and return the metrics.

    Prompt accuracy and Fréchet distance are told first, then samplers with their numbers of steps, then what each part
    does; the last two only where the guidance is chosen here.

    Args:
        folder: what the recipe made, judge.keras included.
        dataset: `CaptionedImages`.
        output: folder for report.txt, metrics.json, samples.png, pictures.npz (the first hundred); the long report adds
            steps.png, reverse.png, reverse.gif and forward.png.
        count: how many prompts of each kind.
        seed: of prompts and noise.
        guidance: a number for the short report, with the guidance that was chosen before; None to choose it.

    Raises:
        UserError: if a part is missing.
    """
    folder, output = pathlib.Path(folder), files.prepare_folder(output)
    if not (folder / "judge.keras").is_file():
        raise UserError(f"{folder} has no judge.keras, which says what a picture shows: run --stage judge first.")
    judge, painter = files.load_model(folder / "judge.keras"), load_painter(folder)
    use_fast_paths(judge)
    seen_by_judge = features(judge)

    def scored(prompts, **options):
        texts, *wanted = prompts
        return prompt_scores(judge, draw_prompts(painter, texts, **options), *wanted)

    told, metrics = [], {"backend": keras.backend.backend(), "prompts": count, "steps": STEPS, "seed": seed}

    def tell(line=""):
        print(line, flush=True)
        told.append(line)

    # (a) Prompt accuracy. The guidance is chosen on prompts of its own.
    tell(f"{keras.backend.backend()} backend, {STEPS} steps of {painter.settings['sampler']}\n")
    real, shares_of_real = {}, {}
    for part in ("validation", "test"):
        real[part] = batch = dataset.draw(part, _some(dataset, part, count), seed=seed)
        shares_of_real[part] = prompt_scores(judge, batch.images, batch.labels, batch.inks, batch.backgrounds)
    best = guidance
    if guidance is None:
        trial = dataset.prompts(max(20, count // 5), seed=seed + 1)
        by_guidance = {value: scored(trial, guidance=value, seed=10**6) for value in GUIDANCES}
        wanted = shares_of_real["validation"]["all"]
        best = least_as_good({value: shares["all"] for value, shares in by_guidance.items()}, wanted)
        metrics["by_guidance"] = by_guidance
        tell("guidance  " + "".join(f"{name:>12}" for name in SHARES) + f"     ({len(trial[0])} prompts to choose by)")
        for value, shares in by_guidance.items():
            tell(f"{value:8}  " + _row(shares) + ("  <- taken" if value == best else ""))
        tell(f"The least guidance with which drawings are right as often as real validation pictures, {wanted:.1%}.")
    kinds = {"seen": dataset.prompts(count, seed=seed), "never seen": dataset.prompts(count, held_out=True, seed=seed)}
    tell(f"\ncombinations  ({count} prompts each, guidance {best})")
    pictures = {}
    for kind, (texts, *wanted) in kinds.items():
        pictures[kind] = draw_prompts(painter, texts, guidance=best, seed=seed)
        metrics[kind.replace(" ", "_")] = shares = prompt_scores(judge, pictures[kind], *wanted)
        tell(f"{kind:10}" + _row(shares))
    metrics["real"] = shares_of_real["test"]
    tell(f"{'real':10}" + _row(shares_of_real["test"]) + "  (the judge on test pictures)")

    # (b) Fréchet distance.
    looks = {part: _features(seen_by_judge, batch.images) for part, batch in real.items()}
    floor = reports.frechet_distance(looks["test"], looks["validation"])
    distance = reports.frechet_distance(looks["test"], _features(seen_by_judge, pictures["seen"]))
    metrics |= {"guidance": best, "frechet": distance, "frechet_floor": floor, "frechet_ratio": distance / floor}
    tell(f"\nFréchet distance to {len(looks['test'])} test pictures, features of the judge (dense1, 128 numbers):")
    tell(f"drawn {distance:.3f}, real validation pictures {floor:.3f}: {distance / floor:.2f} times")

    with files.atomic(output / "pictures.npz") as temporary:
        np.savez_compressed(temporary, pictures=pictures["seen"][:100])
    texts = [*kinds["seen"][0][:16], *kinds["never seen"][0][:16]]
    reports.save_gallery(output / "samples.png", np.concatenate([part[:16] for part in pictures.values()]), texts)
    if guidance is None:
        some = [part[: -(-count // 2)] for part in kinds["seen"]]
        options = {"guidance": best, "seed": seed, "tell": tell}
        metrics["by_steps"] = _steps(painter, judge, seen_by_judge, looks["test"], some, output, **options)
        metrics["ablation"] = _ablation(folder, painter, judge, some, **options)
        draw_processes(painter, files.load_model(folder / "encoder.keras"), dataset, output, guidance=best)
    files.write_text(output / "report.txt", "\n".join(told) + "\n")
    files.write_json(output / "metrics.json", metrics)
    return metrics


def _steps(painter, judge, seen_by_judge, looks, some, output, *, guidance, seed, tell):
    """(c) Samplers and numbers of steps."""
    table = {}
    tell(f"\nFréchet distance / all three right by sampler and steps ({len(some[0])} prompts)")
    tell(f"{'':16}" + "".join(f"{steps:>16}" for steps in (*COUNTS, LONG)))
    for sampler in SAMPLERS:
        table[sampler] = {}
        for steps in (*COUNTS, *((LONG,) if sampler == "ddpm" else ())):
            drawn = draw_prompts(painter, some[0], steps=steps, guidance=guidance, sampler=sampler, seed=seed)
            distance = reports.frechet_distance(looks, _features(seen_by_judge, drawn))
            table[sampler][steps] = distance, prompt_scores(judge, drawn, *some[1:])["all"]
        tell(f"{sampler:16}" + "".join(f"{f'{d:.2f} / {share:.3f}':>16}" for d, share in table[sampler].values()))
    reports.save_steps(output / "steps.png", table)
    return table


def _ablation(folder, painter, judge, some, *, guidance, seed, tell):
    """(d) What each part does."""
    rng = np.random.default_rng(seed)
    reader = files.load_model(folder / "text_encoder.keras")
    for weight in reader.weights:
        if len(weight.shape) > 1:
            weight.assign(rng.normal(size=weight.shape) * float(np.std(keras.ops.convert_to_numpy(weight))))
    others = [files.load_model(folder / f"{name}.keras") for name in ("decoder", "denoiser")]
    untrained = Painter(fast_pipeline(reader, None, *others, painter.settings), painter.tokenizer)
    texts, *wanted = some
    ablation = {
        "as it is": prompt_scores(judge, draw_prompts(painter, texts, guidance=guidance, seed=seed), *wanted),
        "guidance 1": prompt_scores(judge, draw_prompts(painter, texts, guidance=1.0, seed=seed), *wanted),
        "no captions": prompt_scores(judge, draw_prompts(painter, [""] * len(texts), guidance=1.0, seed=seed), *wanted),
        "untrained text encoder": prompt_scores(
            judge, draw_prompts(untrained, texts, guidance=guidance, seed=seed), *wanted
        ),
    }
    tell(f"\n{'what each part does':24}" + "".join(f"{name:>12}" for name in SHARES))
    for name, shares in ablation.items():
        tell(f"{name:24}" + _row(shares))
    return ablation


def draw_processes(painter, encoder, dataset, output, *, guidance, count=4, seed=0):
    """forward.png: pictures under more and more noise; reverse.png and reverse.gif: prompts as they are drawn."""
    texts = [*dataset.prompts(count // 2, seed=seed)[0], *dataset.prompts(count // 2, held_out=True, seed=seed)[0]]
    ids, blank = [painter.tokens(text)[0] for text in texts], painter.tokens("")[0]
    steps = list(
        painter.pipeline.draw(ids, negative_ids=blank, guidance=guidance, steps=STEPS, seeds=range(seed, seed + count))
    )
    frames = [painter.pictures(step.latents) for step in steps]
    write_strip(output / "reverse.png", [frames[place] for place in np.linspace(0, len(frames) - 1, 10).astype(int)])
    write_gif(output / "reverse.gif", frames)
    images = dataset.draw("test", _some(dataset, "test", count), seed=seed).images
    mean, _ = encoder.predict_on_batch(images.astype("float32") / 127.5 - 1)
    clean, rng = np.asarray(mean) * painter.settings["latent_scale"], np.random.default_rng(seed)
    levels = scheduled(painter.settings["schedule"])
    noise = rng.standard_normal(clean.shape, dtype="float32")
    shown = [levels[place] for place in np.linspace(0, len(levels) - 1, 10).astype(int)]
    write_strip(output / "forward.png", [painter.pictures(noised(clean, noise, level)) for level in shown])


def _some(dataset, part, count):
    """At most `count` places of scans of a part, chosen at random."""
    return np.random.default_rng([count, len(dataset.labels[part])]).permutation(len(dataset.labels[part]))[:count]


def _features(model, pictures):
    return np.asarray(model.predict(pictures.astype("float32"), batch_size=250, verbose=0))


def _row(shares):
    return "".join(f"{shares[name]:12.1%}" for name in SHARES)
