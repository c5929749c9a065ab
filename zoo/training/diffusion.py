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
import collections
import math
import pathlib
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import layers, ops

from zoo.data.batches import epoch_order
from zoo.data.captioned_folder import CaptionedFolder, load_captioned_folder
from zoo.data.captions import load_captioned_images
from zoo.data.images import default_image_dataset
from zoo.distribution.strategy import on_main_process, outside_scope
from zoo.errors import UserError, listed
from zoo.io import cards, files, model_files, schemas
from zoo.models.captioned_image_classifier import feature_extractor
from zoo.models.stable_diffusion.autoencoder import autoencoder_from_parts
from zoo.presets import find_preset
from zoo.training import flags
from zoo.training.run import Run, print_wrapped
from zoo.typing import StrPath, Tensor

if TYPE_CHECKING:
    import tokenizers

    from zoo.data.captions import CaptionedImages
    from zoo.training.fine_tuning import Pretrained

LATENT_CHANNELS = 4  # C
VAE_SCALE_FACTOR = 4  # H / h
MAX_LENGTH = 16  # S: tokens of a caption, with start and end; more where captions of one's own are longer
MOST_TOKENS = 77  # of a caption, as CLIP's (Radford et al. 2021, section 2.4); what is longer is cut
MOST_WORDS = 8192  # of the vocabulary
MIN_STEPS = 250  # of an epoch: of few pictures of one's own it takes each several times
# Ho et al. 2020, section 4. Hardly any signal is left at its end, so that black and white backgrounds can be generated.
NOISE_SCHEDULE = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}
TEMPERATURE = 0.07  # of the contrastive loss, the start value of CLIP's (Radford et al. 2021, section 2.5)
MOST_LOGIT_SCALE = 100.0  # what logits are multiplied by at most where the temperature is learnt (the same)
PROJECTION_DIM = 64  # P
SPECIAL_TOKENS = ("<pad>", "<start>", "<end>", "<unknown>")  # ids 0, 1, 2, 3 of the tokenizer

