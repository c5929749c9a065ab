"""What the recipes of the latent diffusion share: training models, losses, the caption tokenizer, batches, files.

classifier    image -> class                                   cross-entropy
autoencoder   image -> latents -> image                        |x - x̂| + w·KL(q(z|x) ‖ N(0, 1))     Rombach 2022, 3.1
text encoder  captions and images -> similarities              contrastive, both ways              Radford et al. 2021
denoiser      noisy latents, timestep, context -> noise        |ε - ε̂|²                 Ho et al. 2020, equation 14

All random numbers (noise, timesteps, dropped captions) come from NumPy and are functions of (seed, epoch, batch): every
backend gets the same.

Letters: B images, S tokens, h x w x C latents, T timesteps, d width of the context, P width of the shared space.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import layers, ops

from zoo.data.batches import epoch_order
from zoo.data.captions import COLORS, IMAGE_SIZE, TEMPLATES, fill_template, load_captioned_images
from zoo.data.images import default_image_dataset
from zoo.distribution.strategy import outside_scope
from zoo.errors import UserError
from zoo.io import cards, files, model_files
from zoo.models.captioned_image_classifier import feature_extractor
from zoo.models.stable_diffusion.autoencoder import autoencoder_from_parts
from zoo.training import flags
from zoo.training.run import Run, print_wrapped
from zoo.typing import StrPath, Tensor

if TYPE_CHECKING:
    import tokenizers

    from zoo.data.captions import CaptionedImages

LATENT_SHAPE = (12, 12, 4)  # (h, w, C)
MAX_LENGTH = 16  # S: tokens of a caption, with start and end
# Ho et al. 2020, section 4. Hardly any signal is left at its end, so that black and white backgrounds can be generated.
NOISE_SCHEDULE = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}
TEMPERATURE = 0.07  # of the contrastive loss, the start value of CLIP's (Radford et al. 2021, section 2.5)
PROJECTION_DIM = 64  # P
SPECIAL_TOKENS = ("<pad>", "<start>", "<end>", "<unknown>")  # ids 0, 1, 2, 3 of the tokenizer

_NOT_IN_CARD = ("first_losses", "wall_seconds", "epochs_trained", "backend", "versions", "machine")
RUN_FLAGS = ("data_dir", "seed", "limit", "parity", "devices", "parallel", "precision", "output", "resume", "overwrite")
# What each recipe adds to the run folder, and what the card says of it.
PARTS: dict[str, dict[str, Any]] = {
    "classifier": {
        "files": cards.DIFFUSION_PARTS["classifier"],
        "input": "images (B, H, W, 3) in [0, 255]",
        "output": "logits (B, 20); softmax gives probabilities",
    },
    "autoencoder": {
        "files": cards.DIFFUSION_PARTS["autoencoder"],
        "input": {"encoder": "images (B, 48, 48, 3) in [-1, 1]", "decoder": "latents (B, 12, 12, 4)"},
        "output": {
            "encoder": "[mean, log-variance] of latents (B, 12, 12, 4)",
            "decoder": "images (B, 48, 48, 3), about in [-1, 1]",
        },
    },
    "text_encoder": {
        "files": cards.DIFFUSION_PARTS["text_encoder"],
        "input": "token ids (B, 16) int32 of tokenizer.json",
        "output": "context (B, 16, 128)",
    },
    "denoiser": {
        "files": cards.DIFFUSION_PARTS["denoiser"],
        "input": "[latents (B, 12, 12, 4), timestep (B,), context (B, S, 128)]",
        "output": "the noise in the latents",
    },
}


# ------------------------------------------------------------------------------------------------------- the run folder


def run_folder(args: argparse.Namespace, *required: str) -> pathlib.Path:
    """The folder that all recipes of the latent diffusion write to: `--output`, or runs/diffusion_captions-<data>.

    Args:
        args: the flags of a recipe.
        *required: names of files that it needs from the recipes before it.

    Returns:
        its path.

    Raises:
        UserError: if one of them is missing.
    """
    folder = pathlib.Path(args.output or f"runs/diffusion_captions-{_data_name(args)}")
    for name in required:
        if not (folder / name).is_file():
            part = next(part for part, entry in PARTS.items() if name in entry["files"])
            raise UserError(
                f"There is no {folder / name}, which this recipe needs: run recipes/diffusion_{part}.py first."
            )
    files.remove_leftovers(folder)
    return folder


def _data_name(args):
    """Name of the data that `load_dataset` loads, for a folder."""
    return "digits" if default_image_dataset(args.data_dir)[0] == "digits" else "mnist_fashion_mnist"


def load_dataset(args: argparse.Namespace) -> CaptionedImages:
    """Load the captioned images and print what they are; the small ones that recipes fall back on bring own defaults.

    Args:
        args: the flags of a recipe.

    Returns:
        `CaptionedImages`.

    Raises:
        UserError: if the data cannot be loaded.
    """
    print("Reading the images …", flush=True)
    dataset, remark = load_captioned_images(args.data_dir)
    if remark:
        print_wrapped(remark)
        flags.use_fallback(args)
    if args.limit:
        dataset = dataset.subset(args.limit)
    count = {split: len(labels) for split, labels in dataset.labels.items()}
    print_wrapped(
        f"{keras.backend.backend()} backend · {dataset.name}: {count['train']:,} training, {count['validation']:,} "
        f"validation and {count['test']:,} test images, {len(dataset.class_names)} classes"
    )
    return dataset


def save_part(run: Run, part: str, contents: Mapping[str, Any], scores: Mapping[str, Any]) -> dict[str, Any]:
    """Save a trained part: its files and its entry in the card of the run folder, and metrics.json.

    Args:
        run: `zoo.training.run.Run`, whose folder lies in the run folder of all parts.
        part: a key of `PARTS`.
        contents: {file name: model, text or dict}.
        scores: dict, with "parameters" and "dataset".

    Returns:
        the metrics.
    """
    folder, card = run.folder.parent, cards.read_card(run.folder.parent)
    described = {name for entry in PARTS.values() for name in entry["files"]}
    present = {name for name in described if (folder / name).is_file()}
    card.pop("scores", None)  # of the parts as they were before
    if card:  # which must not describe the files that are being replaced
        cards.write_card(folder, card, sorted(present - set(contents)))
    for name, content in contents.items():
        if isinstance(content, keras.Model):
            model_files.save_model(content, folder / name)
        elif isinstance(content, str):
            files.write_text(folder / name, content)
        else:
            files.write_json(folder / name, content)
    metrics = {**run.metrics(), **scores}
    shared = {key: metrics[key] for key in ("backend", "versions", "machine", "seed", "dataset", "data_sha256")}
    entry = {key: PARTS[part][key] for key in ("input", "output")}
    entry |= {key: value for key, value in metrics.items() if key not in _NOT_IN_CARD}
    components = card.get("components", {}) | {part: entry}
    card |= {"task": "text-to-image", "input": "an English caption, at most 14 words"}
    card |= {"output": "images (B, 48, 48, 3) uint8", "command": metrics["command"], **shared}
    card |= {"parameters": sum(one["parameters"] for one in components.values()), "components": components}
    cards.write_card(folder, card, sorted(present | (described & set(contents))))
    metrics["sha256"] = {name: files.sha256(folder / name) for name in contents}
    print(", ".join(f"{key} {value:.4g}" for key, value in scores.items() if isinstance(value, float)), flush=True)
    return run.save_metrics(metrics, _next_command(run, part))


def _next_command(run, part):
    """The recipe of the next part; None in the recipe that runs all of them."""
    if not sys.argv[0].endswith(f"diffusion_{part}.py"):
        return None
    following = dict(zip(PARTS, [*list(PARTS)[1:], "evaluation"]))[part]
    words = ["python", f"recipes/diffusion_{following}.py"]
    words += ["--data-dir", run.args.data_dir] if run.args.data_dir else []
    return words + (["--output", run.args.output] if run.args.output else [])


# ------------------------------------------------------------------------------------------- training models and losses


def autoencoder_training_model(
    encoder: keras.Model, decoder: keras.Model, classifier: keras.Model | None = None
) -> keras.Model:
    """The autoencoder with the terms of its loss as outputs.

    Args:
        encoder: of `zoo.models.stable_diffusion.autoencoder`.
        decoder: of `zoo.models.stable_diffusion.autoencoder`.
        classifier: a `captioned_image_classifier`, which is frozen here; None for no perceptual output.

    Returns:
        `keras.Model` from [image, noise] to {"image": reconstruction, "kl": (B,)[, "perceptual": (B,)]}. kl is the
        Kullback-Leibler divergence of the latents from N(0, 1), their mean in nats. perceptual is the mean squared
        difference between a classifier's features of both images.
    """
    autoencoder = autoencoder_from_parts(encoder, decoder)
    reconstruction, mean, log_variance = autoencoder.outputs
    image = autoencoder.inputs[0]
    kl = 0.5 * ops.mean(ops.square(mean) + ops.exp(log_variance) - 1 - log_variance, axis=(1, 2, 3))  # (B,)
    outputs = {"image": reconstruction, "kl": kl}
    if classifier is not None:
        features = feature_extractor(classifier)
        features.trainable = False
        difference = features(127.5 * reconstruction + 127.5) - features(127.5 * image + 127.5)
        outputs["perceptual"] = ops.mean(ops.square(difference), axis=-1)
    return keras.Model(autoencoder.inputs, outputs, name="autoencoder_training_model")


def clip_model(text_encoder: keras.Model, image_encoder: keras.Model, end_id: int) -> keras.Model:
    """Text and image encoder with a contrastive head: CLIP (Radford et al. 2021, figure 3).

    The text's vector is the state at its end token, the image's that of `image_encoder`; each is projected to P
    dimensions and normalized, and the cosines are divided by the temperature.

    Args:
        text_encoder: token ids (B, S) -> (B, S, d).
        image_encoder: images -> (B, F).
        end_id: id of the token that ends a text.

    Returns:
        `keras.Model` from [token_ids (B, S), image (B, H, W, 3) in [0, 255]] to logits (B, B): similarity of image i
        and caption j.
    """
    token_ids = keras.Input((None,), dtype="int32", name="token")
    image = keras.Input((None, None, 3), name="image")
    is_end = ops.expand_dims(ops.cast(ops.equal(token_ids, end_id), "float32"), -1)  # (B, S, 1)
    text_features = ops.sum(is_end * text_encoder(token_ids), axis=1)  # (B, d)
    text_embeds, image_embeds = (
        ops.normalize(layers.Dense(PROJECTION_DIM, use_bias=False, name=f"{name}_projection")(x), axis=-1)
        for name, x in (("text", text_features), ("image", image_encoder(image)))
    )
    logits = ops.matmul(image_embeds, ops.transpose(text_embeds)) / TEMPERATURE
    return keras.Model([token_ids, image], logits, name="clip_model")


@keras.saving.register_keras_serializable("zoo")
class ClipLoss(keras.losses.Loss):
    """Mean of the cross-entropies of images over captions and of captions over images (CLIP, figure 3), in nats.

    `y_true` (B, B) is 1 where image i and caption j match, else 0; symmetric, with several ones in a row where captions
    are equal. `y_pred` (B, B) are logits, a row per image.
    """

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        target = y_true / ops.sum(y_true, axis=1, keepdims=True)
        log_probs = (ops.log_softmax(y_pred, axis=1), ops.transpose(ops.log_softmax(y_pred, axis=0)))
        return -0.5 * sum(ops.sum(target * log_p, axis=1) for log_p in log_probs)


@keras.saving.register_keras_serializable("zoo")
class IdentityLoss(keras.losses.Loss):
    """The model's output is the loss, (B,)."""

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return y_pred


