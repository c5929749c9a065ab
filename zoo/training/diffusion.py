"""What each part of a latent diffusion is trained on: the network with its losses, and its batches.

judge         picture -> class                                 cross-entropy
autoencoder   picture -> latents -> picture                    |x - x̂| + w·KL(q(z|x) ‖ N(0, 1))     Rombach 2022, 3.1
text encoder  caption and picture -> do they belong together?  contrast both ways                  Radford et al. 2021
denoiser      noisy latents, timestep, caption -> the noise    |ε - ε̂|²                 Ho et al. 2020, equation 14

All random numbers (noise, timesteps, dropped captions) come from NumPy and are functions of (seed, epoch, batch): every
backend sees the same.

Letters: B pictures, S tokens, h x w x C latents, T timesteps, d width of the context, P width of a pair's vectors.
"""

import keras
import numpy as np
from keras import layers, ops

from zoo.data.batches import epoch_order
from zoo.data.captions import SIZE, TEMPLATES, say
from zoo.models.cnn import cnn
from zoo.models.preprocessing import preprocessing, with_preprocessing
from zoo.models.stable_diffusion.autoencoder import join

MEAN, STD = 0.42, 0.34  # of captioned pictures in [0, 1], all channels; the judge's input is normalised with them
TEMPERATURE = 0.07  # of the contrast; what CLIP's begins at (Radford et al. 2021, section 2.5)
PAIR_WIDTH = 64  # P
MARKS = ("<pad>", "<start>", "<end>", "<unknown>")  # ids 0, 1, 2, 3 of the tokenizer


# ------------------------------------------------------------------------------------------------------------- networks


def judge(num_classes, *, seed=0):
    """The 48x48 CNN behind its preprocessing: pictures (B, H, W, 3), 0 to 255 -> logits (B, K)."""
    classifier = cnn(num_classes=num_classes, units=128, dropout=0.25, seed=seed, name="classifier")
    before = preprocessing("test", input_shape=(None, None, 3), image_size=SIZE, mean=MEAN, std=STD, name="prepare")
    return with_preprocessing(before, classifier, name="judge")


def features(model):
    """Of a judge: pictures (B, H, W, 3) -> what its last hidden layer says of them, (B, 128), without its dropouts."""
    image = keras.Input((None, None, 3), name="image")
    classifier, x = model.get_layer("classifier"), model.get_layer("prepare")(image)
    for name in ("conv1", "conv2", "pool1", "conv3", "pool2", "flatten", "dense1"):
        x = classifier.get_layer(name)(x)
    return keras.Model(image, x, name="judge_features")


def autoencoder_in_training(encoder, decoder, looks=None):
    """[image, noise] -> {"image": restored, "kl": (B,)[, "looks": (B,)]}.

    kl is the Kullback-Leibler divergence of the latents from N(0, 1), a mean over them in nats. looks is the mean
    squared difference of what a judge's features say of both pictures.

    Args:
        encoder, decoder: of `zoo.models.stable_diffusion.autoencoder`.
        looks: a judge, whose weights then stay as they are, or None.
    """
    whole = join(encoder, decoder)
    restored, mean, log_variance = whole.outputs
    image = whole.inputs[0]
    kl = 0.5 * ops.mean(ops.square(mean) + ops.exp(log_variance) - 1 - log_variance, axis=(1, 2, 3))  # (B,)
    outputs = {"image": restored, "kl": kl}
    if looks is not None:
        seen = features(looks)
        seen.trainable = False
        outputs["looks"] = ops.mean(ops.square(seen(127.5 * restored + 127.5) - seen(127.5 * image + 127.5)), axis=-1)
    return keras.Model(whole.inputs, outputs, name="autoencoder_in_training")


def pairs_in_training(text_encoder, trunk, end_id):
    """[tokens (B, S), image (B, H, W, 3), 0 to 255] -> logits (B, B): how well picture i and caption j go together.

    The text's vector is the state at its end token, the picture's that of `trunk`; each is brought to P numbers of
    length 1, and their products are divided by the temperature.

    Args:
        text_encoder: tokens (B, S) -> (B, S, d).
        trunk: pictures -> (B, F), `features` of a judge.
        end_id: token that ends a text.
    """
    token = keras.Input((None,), dtype="int32", name="token")
    image = keras.Input((None, None, 3), name="image")
    at_end = ops.expand_dims(ops.cast(ops.equal(token, end_id), "float32"), -1)  # (B, S, 1)
    text = ops.sum(at_end * text_encoder(token), axis=1)  # (B, d)
    text, picture = (
        ops.normalize(layers.Dense(PAIR_WIDTH, use_bias=False, name=f"{name}_projection")(x), axis=-1)
        for name, x in (("text", text), ("image", trunk(image)))
    )
    return keras.Model([token, image], ops.matmul(picture, ops.transpose(text)) / TEMPERATURE, name="pairs_in_training")


