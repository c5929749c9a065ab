"""Training of the latent diffusion: losses against closed forms, batches as they are defined."""

import keras
import numpy as np
import pytest

from zoo.data import captions
from zoo.data.captions import DIGITS, TEMPLATES
from zoo.evaluation.diffusion import frechet_distance
from zoo.generation.diffusion import noise_sampler
from zoo.models.captioned_image_classifier import captioned_image_classifier, feature_extractor
from zoo.models.cnn import cnn
from zoo.models.stable_diffusion import autoencoder, text_encoder
from zoo.training import diffusion

NUMPY = keras.ops.convert_to_numpy
LENGTH = 16


@pytest.fixture(scope="module")
def digits():
    return captions._captioned("digits", DIGITS, [captions.load_images("digits")])


@pytest.fixture(scope="module")
def tokenizer(digits):
    return diffusion.caption_tokenizer(digits.all_captions())


@pytest.fixture(scope="module")
def encoded(digits):
    """Latents of an untrained encoder."""
    encoder = autoencoder.encoder(block_out_channels=(8, 8, 8), layers_per_block=1, norm_num_groups=4)
    return diffusion.LatentCache(encoder, digits.subset(60), "train", seed=3)


# --------------------------------------------------------------------------------------------------------------- losses


def test_clip_loss_is_cross_entropy_both_ways():
    """Against PyTorch's, where every caption is true of one image; and a row of two true ones by hand."""
    import torch

    logits = np.random.default_rng(0).normal(size=(5, 5)).astype("float32") * 3
    loss = float(diffusion.ClipLoss()(np.eye(5, dtype="float32"), logits))
    both = (torch.tensor(logits), torch.tensor(logits.T))
    expected = sum(torch.nn.functional.cross_entropy(one, torch.arange(5)) for one in both) / 2
    assert loss == pytest.approx(float(expected), rel=1e-5)
    same = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], "float32")
    logits, share = logits[:3, :3], same / same.sum(1, keepdims=True)
    log_p = [one - np.log(np.exp(one).sum(1, keepdims=True)) for one in (logits, logits.T)]
    expected = -np.mean([(share * one).sum(1).mean() for one in log_p])
    assert float(diffusion.ClipLoss()(same, logits)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow("tensorflow", "jax")  # its parts are tested there in tests/models
def test_autoencoder_training_model():
    """The divergence is PyTorch's; the image is that of mean + std · noise; the perceptual output sees a difference."""
    import torch

    kwargs = {"block_out_channels": (8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    encoder, decoder = autoencoder.encoder(**kwargs), autoencoder.decoder(**kwargs)
    classifier = captioned_image_classifier(3)
    model = diffusion.autoencoder_training_model(encoder, decoder, classifier)
    assert len(model.trainable_variables) == len(encoder.weights) + len(decoder.weights)
    rng = np.random.default_rng(0)
    image, noise = rng.uniform(-1, 1, (2, 48, 48, 3)), rng.normal(size=(2, 12, 12, 4))
    image, noise = image.astype("float32"), noise.astype("float32")
    found = {key: NUMPY(value) for key, value in model([image, noise]).items()}
    mean, log_variance = (NUMPY(part) for part in encoder(image))
    normal = torch.distributions.Normal
    q, p = normal(torch.tensor(mean), torch.tensor(np.exp(log_variance / 2))), normal(torch.tensor(0.0), 1.0)
    kl = torch.distributions.kl_divergence(q, p).mean((1, 2, 3)).numpy()
    np.testing.assert_allclose(found["kl"], kl, rtol=1e-4)
    restored = NUMPY(decoder(mean + np.exp(log_variance / 2) * noise))
    np.testing.assert_allclose(found["image"], restored, atol=1e-4)
    extract = feature_extractor(classifier)
    features = [NUMPY(extract((127.5 * one + 127.5).astype("float32"))) for one in (restored, image)]
    np.testing.assert_allclose(found["perceptual"], ((features[0] - features[1]) ** 2).mean(-1), rtol=1e-3)

    model = diffusion.autoencoder_training_model(encoder, decoder)
    before = [np.array(NUMPY(weight)) for weight in model.trainable_variables]
    model.compile(keras.optimizers.SGD(1.0), {"image": "mae", "kl": diffusion.IdentityLoss()})
    model.optimizer.build(model.trainable_variables)
    model.train_on_batch((image, noise), {"image": image, "kl": np.zeros(2)})
    changed = [np.abs(NUMPY(weight) - old).max() for weight, old in zip(model.trainable_variables, before)]
    assert sum(change > 0 for change in changed) > 0.9 * len(changed)  # a bias before a group of one channel does not


def test_clip_logits_are_cosines_at_the_end_token():
    """By hand, with the state at the end token; what follows it changes nothing."""
    encoder = text_encoder.text_encoder(
        vocabulary_size=9, num_layers=1, hidden_dim=8, intermediate_dim=8, num_heads=2, max_length=6
    )
    image = keras.Input((None, None, 3))
    image_encoder = keras.Model(image, keras.layers.GlobalAveragePooling2D()(image))
    model = diffusion.clip_model(encoder, image_encoder, end_id=2)
    token_ids = np.array([[1, 5, 2, 0, 0], [1, 6, 7, 8, 2]], "int32")
    images = np.random.default_rng(0).uniform(0, 255, (2, 4, 4, 3)).astype("float32")
    states = NUMPY(encoder(token_ids))
    text_embeds = np.stack([states[0, 2], states[1, 4]]) @ NUMPY(model.get_layer("text_projection").kernel)
    image_embeds = images.mean((1, 2)) @ NUMPY(model.get_layer("image_projection").kernel)
    text_embeds, image_embeds = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (text_embeds, image_embeds))
    logits = NUMPY(model([token_ids, images]))
    np.testing.assert_allclose(logits, image_embeds @ text_embeds.T / 0.07, rtol=1e-3, atol=1e-4)
    token_ids[0, 3:] = 4
    np.testing.assert_allclose(NUMPY(model([token_ids, images])), logits, rtol=1e-4)


def test_loss_and_learnt_temperature_are_those_of_clip():
    """Against transformers: the loss of its CLIP, and the gradient for the logarithm of the scale."""
    import torch
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    cosines = np.random.default_rng(1).uniform(-1, 1, (6, 6)).astype("float32")
    scale = diffusion.LogitScale(name="logit_scale")
    inputs = keras.Input(batch_shape=(6, 6))
    model = keras.Model(inputs, scale(inputs))
    np.testing.assert_allclose(model.predict(cosines, batch_size=6, verbose=0), cosines / 0.07, rtol=1e-5)
    assert diffusion.temperature(model) == pytest.approx(0.07)

    log_scale = torch.tensor(np.log(1 / 0.07), dtype=torch.float32, requires_grad=True)
    expected = image_text_contrastive_loss(torch.tensor(cosines).T * log_scale.exp())
    expected.backward()
    expected = expected.detach()
    model.compile(keras.optimizers.SGD(0.5), diffusion.ClipLoss())
    loss = model.train_on_batch(cosines, np.eye(6, dtype="float32"))
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    step = np.log(1 / 0.07) - float(NUMPY(scale.log_scale))
    assert step == pytest.approx(0.5 * float(log_scale.grad), rel=1e-3) and abs(step) > 0.1
    scale.log_scale.assign(9.0)  # exp(9) = 8,103
    np.testing.assert_allclose(model.predict(cosines, batch_size=6, verbose=0), cosines * 100, rtol=1e-5)


def test_classifier_and_its_features():
    """The features are what its last layer turns into logits."""
    model = captioned_image_classifier(7)
    images = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3)).astype("uint8")
    classifier = model.get_layer("classifier")
    kernel, bias = (NUMPY(weight) for weight in classifier.get_layer("logits").weights)
    np.testing.assert_allclose(
        NUMPY(feature_extractor(model)(images)) @ kernel + bias, model.predict(images, verbose=0), atol=1e-4
    )
    assert model.count_params() == cnn(num_classes=7, units=128).count_params()