_NOT_IN_CARD = ("first_losses", "wall_seconds", "epochs_trained", "backend", "versions", "machine")
DATA_FLAGS = ("train_dir", "validation_dir", "test_dir", "caption_column", "image_size", "on_broken", "stream")
RUN_FLAGS = ("data_dir", "seed", "limit", "parity", "devices", "parallel", "precision", "output", "resume", "overwrite")
CLIP_FILE = "clip.keras"  # beside the text encoder's run on pictures of one's own: it scores what is generated
# What each recipe adds to the run folder, and what the card says of it: {H} pixels, {h} latents, {S} tokens.
PARTS: dict[str, dict[str, Any]] = {
    "classifier": {
        "files": cards.DIFFUSION_PARTS["classifier"],
        "input": "images (B, H, W, 3) in [0, 255]",
        "output": "logits (B, 20); softmax gives probabilities",
    },
    "autoencoder": {
        "files": cards.DIFFUSION_PARTS["autoencoder"],
        "input": {"encoder": "images (B, {H}, {H}, 3) in [-1, 1]", "decoder": "latents (B, {h}, {h}, 4)"},
        "output": {
            "encoder": "[mean, log-variance] of latents (B, {h}, {h}, 4)",
            "decoder": "images (B, {H}, {H}, 3), about in [-1, 1]",
        },
    },
    "text_encoder": {
        "files": cards.DIFFUSION_PARTS["text_encoder"],
        "input": "token ids (B, {S}) int32 of tokenizer.json",
        "output": "context (B, {S}, 128)",
    },
    "denoiser": {
        "files": cards.DIFFUSION_PARTS["denoiser"],
        "input": "[latents (B, {h}, {h}, 4), timestep (B,), context (B, S, 128)]",
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
    if own := getattr(args, "train_dir", None):
        return re.sub(r"\W+", "_", pathlib.Path(own).expanduser().resolve().name) or "pictures"
    return "digits" if default_image_dataset(args.data_dir)[0] == "digits" else "mnist_fashion_mnist"


def load_dataset(args: argparse.Namespace) -> CaptionedImages | CaptionedFolder:
    """Load the captioned images and print what they are; the small ones that recipes fall back on bring own defaults.

    Args:
        args: the flags of a recipe; with `train_dir` the pictures are those of a folder.

    Returns:
        `CaptionedImages`, or `CaptionedFolder` with --train-dir.

    Raises:
        UserError: if the data cannot be loaded.
    """
    own = getattr(args, "train_dir", None)
    dataset: CaptionedImages | CaptionedFolder
    print(f"Reading {own or 'the images'} …", flush=True)
    if own:
        names = [name for name in DATA_FLAGS if name != "train_dir"]
        dataset = load_captioned_folder(own, **{name: getattr(args, name) for name in names}, seed=args.seed)
        remarks = list(dataset.remarks)
    else:
        for name in DATA_FLAGS[1:]:
            if name in args.given and getattr(args, name, None) is not None:
                raise UserError(f"--{name.replace('_', '-')} belongs to --train-dir: name the folder of your pictures.")
        dataset, remark = load_captioned_images(args.data_dir)
        remarks = [remark] if remark else []
        if remark:
            flags.use_fallback(args)
    for remark in remarks:
        print_wrapped(remark)
    if args.limit:
        dataset = dataset.subset(args.limit)
    if isinstance(dataset, CaptionedFolder):
        kind = f"{len(dataset.all_captions()):,} different captions"
    else:
        kind = f"{len(dataset.class_names)} classes"
    count = {split: dataset.count(split) for split in ("train", "validation", "test")}
    print_wrapped(
        f"{keras.backend.backend()} backend · {dataset.name}: {count['train']:,} training, {count['validation']:,} "
        f"validation and {count['test']:,} test images, {kind}"
    )
    return dataset


def add_data_flags(parser: Any, *, steps: int) -> None:
    """Add the flags of pictures of one's own to a recipe.

    Args:
        parser: of `zoo.training.flags`, with --epochs.
        steps: how many are trained on them, by `default_epochs`, unless the command says how many epochs.
    """
    flags.add(parser, *DATA_FLAGS)
    action = parser.actions["epochs"]
    action.help = f"{action.help.removesuffix(')')}; with --train-dir: about {steps:,} steps)"


def default_epochs(args: argparse.Namespace, train: keras.utils.PyDataset, *, steps: int) -> None:
    """With --train-dir and without --epochs, set as many epochs as take a number of steps.

    Args:
        args: the flags of a recipe, changed in place.
        train: batches of an epoch.
        steps: the number.
    """
    if args.train_dir and "epochs" not in args.given:
        args.epochs = max(1, round(steps / len(train)))


@on_main_process
def copy_base(init_from: StrPath, folder: StrPath) -> None:
    """Copy the parts of a preset but for the denoiser into a run folder: LoRA adapts that alone.

    Args:
        init_from: name or folder of the preset.
        folder: of the run.

    Raises:
        UserError: if the preset lacks a part.
    """
    source, target = find_preset(init_from).folder, files.prepare_folder(folder)
    parts = {part: names for part, names in cards.DIFFUSION_PARTS.items() if part != "denoiser"}
    needed = [name for part, names in parts.items() for name in names if part != "classifier"]
    if missing := [name for name in needed if not (source / name).is_file()]:
        raise UserError(f"{init_from} has no {listed(missing, most=4)}: name the folder of a whole latent diffusion.")
    copied = [name for names in parts.values() for name in names if (source / name).is_file()]
    for name in (*copied, *([f"text_encoder/{CLIP_FILE}"] if (source / "text_encoder" / CLIP_FILE).is_file() else [])):
        (target / name).parent.mkdir(exist_ok=True)
        with files.atomic_write(target / name) as temporary:
            shutil.copyfile(source / name, temporary)
    card = cards.read_card(source)
    card = {key: card[key] for key in ("task", "input", "output", "components") if key in card}
    card["components"] = {part: entry for part, entry in card.get("components", {}).items() if part in parts}
    cards.write_card(target, card, copied)


def save_part(
    run: Run,
    part: str,
    contents: Mapping[str, Any],
    scores: Mapping[str, Any],
    *,
    image_size: int = 48,
    max_length: int = MAX_LENGTH,
) -> dict[str, Any]:
    """Save a trained part: its files and its entry in the card of the run folder, and metrics.json.

    Args:
        run: `zoo.training.run.Run`, whose folder lies in the run folder of all parts.
        part: a key of `PARTS`.
        contents: {file name: model, text or dict}.
        scores: dict, with "parameters" and "dataset".
        image_size: height and width of images in pixels.
        max_length: S, tokens of a caption.

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
    entry = {key: _with_sizes(PARTS[part][key], image_size, max_length) for key in ("input", "output")}
    entry |= {key: value for key, value in metrics.items() if key not in _NOT_IN_CARD}
    components = card.get("components", {}) | {part: entry}
    own = bool(getattr(run.args, "train_dir", None))
    takes = f"a caption of at most {max_length - 2} words" if own else "an English caption, at most 14 words"
    if part == "denoiser" or "input" not in card:  # the last part knows the length
        card |= {"input": takes, "output": f"images (B, {image_size}, {image_size}, 3) uint8"}
    card |= {"task": "text-to-image", "command": metrics["command"], **shared}
    count = sum(one.get("parameters", 0) for one in components.values())
    card |= {"parameters": count, "components": components}
    cards.write_card(folder, card, sorted(present | (described & set(contents))))
    metrics["sha256"] = {name: files.sha256(folder / name) for name in contents}
    print(", ".join(f"{key} {value:.4g}" for key, value in scores.items() if isinstance(value, float)), flush=True)
    return run.save_metrics(metrics, _next_command(run, part))


def _with_sizes(value, image_size, max_length):
    """What the card says of a part, with the numbers of this run."""
    if isinstance(value, dict):
        return {key: _with_sizes(one, image_size, max_length) for key, one in value.items()}
    for letter, size in (("{H}", image_size), ("{h}", image_size // VAE_SCALE_FACTOR), ("{S}", max_length)):
        value = value.replace(letter, str(size))
    return value


def _next_command(run, part):
    """The recipe of the next part; None in the recipe that runs all of them."""
    if not sys.argv[0].endswith(f"diffusion_{part}.py"):
        return None
    following = dict(zip(PARTS, [*list(PARTS)[1:], "evaluation"]))[part]
    words = ["python", f"recipes/diffusion_{following}.py"]
    for name in ("data_dir", *DATA_FLAGS, "output"):
        if name in run.args.given and getattr(run.args, name, None) is not None:
            words += [f"--{name.replace('_', '-')}", str(getattr(run.args, name))]
    return words


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


@keras.saving.register_keras_serializable("zoo")
class LogitScale(keras.layers.Layer):
    """Divides by a learnt temperature, which starts at `TEMPERATURE`: x · min(exp(s), 100) (Radford et al. 2021, 2.5).

    One weight: s, the logarithm of the inverse temperature.
    """

    def build(self, input_shape: Any) -> None:
        start = keras.initializers.Constant(math.log(1 / TEMPERATURE))
        self.log_scale = self.add_weight((), initializer=start, name="log_scale")
        self.built = True

    def call(self, x: Tensor) -> Tensor:
        return x * ops.exp(ops.minimum(ops.cast(self.log_scale, x.dtype), math.log(MOST_LOGIT_SCALE)))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


def clip_model(
    text_encoder: keras.Model, image_encoder: keras.Model, end_id: int, *, learn_temperature: bool = False
) -> keras.Model:
    """Text and image encoder with a contrastive head: CLIP (Radford et al. 2021, figure 3).

    The text's vector is the state at its end token, the image's that of `image_encoder`; each is projected to P
    dimensions and normalized, and the cosines are divided by the temperature.

    Args:
        text_encoder: token ids (B, S) -> (B, S, d).
        image_encoder: images -> (B, F).
        end_id: id of the token that ends a text.
        learn_temperature: let the layer "logit_scale" learn it; else it is `TEMPERATURE`.

    Returns:
        `keras.Model` from [token_ids (B, S), image (B, H, W, 3) in [0, 255]] to logits (B, B): similarity of image i
        and caption j.
    """
    token_ids = keras.Input((None,), dtype="int32", name="token")
    image = keras.Input(image_encoder.inputs[0].shape[1:], name="image")
    is_end = ops.expand_dims(ops.cast(ops.equal(token_ids, end_id), "float32"), -1)  # (B, S, 1)
    text_features = ops.sum(is_end * text_encoder(token_ids), axis=1)  # (B, d)
    text_embeds, image_embeds = (
        ops.normalize(layers.Dense(PROJECTION_DIM, use_bias=False, name=f"{name}_projection")(x), axis=-1)
        for name, x in (("text", text_features), ("image", image_encoder(image)))
    )
    cosines = ops.matmul(image_embeds, ops.transpose(text_embeds))
    logits = LogitScale(name="logit_scale")(cosines) if learn_temperature else cosines / TEMPERATURE
    return keras.Model([token_ids, image], logits, name="clip_model")


def temperature(clip_model: keras.Model) -> float:
    """The temperature that a model has learnt.

    Args:
        clip_model: of `clip_model`, with `learn_temperature`.

    Returns:
        what its cosines are divided by.
    """
    log_scale = float(ops.convert_to_numpy(clip_model.get_layer("logit_scale").log_scale))
    return 1 / min(math.exp(log_scale), MOST_LOGIT_SCALE)


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


def caption_tokenizer(captions: Sequence[str], most_words: int = MOST_WORDS) -> tokenizers.Tokenizer:
    """A lower-casing word-level tokenizer of captions; `SPECIAL_TOKENS` come first, the words in alphabetical order.

    Args:
        captions: whose words are known.
        most_words: how many, the most frequent ones.

    Returns:
        `tokenizers.Tokenizer`.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({}, unk_token="<unknown>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    counts = collections.Counter(
        word
        for caption in captions
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(caption))
    )
    words = sorted(sorted(counts, key=lambda word: (-counts[word], word))[:most_words])
    vocabulary = {word: id_ for id_, word in enumerate((*SPECIAL_TOKENS, *words))}
    tokenizer.model = models.WordLevel(vocabulary, unk_token="<unknown>")
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return tokenizer


def caption_length(tokenizer: tokenizers.Tokenizer, captions: Sequence[str]) -> int:
    """Tokens that captions take, with start and end.

    Args:
        tokenizer: of `caption_tokenizer`.
        captions: texts.

    Returns:
        the smallest multiple of 8 that all of them fit in, from `MAX_LENGTH` to `MOST_TOKENS`.
    """
    longest = max(len(encoding.ids) for encoding in tokenizer.encode_batch(list(captions)))
    return min(MOST_TOKENS, max(MAX_LENGTH, -(-longest // 8) * 8))


def max_length(text_encoder: keras.Model) -> int:
    """S of a text encoder.

    Args:
        text_encoder: of `zoo.models.stable_diffusion.text_encoder`.

    Returns:
        the number of its positions.
    """
    return int(text_encoder.get_layer("position_embedding").input_dim)


def warn_of_captions(tokenizer: tokenizers.Tokenizer, captions: Sequence[str], length: int) -> None:
    """Print how many captions are cut, or have words that the tokenizer does not know.

    Args:
        tokenizer: of `caption_tokenizer`.
        captions: texts.
        length: S.
    """
    encodings, unknown_id = tokenizer.encode_batch(list(captions)), tokenizer.token_to_id("<unknown>")
    long = sum(len(encoding.ids) > length for encoding in encodings)
    if long:
        print_wrapped(f"{long:,} of {len(captions):,} captions are cut after {length - 2} words.")
    words = {
        caption[slice(*offsets)].lower()
        for caption, encoding in zip(captions, encodings)
        for id_, offsets in zip(encoding.ids, encoding.offsets)
        if id_ == unknown_id
    }
    if words:
        print_wrapped(f"Words of the captions that are not in the vocabulary: {listed(sorted(words), most=10)}.")


def tokenize_captions(tokenizer: tokenizers.Tokenizer, captions: Sequence[str], length: int = MAX_LENGTH) -> np.ndarray:
    """Encode captions, with start, end and padding.

    Args:
        tokenizer: of `caption_tokenizer`.
        captions: N texts.
        length: S.

    Returns:
        token ids (N, S) int32; of a longer caption the first S - 1, and the end.
    """
    token_ids = np.zeros((len(captions), length), np.int32)  # 0 is <pad>
    for row, encoding in enumerate(tokenizer.encode_batch(list(captions))):
        ids = encoding.ids if len(encoding.ids) <= length else [*encoding.ids[: length - 1], encoding.ids[-1]]
        token_ids[row, : len(ids)] = ids
    return token_ids


# -------------------------------------------------------------------------------------------------------------- batches


class IndexedBatches(keras.utils.PyDataset):
    """Whole batches of indices in an order that is a function of (seed, epoch); `make_batch` turns each into data.

    Args:
        count: number of examples.
        batch_size: examples per batch; of fewer examples the largest power of two, which devices can divide.
        seed: of the order and of the random numbers.
        make_batch: function of (indices (B,), rng, key) that returns what `fit` takes; `rng` and `key`, a list of ints,
            are functions of (seed, epoch, batch).
        same_every_epoch: whether every epoch is epoch 0 (validation).
        min_steps: an epoch takes all examples as often as gives so many batches.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int,
        make_batch: Callable[[np.ndarray, np.random.Generator, list[int]], Any],
        same_every_epoch: bool = False,
        min_steps: int = 1,
    ) -> None:
        super().__init__(workers=1, use_multiprocessing=False)
        self.count, self.seed = count, seed
        self.batch_size = batch_size if count >= batch_size else 2 ** (count.bit_length() - 1)
        self.make_batch, self.same_every_epoch = make_batch, same_every_epoch
        self.rounds = -(-min_steps * self.batch_size // count)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Set the order of an epoch.

        Args:
            epoch: its number, from 0.
        """
        self.epoch = 0 if self.same_every_epoch else epoch
        rounds = range(self.epoch * self.rounds, (self.epoch + 1) * self.rounds)
        self.order = np.concatenate([epoch_order(self.count, seed=self.seed, epoch=number) for number in rounds])

    def __len__(self):
        return self.count * self.rounds // self.batch_size

    def __getitem__(self, index):
        indices = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        key = [self.seed, self.epoch, index]
        return self.make_batch(indices, np.random.default_rng([*key, 1]), key)


def _split_batches(dataset, split, batch_size, seed, make_batch, min_steps=1):
    options = {"same_every_epoch": True} if split != "train" else {"min_steps": min_steps}
    return IndexedBatches(dataset.count(split), batch_size, seed=seed, make_batch=make_batch, **options)


def min_steps(args: argparse.Namespace) -> int:
    """Fewest steps of an epoch: `MIN_STEPS` with --train-dir, else one.

    Args:
        args: the flags of a recipe.

    Returns:
        the number.
    """
    return MIN_STEPS if args.train_dir else 1


def classifier_batches(dataset: CaptionedImages, split: str, batch_size: int, *, seed: int) -> keras.utils.PyDataset:
    """Batches to train the classifier.

    Args:
        dataset: `CaptionedImages` or `CaptionedFolder`.
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
    dataset: CaptionedImages | CaptionedFolder,
    split: str,
    batch_size: int,
    *,
    seed: int,
    perceptual: bool = False,
    min_steps: int = 1,
) -> keras.utils.PyDataset:
    """Batches to train the autoencoder.

    Args:
        dataset: `CaptionedImages` or `CaptionedFolder`.
        split: "train", "validation" or "test".
        batch_size: B.
        seed: of the order, the colors and the noise.
        perceptual: whether the model has that output.
        min_steps: of an epoch of training, see `IndexedBatches`.

    Returns:
        `PyDataset` of ([images in [-1, 1], noise (B, h, w, C)], {"image": images, "kl"[, "perceptual"]: zeros (B,)}).
    """

    def make_batch(indices, rng, key):
        images = to_minus_one_to_one(dataset.render(split, indices, seed=key).images)
        side = dataset.image_size // VAE_SCALE_FACTOR
        shape = (len(indices), side, side, LATENT_CHANNELS)
        noise = rng.standard_normal(shape, dtype="float32") * (split == "train")
        zeros = np.zeros(len(indices), "float32")
        return (images, noise), {"image": images, "kl": zeros} | ({"perceptual": zeros} if perceptual else {})

    return _split_batches(dataset, split, batch_size, seed, make_batch, min_steps)


def clip_batches(
    dataset: CaptionedImages | CaptionedFolder,
    split: str,
    batch_size: int,
    *,
    seed: int,
    tokenizer: tokenizers.Tokenizer,
    length: int = MAX_LENGTH,
    min_steps: int = 1,
) -> keras.utils.PyDataset:
    """Batches to train the text encoder.

    Args:
        dataset: `CaptionedImages` or `CaptionedFolder`.
        split: "train", "validation" or "test".
        batch_size: B.
        seed: of the order, the colors and the words.
        tokenizer: of `caption_tokenizer`.
        length: S.
        min_steps: of an epoch of training, see `IndexedBatches`.

    Returns:
        `PyDataset` of ([token ids (B, S), images], (B, B) float32: 1 where caption j is true of image i).
    """

    def make_batch(indices, rng, key):
        batch = dataset.render(split, indices, seed=key)
        matches = (batch.content_ids[:, None] == batch.content_ids[None]).astype("float32")
        return (tokenize_captions(tokenizer, batch.captions, length), batch.images.astype("float32")), matches

    return _split_batches(dataset, split, batch_size, seed, make_batch, min_steps)


def denoiser_batches(
    latents: LatentCache,
    contexts: np.ndarray,
    alphas_cumprod: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    conditioning_dropout_prob: float = 0.1,
    same_every_epoch: bool = False,
    min_steps: int = 1,
) -> keras.utils.PyDataset:
    """Batches to train the denoiser (Ho et al. 2020, algorithm 1).

    Args:
        latents: `LatentCache`.
        contexts: (captions + 1, S, d), of `all_captions` of the data set and, last, of the empty caption.
        alphas_cumprod: (T,).
        batch_size: B.
        seed: of the order and of the random numbers.
        conditioning_dropout_prob: probability that a caption is replaced by the empty one, for classifier-free guidance
            (Ho & Salimans 2022, algorithm 1).
        same_every_epoch: whether every epoch is epoch 0.
        min_steps: of an epoch, see `IndexedBatches`.

    Returns:
        `PyDataset` of ([noisy latents (B, h, w, C), timesteps (B,), contexts (B, S, d)], noise (B, h, w, C)).
    """

    def make_batch(indices, rng, key):
        clean = latents.sample(indices, rng)
        timestep = rng.integers(0, len(alphas_cumprod), len(indices))
        noise = rng.standard_normal(clean.shape, dtype="float32")
        alpha_cumprod = alphas_cumprod[timestep].astype("float32")[:, None, None, None]
        caption = latents.content_ids[indices] * latents.num_paraphrases
        caption += rng.integers(0, latents.num_paraphrases, len(indices))
        caption[rng.random(len(indices)) < conditioning_dropout_prob] = len(contexts) - 1
        noisy = np.sqrt(alpha_cumprod) * clean + np.sqrt(1 - alpha_cumprod) * noise  # q(x_t | x_0)
        return (noisy, timestep.astype("float32"), contexts[caption]), noise

    return IndexedBatches(
        len(latents.content_ids),
        batch_size,
        seed=seed,
        make_batch=make_batch,
        same_every_epoch=same_every_epoch,
        min_steps=min_steps,
    )


class LatentCache:
    """An encoder's output for each example of a split, rendered once in colors that are a function of the seed.

    Args:
        encoder: images (B, H, W, 3) in [-1, 1] -> [mean, log-variance] of latents.
        dataset: `CaptionedImages` or `CaptionedFolder`.
        split: "train", "validation" or "test".
        seed: of the colors.
        scaling_factor: brings latents to a standard deviation of 1; measured if None.
        batch_size: images encoded at once.

    Attributes:
        content_ids: (N,) int, of the captions, as the data set numbers them.
        num_paraphrases: captions of a content id.
        mean: (N, h, w, C) float16 of the latents.
        std: (N, h, w, C) float16 of the latents.
        scaling_factor: brings latents to a standard deviation of 1.
    """

    def __init__(
        self,
        encoder: keras.Model,
        dataset: CaptionedImages | CaptionedFolder,
        split: str,
        *,
        seed: int,
        scaling_factor: float | None = None,
        batch_size: int = 200,
    ) -> None:
        self.num_paraphrases = dataset.num_paraphrases
        content_ids, means, stds = [], [], []
        for batch in dataset.batches(split, batch_size, seed=seed):
            mean, log_variance = encoder.predict_on_batch(to_minus_one_to_one(batch.images))
            content_ids.append(batch.content_ids)
            means.append(np.asarray(mean, "float16"))
            stds.append(np.exp(0.5 * np.asarray(log_variance)).astype("float16"))
        self.content_ids, self.mean, self.std = map(np.concatenate, (content_ids, means, stds))
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


def pipeline_config(scaling_factor: float, *, image_size: int = 48, max_length: int = MAX_LENGTH) -> dict[str, Any]:
    """The contents of pipeline.json; see `zoo.converters.stable_diffusion`.

    Args:
        scaling_factor: of the latents.
        image_size: height and width of images in pixels.
        max_length: S, tokens of a caption.

    Returns:
        dict.
    """
    return {
        "kind": "stable_diffusion",
        "latent_channels": LATENT_CHANNELS,
        "scaling_factor": scaling_factor,
        "shift_factor": 0.0,
        "vae_scale_factor": VAE_SCALE_FACTOR,
        "image_size": image_size,
        "max_length": max_length,
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


def pretrained_scaling_factor(pretrained: Pretrained | None, folder: StrPath) -> float | None:
    """The factor of the latents that a denoiser was trained on, which it is fine-tuned on too.

    Args:
        pretrained: what the run starts from; None for random weights.
        folder: of the run, with encoder.keras.

    Returns:
        the factor; None, to measure it, where nothing says it or the latents are those of another encoder.

    Raises:
        UserError: if the pipeline.json of `pretrained` is damaged.
    """
    source = find_preset(pretrained.name).folder if pretrained else None
    paths = [pathlib.Path(one) / "encoder.keras" for one in (source, folder) if one]
    if source is None or not (source / cards.PIPELINE_FILE).is_file() or not all(path.is_file() for path in paths):
        return None
    if len({files.sha256(path) for path in paths}) > 1:
        return None
    return schemas.load(source / cards.PIPELINE_FILE, schemas.PipelineConfig, "a pipeline").scaling_factor


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
        trained: the part of the trained model that `ema_model` is like; None for all of it.
    """

    def __init__(
        self,
        path: StrPath,
        ema_model: keras.Model,
        *,
        generate: Callable[[], np.ndarray],
        plot: Callable[[pathlib.Path, list[np.ndarray]], None],
        trained: keras.Model | None = None,
    ) -> None:
        super().__init__()
        self.path, self.ema_model, self.generate, self.plot = pathlib.Path(path), ema_model, generate, plot
        self.trained = trained

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        trained = map(id, self.model.trainable_variables)
        averages = dict(zip(trained, ema_weights(self.model.optimizer), strict=True))
        for variable, weight in zip(self.ema_model.weights, (self.trained or self.model).weights, strict=True):
            value = averages.get(id(weight), weight)  # what is frozen has no average
            variable.assign(ops.cast(ops.convert_to_numpy(value), "float32"))
        store, rows = self.path.with_suffix(".npz"), []
        if epoch and store.is_file():
            with store.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                rows = list(stored["rows"][:epoch])
        with outside_scope(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of unknown words, in each epoch
            rows.append(self.generate())
        with files.atomic_write(store) as temporary:
            np.savez_compressed(temporary, rows=np.stack(rows))
        self.plot(self.path, rows)