@keras.saving.register_keras_serializable("zoo")
class Contrast(keras.losses.Loss):
    """Cross-entropy of pictures over captions and of captions over pictures, a mean of both (CLIP, figure 3), in nats.

    Args of a call: which belong together, (B, B) of 0 and 1, symmetric, several in a row where captions say the same;
    logits (B, B), a picture a row.
    """

    def call(self, y_true, y_pred):
        wanted = y_true / ops.sum(y_true, axis=1, keepdims=True)
        both = (ops.log_softmax(y_pred, axis=1), ops.transpose(ops.log_softmax(y_pred, axis=0)))
        return -0.5 * sum(ops.sum(wanted * one, axis=1) for one in both)


@keras.saving.register_keras_serializable("zoo")
class AsIs(keras.losses.Loss):
    """The output is the loss, (B,)."""

    def call(self, y_true, y_pred):
        return y_pred


# ------------------------------------------------------------------------------------------------------------ tokenizer


def caption_tokenizer(dataset):
    """A word-level tokenizer of all captions of a data set, lower-cased; `MARKS` come first."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({}, unk_token="<unknown>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    words = {
        word for caption in every_caption(dataset) for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(caption)
    }
    entries = {word: id_ for id_, word in enumerate((*MARKS, *sorted(words)))}
    tokenizer.model = models.WordLevel(entries, unk_token="<unknown>")
    tokenizer.add_special_tokens(list(MARKS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return tokenizer


def every_caption(dataset):
    """All captions that there are, (K·8·8·templates): that of (label, ink, background, template) at its place."""
    colours = range(8)
    return [
        say(template, name, ink, background)
        for name in dataset.class_names
        for ink in colours
        for background in colours
        for template in TEMPLATES
    ]


def encode_captions(tokenizer, captions, length):
    """Ids (N, length) int32 of captions with start, end and padding.

    Raises:
        ValueError: if one is longer.
    """
    ids = np.zeros((len(captions), length), np.int32)  # 0 is <pad>
    for row, encoding in enumerate(tokenizer.encode_batch(list(captions))):
        if len(encoding.ids) > length:
            raise ValueError(f"{captions[row]!r} has {len(encoding.ids)} tokens, at most {length} fit.")
        ids[row, : len(encoding.ids)] = encoding.ids
    return ids


# -------------------------------------------------------------------------------------------------------------- batches


class Ordered(keras.utils.PyDataset):
    """Whole batches of `count` rows in an order that is a function of (seed, epoch); `make(rows, rng)` makes each.

    Args:
        count: rows in all.
        batch_size: rows of a batch, at most `count`.
        seed: of order and random numbers; with `fixed` those of epoch 0 for ever (validation).
        make: function of (rows (B,), rng, key) to what `fit` takes; `rng` and `key`, a list of ints, are functions of
            (seed, epoch, batch).
    """

    def __init__(self, count, batch_size, *, seed, make, fixed=False):
        super().__init__(workers=1, use_multiprocessing=False)
        self.count, self.batch_size, self.seed, self.make, self.fixed = count, min(batch_size, count), seed, make, fixed
        self.set_epoch(0)

    def set_epoch(self, epoch):
        self.epoch = 0 if self.fixed else epoch
        self.order = epoch_order(self.count, seed=self.seed, epoch=self.epoch)

    def __len__(self):
        return self.count // self.batch_size

    def __getitem__(self, index):
        rows = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        key = [self.seed, self.epoch, index]
        return self.make(rows, np.random.default_rng([*key, 1]), key)


def judge_batches(dataset, part, batch_size, *, seed):
    """Pictures (B, 48, 48, 3) uint8 and their classes (B,)."""

    def make(rows, rng, key):
        batch = dataset.draw(part, rows, seed=key)
        return batch.images, batch.labels

    return _over(dataset, part, batch_size, seed, make)


def autoencoder_batches(dataset, part, batch_size, *, seed, latent_shape, looks=False):
    """([pictures in [-1, 1], noise (B, h, w, C)], {"image": the pictures, others: zeros (B,)})."""

    def make(rows, rng, key):
        images = dataset.draw(part, rows, seed=key).images.astype("float32") / 127.5 - 1
        noise = rng.standard_normal((len(rows), *latent_shape), dtype="float32") * (part == "train")
        zeros = np.zeros(len(rows), "float32")
        return (images, noise), {"image": images, "kl": zeros} | ({"looks": zeros} if looks else {})

    return _over(dataset, part, batch_size, seed, make)


def pair_batches(dataset, part, batch_size, *, seed, tokenizer, length):
    """([tokens (B, S), pictures], (B, B) float32: 1 where caption j is true of picture i)."""

    def make(rows, rng, key):
        batch = dataset.draw(part, rows, seed=key)
        said = np.stack([batch.labels, batch.inks, batch.backgrounds], 1)  # (B, 3)
        same = (said[:, None] == said[None]).all(-1).astype("float32")
        return (encode_captions(tokenizer, batch.captions, length), batch.images.astype("float32")), same

    return _over(dataset, part, batch_size, seed, make)


def _over(dataset, part, batch_size, seed, make):
    return Ordered(len(dataset.labels[part]), batch_size, seed=seed, make=make, fixed=part != "train")


def denoiser_batches(latents, contexts, alpha_bars, batch_size, *, seed, drop=0.1, fixed=False):
    """([noisy latents (B, h, w, C), timesteps (B,), contexts (B, S, d)], noise (B, h, w, C)).

    Args:
        latents: `EncodedPictures`.
        contexts: (K·8·8·templates + 1, S, d): those of `every_caption`, and last that of the empty one.
        alpha_bars: (T,).
        drop: share of the captions that are left out, for guidance (Ho & Salimans 2022, algorithm 1).
        fixed: whether every epoch is like the first.
    """

    def make(rows, rng, key):
        clean = latents.draw(rows, rng)
        timestep = rng.integers(0, len(alpha_bars), len(rows))
        noise = rng.standard_normal(clean.shape, dtype="float32")
        level = alpha_bars[timestep].astype("float32")[:, None, None, None]
        caption = latents.places[rows] * len(TEMPLATES) + rng.integers(0, len(TEMPLATES), len(rows))
        caption[rng.random(len(rows)) < drop] = len(contexts) - 1
        noisy = np.sqrt(level) * clean + np.sqrt(1 - level) * noise  # q(x_t | x_0)
        return (noisy, timestep.astype("float32"), contexts[caption]), noise

    return Ordered(len(latents.places), batch_size, seed=seed, make=make, fixed=fixed)


class EncodedPictures:
    """What an encoder says of each scan of a part, drawn once in colours that are a function of the seed.

    Attributes:
        places: (N,) place of (label, ink, background) among the K·8·8.
        mean, deviation: (N, h, w, C) float16 of latents; `scale` brings them to a standard deviation of 1.
    """

    def __init__(self, encoder, dataset, part, *, seed, scale=None, batch_size=200):
        places, means, deviations = [], [], []
        for batch in dataset.batches(part, batch_size, seed=seed):
            mean, log_variance = encoder.predict_on_batch(batch.images.astype("float32") / 127.5 - 1)
            places.append((batch.labels * 8 + batch.inks) * 8 + batch.backgrounds)
            means.append(np.asarray(mean, "float16"))
            deviations.append(np.exp(0.5 * np.asarray(log_variance)).astype("float16"))
        self.places, self.mean, self.deviation = map(np.concatenate, (places, means, deviations))
        spread = np.sqrt(self.mean.astype("float64").var() + (self.deviation.astype("float64") ** 2).mean())
        self.scale = float(1 / spread) if scale is None else scale

    def draw(self, rows, rng):
        """Scaled latents (B, h, w, C) float32, with a draw from what the encoder is unsure of."""
        mean, deviation = self.mean[rows].astype("float32"), self.deviation[rows].astype("float32")
        return self.scale * (mean + deviation * rng.standard_normal(mean.shape, dtype="float32"))