# ------------------------------------------------------------------------------------------------------------ tokenizer


def all_captions(dataset: CaptionedImages) -> list[str]:
    """Every caption of a data set.

    Args:
        dataset: `CaptionedImages` with K classes.

    Returns:
        the captions, (K·8·8·templates), ordered by (label, foreground, background, template).
    """
    colors = range(len(COLORS))
    return [
        fill_template(template, name, foreground, background)
        for name in dataset.class_names
        for foreground in colors
        for background in colors
        for template in TEMPLATES
    ]


def caption_tokenizer(dataset: CaptionedImages) -> tokenizers.Tokenizer:
    """A lower-casing word-level tokenizer of all captions of a data set; `SPECIAL_TOKENS` come first.

    Args:
        dataset: `CaptionedImages`.

    Returns:
        `tokenizers.Tokenizer`.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({}, unk_token="<unknown>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    words = {word for caption in all_captions(dataset) for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(caption)}
    vocabulary = {word: id_ for id_, word in enumerate((*SPECIAL_TOKENS, *sorted(words)))}
    tokenizer.model = models.WordLevel(vocabulary, unk_token="<unknown>")
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return tokenizer


def tokenize_captions(tokenizer: tokenizers.Tokenizer, captions: Sequence[str], length: int = MAX_LENGTH) -> np.ndarray:
    """Encode captions, with start, end and padding.

    Args:
        tokenizer: of `caption_tokenizer`.
        captions: N texts.
        length: S.

    Returns:
        token ids (N, S) int32.

    Raises:
        ValueError: if a caption is longer.
    """
    token_ids = np.zeros((len(captions), length), np.int32)  # 0 is <pad>
    for row, encoding in enumerate(tokenizer.encode_batch(list(captions))):
        if len(encoding.ids) > length:
            raise ValueError(f"{captions[row]!r} has {len(encoding.ids)} tokens, at most {length} fit.")
        token_ids[row, : len(encoding.ids)] = encoding.ids
    return token_ids


# -------------------------------------------------------------------------------------------------------------- batches


class IndexedBatches(keras.utils.PyDataset):
    """Whole batches of indices in an order that is a function of (seed, epoch); `make_batch` turns each into data.

    Args:
        count: number of examples.
        batch_size: examples per batch, at most `count`.
        seed: of the order and of the random numbers.
        make_batch: function of (indices (B,), rng, key) that returns what `fit` takes; `rng` and `key`, a list of ints,
            are functions of (seed, epoch, batch).
        same_every_epoch: whether every epoch is epoch 0 (validation).
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int,
        make_batch: Callable[[np.ndarray, np.random.Generator, list[int]], Any],
        same_every_epoch: bool = False,
    ) -> None:
        super().__init__(workers=1, use_multiprocessing=False)
        self.count, self.batch_size, self.seed = count, min(batch_size, count), seed
        self.make_batch, self.same_every_epoch = make_batch, same_every_epoch
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Set the order of an epoch.

        Args:
            epoch: its number, from 0.
        """
        self.epoch = 0 if self.same_every_epoch else epoch
        self.order = epoch_order(self.count, seed=self.seed, epoch=self.epoch)

    def __len__(self):
        return self.count // self.batch_size

    def __getitem__(self, index):
        indices = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        key = [self.seed, self.epoch, index]
        return self.make_batch(indices, np.random.default_rng([*key, 1]), key)


def _split_batches(dataset, split, batch_size, seed, make_batch):
    count = len(dataset.labels[split])
    return IndexedBatches(count, batch_size, seed=seed, make_batch=make_batch, same_every_epoch=split != "train")


def classifier_batches(dataset: CaptionedImages, split: str, batch_size: int, *, seed: int) -> keras.utils.PyDataset:
    """Batches to train the classifier.

    Args:
        dataset: `CaptionedImages`.
        split: "train", "validation" or "test".
        batch_size: B.
        seed: of the order and of the colors.

    Returns:
        `PyDataset` of (images (B, 48, 48, 3) uint8, classes (B,)).
    """

    def make_batch(indices, rng, key):
        batch = dataset.render(split, indices, seed=key)
        return batch.images, batch.labels

    return _split_batches(dataset, split, batch_size, seed, make_batch)


def autoencoder_batches(
    dataset: CaptionedImages, split: str, batch_size: int, *, seed: int, perceptual: bool = False
) -> keras.utils.PyDataset:
    """Batches to train the autoencoder.

    Args:
        dataset: `CaptionedImages`.
        split: "train", "validation" or "test".
        batch_size: B.
        seed: of the order, the colors and the noise.
        perceptual: whether the model has that output.

    Returns:
        `PyDataset` of ([images in [-1, 1], noise (B, h, w, C)], {"image": images, "kl"[, "perceptual"]: zeros (B,)}).
    """

    def make_batch(indices, rng, key):
        images = to_minus_one_to_one(dataset.render(split, indices, seed=key).images)
        noise = rng.standard_normal((len(indices), *LATENT_SHAPE), dtype="float32") * (split == "train")
        zeros = np.zeros(len(indices), "float32")
        return (images, noise), {"image": images, "kl": zeros} | ({"perceptual": zeros} if perceptual else {})

    return _split_batches(dataset, split, batch_size, seed, make_batch)


def clip_batches(
    dataset: CaptionedImages, split: str, batch_size: int, *, seed: int, tokenizer: tokenizers.Tokenizer
) -> keras.utils.PyDataset:
    """Batches to train the text encoder.

    Args:
        dataset: `CaptionedImages`.
        split: "train", "validation" or "test".
        batch_size: B.
        seed: of the order, the colors and the words.
        tokenizer: of `caption_tokenizer`.

    Returns:
        `PyDataset` of ([token ids (B, S), images], (B, B) float32: 1 where caption j is true of image i).
    """

    def make_batch(indices, rng, key):
        batch = dataset.render(split, indices, seed=key)
        attributes = np.stack([batch.labels, batch.foregrounds, batch.backgrounds], 1)  # (B, 3)
        matches = (attributes[:, None] == attributes[None]).all(-1).astype("float32")
        return (tokenize_captions(tokenizer, batch.captions), batch.images.astype("float32")), matches

    return _split_batches(dataset, split, batch_size, seed, make_batch)


def denoiser_batches(
    latents: LatentCache,
    contexts: np.ndarray,
    alphas_cumprod: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    conditioning_dropout_prob: float = 0.1,
    same_every_epoch: bool = False,
) -> keras.utils.PyDataset:
    """Batches to train the denoiser (Ho et al. 2020, algorithm 1).

    Args:
        latents: `LatentCache`.
        contexts: (K·8·8·templates + 1, S, d), of `all_captions` and, last, of the empty caption.
        alphas_cumprod: (T,).
        batch_size: B.
        seed: of the order and of the random numbers.
        conditioning_dropout_prob: probability that a caption is replaced by the empty one, for classifier-free guidance
            (Ho & Salimans 2022, algorithm 1).
        same_every_epoch: whether every epoch is epoch 0.

    Returns:
        `PyDataset` of ([noisy latents (B, h, w, C), timesteps (B,), contexts (B, S, d)], noise (B, h, w, C)).
    """

    def make_batch(indices, rng, key):
        clean = latents.sample(indices, rng)
        timestep = rng.integers(0, len(alphas_cumprod), len(indices))
        noise = rng.standard_normal(clean.shape, dtype="float32")
        alpha_cumprod = alphas_cumprod[timestep].astype("float32")[:, None, None, None]
        caption = latents.combinations[indices] * len(TEMPLATES) + rng.integers(0, len(TEMPLATES), len(indices))
        caption[rng.random(len(indices)) < conditioning_dropout_prob] = len(contexts) - 1
        noisy = np.sqrt(alpha_cumprod) * clean + np.sqrt(1 - alpha_cumprod) * noise  # q(x_t | x_0)
        return (noisy, timestep.astype("float32"), contexts[caption]), noise

    return IndexedBatches(
        len(latents.combinations), batch_size, seed=seed, make_batch=make_batch, same_every_epoch=same_every_epoch
    )


class LatentCache:
    """An encoder's output for each example of a split, rendered once in colors that are a function of the seed.

    Args:
        encoder: images (B, H, W, 3) in [-1, 1] -> [mean, log-variance] of latents.
        dataset: `CaptionedImages`.
        split: "train", "validation" or "test".
        seed: of the colors.
        scaling_factor: brings latents to a standard deviation of 1; measured if None.
        batch_size: images encoded at once.

    Attributes:
        combinations: (N,) index of (label, foreground, background) among the K·8·8.
        mean: (N, h, w, C) float16 of the latents.
        std: (N, h, w, C) float16 of the latents.
        scaling_factor: brings latents to a standard deviation of 1.
    """

    def __init__(
        self,
        encoder: keras.Model,
        dataset: CaptionedImages,
        split: str,
        *,
        seed: int,
        scaling_factor: float | None = None,
        batch_size: int = 200,
    ) -> None:
        combinations, means, stds = [], [], []
        for batch in dataset.batches(split, batch_size, seed=seed):
            mean, log_variance = encoder.predict_on_batch(to_minus_one_to_one(batch.images))
            combinations.append((batch.labels * 8 + batch.foregrounds) * 8 + batch.backgrounds)
            means.append(np.asarray(mean, "float16"))
            stds.append(np.exp(0.5 * np.asarray(log_variance)).astype("float16"))
        self.combinations, self.mean, self.std = map(np.concatenate, (combinations, means, stds))
        variance = self.mean.astype("float64").var() + (self.std.astype("float64") ** 2).mean()
        self.scaling_factor = float(1 / np.sqrt(variance)) if scaling_factor is None else scaling_factor

    def sample(self, indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Scaled latents from the encoder's posterior.

        Args:
            indices: of examples, (B,).
            rng: draws the noise.

        Returns:
            (B, h, w, C) float32.
        """
        mean, std = self.mean[indices].astype("float32"), self.std[indices].astype("float32")
        return self.scaling_factor * (mean + std * rng.standard_normal(mean.shape, dtype="float32"))