# ------------------------------------------------------------------------------------------------------------ tokenizer


@pytest.mark.once
def test_every_caption_is_known_and_fits(digits, tokenizer):
    everything = digits.all_captions()
    ids = diffusion.tokenize_captions(tokenizer, everything, LENGTH)
    assert len(everything) == 10 * 8 * 8 * len(TEMPLATES) and 3 not in ids
    assert (ids[:, 0] == 1).all() and ((ids == 2).sum(1) == 1).all()
    assert tokenizer.encode("A purple unicorn", add_special_tokens=False).tokens == ["a", "purple", "<unknown>"]
    assert diffusion.tokenize_captions(tokenizer, ["a red seven"], 4)[0].tolist() == [
        *tokenizer.encode("a red").ids[:3],
        2,
    ]
    distinct = {tuple(row) for row in ids.tolist()}
    assert len(distinct) == len(set(everything))


@pytest.mark.once
def test_the_most_frequent_words_are_known_and_the_longest_caption_fits():
    captions = ["A cat a dog", "a cat and a Newt"] + ["one two three " * 7]
    tokenizer = diffusion.caption_tokenizer(captions, most_words=6)
    assert sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get) == [
        *diffusion.SPECIAL_TOKENS,
        *("a", "and", "cat", "one", "three", "two"),
    ]
    assert diffusion.caption_length(tokenizer, captions) == 24 and diffusion.caption_length(tokenizer, ["a"]) == 16
    assert diffusion.caption_length(tokenizer, ["one " * 200]) == 77


# -------------------------------------------------------------------------------------------------------------- batches