def to_minus_one_to_one(images: np.ndarray) -> np.ndarray:
    """Scale images for the autoencoder.

    Args:
        images: uint8.

    Returns:
        float32 in [-1, 1].
    """
    return images.astype("float32") / 127.5 - 1


# ----------------------------------------------------------------------------------------------- the denoiser's recipe


def pipeline_config(scaling_factor: float) -> dict[str, Any]:
    """The contents of pipeline.json; see `zoo.converters.stable_diffusion`.

    Args:
        scaling_factor: of the latents.

    Returns:
        dict.
    """
    return {
        "kind": "stable_diffusion",
        "latent_channels": LATENT_SHAPE[-1],
        "scaling_factor": scaling_factor,
        "shift_factor": 0.0,
        "vae_scale_factor": IMAGE_SIZE // LATENT_SHAPE[0],
        "image_size": IMAGE_SIZE,
        "max_length": MAX_LENGTH,
        "start_id": 1,
        "end_id": 2,
        "pad_id": 0,
        "noise_schedule": NOISE_SCHEDULE,
        "prediction_type": "epsilon",
        "sampler": "dpmpp_2m",
        "timestep_spacing": "linspace",
        "steps_offset": 0,
        "set_alpha_to_one": True,
        "use_karras_sigmas": False,
    }


def ema_weights(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """The moving averages of the trainable variables.

    Args:
        optimizer: built, with `use_ema=True`.

    Returns:
        variables, in the order of the trainable ones.
    """
    return [variable for variable in optimizer.variables if variable.name.endswith("_average")]


class SampleGrid(keras.callbacks.Callback):
    """After each epoch, generate images with the averaged weights; a row of a PNG per epoch.

    Args:
        path: PNG file; the images of earlier epochs are kept in an .npz beside it, for a run that is resumed.
        ema_model: a model like the one that is trained; its weights are set here.
        generate: function without arguments that returns images (N, H, W, 3) uint8 made with `ema_model`.
        plot: function of (path, rows of images) that writes the PNG.
    """

    def __init__(
        self,
        path: StrPath,
        ema_model: keras.Model,
        *,
        generate: Callable[[], np.ndarray],
        plot: Callable[[pathlib.Path, list[np.ndarray]], None],
    ) -> None:
        super().__init__()
        self.path, self.ema_model, self.generate, self.plot = pathlib.Path(path), ema_model, generate, plot

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        trained = map(id, self.model.trainable_variables)
        averages = dict(zip(trained, ema_weights(self.model.optimizer), strict=True))
        for variable, weight in zip(self.ema_model.weights, self.model.weights, strict=True):
            value = averages.get(id(weight), weight)  # what is frozen has no average
            variable.assign(ops.cast(ops.convert_to_numpy(value), "float32"))
        store, rows = self.path.with_suffix(".npz"), []
        if epoch and store.is_file():
            with store.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                rows = list(stored["rows"][:epoch])
        with outside_scope():
            rows.append(self.generate())
        with files.atomic_write(store) as temporary:
            np.savez_compressed(temporary, rows=np.stack(rows))
        self.plot(self.path, rows)