def test_batches_are_functions_of_seed_epoch_and_index(digits):
    one, other = (diffusion.classifier_batches(digits, "train", 30, seed=seed) for seed in (1, 1))
    first = [batch[0] for batch in (one[0], other[0])]
    assert (first[0] == first[1]).all() and len(one) == len(digits.labels["train"]) // 30
    one.set_epoch(1)
    assert (one[0][0] != other[0][0]).any()
    fixed = diffusion.classifier_batches(digits, "validation", 30, seed=1)
    before = fixed[0][0]
    fixed.set_epoch(5)
    assert (fixed[0][0] == before).all()


@pytest.mark.once
def test_an_epoch_of_few_examples_takes_each_as_often():
    def batches(**options):
        return diffusion.IndexedBatches(10, 4, seed=0, make_batch=lambda rows, rng, key: rows, **options)

    few = batches(min_steps=7)
    rows = np.concatenate([few[index] for index in range(len(few))])
    assert len(few) == 7 and np.bincount(rows).tolist() == np.bincount(few.order[:28]).tolist()
    assert np.bincount(few.order).tolist() == [3] * 10
    few.set_epoch(1)
    assert not np.array_equal(few.order[:10], rows[:10])
    one = batches()
    assert len(one) == 2 and np.array_equal(one.order, rows[:10])


def test_equal_captions_match(digits, tokenizer):
    (ids, images), same = diffusion.clip_batches(digits, "train", 64, seed=0, tokenizer=tokenizer)[0]
    assert ids.shape == (64, LENGTH) and images.shape == (64, 48, 48, 3) and images.max() > 100
    words = [set(tokenizer.decode(row).replace(",", "").split()) - set("a an on in background".split()) for row in ids]
    texts = [tokenizer.decode(row) for row in ids]
    for i in range(64):
        for j in range(64):
            if texts[i] == texts[j]:
                assert same[i, j] == 1
            if words[i] != words[j]:
                assert same[i, j] == 0
    assert (same == same.T).all() and (np.diag(same) == 1).all()


def test_denoiser_batches_are_the_forward_process(digits, encoded):
    """With the noise given back, the clean latents come out, of deviation 1; captions are true, some dropped."""
    alphas_cumprod = noise_sampler.alphas_cumprod(noise_sampler.betas("linear", beta_start=1e-4, beta_end=0.02))
    everything = digits.all_captions()
    contexts = np.arange(len(everything) + 1, dtype="float32")[:, None, None]  # each is its own index
    batches = diffusion.denoiser_batches(encoded, contexts, alphas_cumprod, 20, seed=0, conditioning_dropout_prob=0.3)
    dropped, clean, timesteps = 0, [], []
    for epoch in range(20):
        batches.set_epoch(epoch)
        for index in range(len(batches)):
            (noisy, timestep, context), noise = batches[index]
            alpha = alphas_cumprod[timestep.astype(int)][:, None, None, None]
            clean.append((noisy - np.sqrt(1 - alpha) * noise) / np.sqrt(alpha))
            timesteps.append(timestep)
            caption = context[:, 0, 0].astype(int)
            dropped += (caption == len(everything)).sum()
            rows = batches.order[index * 20 : index * 20 + 20]
            combinations = caption[caption < len(everything)] // len(TEMPLATES)
            assert (combinations == encoded.content_ids[rows][caption < len(everything)]).all()
    timesteps = np.concatenate(timesteps)
    assert abs(dropped / len(timesteps) - 0.3) < 0.05
    assert timesteps.min() < 20 and timesteps.max() > 980 and abs(timesteps.mean() - 499.5) < 30
    early = np.concatenate(clean)[timesteps < 600]
    assert abs((early**2).mean() - (early.mean()) ** 2 - 1) < 0.05


def test_latents_are_those_of_the_captions(digits, encoded):
    """Each combination is that of the batch it was rendered in."""
    few = digits.subset(60)
    batch = next(iter(few.batches("train", 200, seed=3)))
    assert ((batch.labels * 8 + batch.foregrounds) * 8 + batch.backgrounds == encoded.content_ids).all()
    text = few.all_captions()[encoded.content_ids[0] * len(TEMPLATES)]
    assert DIGITS[batch.labels[0]] in text and encoded.mean.shape == (60, 12, 12, 4)


# --------------------------------------------------------------------------------------------------------------- scores


@pytest.mark.once
def test_frechet_distance():
    """Against SciPy's matrix root; nothing between a set and itself; |shift|² for a shift."""
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(400, 6)), rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)) + 0.5
    c1, c2 = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    expected = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-6)
    assert abs(frechet_distance(one, one)) < 1e-8
    assert frechet_distance(one, one + 2) == pytest.approx(24, rel=1e-6)
    with pytest.raises(ValueError, match="at least 2 rows of each, got 1 and"):
        frechet_distance(one[:1], other)


@pytest.mark.once
def test_batches_of_fewer_examples_can_be_divided():
    for count, size in ((3, 2), (4, 4), (7, 4), (64, 64), (100, 64)):
        batches = diffusion.IndexedBatches(count, 64, seed=0, make_batch=lambda rows, rng, key: rows)
        assert batches.batch_size == size and len(batches) == count // size and len(batches[0]) == size
