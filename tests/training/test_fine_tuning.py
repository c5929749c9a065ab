"""Starting from a file: which weights are carried, which stay; training a part: what changes, what does not."""

import argparse
import shutil

import keras
import numpy as np
import pytest

import zoo
from zoo.errors import UserError
from zoo.io import files, model_files
from zoo.models.cnn import cnn
from zoo.models.preprocessing import attach_preprocessing, preprocessing
from zoo.models.rnn_language_model import copy_weights, infer_config, rnn_language_model
from zoo.models.transformer import transformer
from zoo.tokenizers.shared_bpe import SharedBPETokenizer
from zoo.tokenizers.text import train_tokenizer
from zoo.training import flags
from zoo.training.callbacks import BestCheckpoint, CheckpointAveraging
from zoo.training.diffusion import SampleGrid
from zoo.training.fine_tuning import (
    adopt_config,
    adopt_tokenizer,
    init_classifier,
    init_language_model,
    init_translator,
    init_weights,
    load_pretrained,
    set_trainable,
    tokens,
    unfreeze,
)
from zoo.training.optimizers import TorchAdam


def random_weights(model, seed):
    """All weights drawn anew: none of them is zero, as initial biases are."""
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(size=weight.shape).astype("float32") for weight in model.weights])
    return model


def values(model):
    """{path: array} of the weights."""
    return {weight.path: np.array(keras.ops.convert_to_numpy(weight)) for weight in model.weights}


def language_model(tokenizer, seed, **options):
    sizes = {"cell": "lstm", "embedding_dim": 4, "units": 4, "num_layers": 1} | options
    return random_weights(rnn_language_model(vocabulary_size=tokenizer.get_vocab_size(), **sizes), seed)


def language_preset(folder, text="abcdef", **options):
    tokenizer = train_tokenizer(text, "char")
    zoo.CausalLM(language_model(tokenizer, 0, **options), tokenizer).save_to_preset(folder)
    return load_pretrained(folder, task="text-generation", with_tokenizer=True)


# ------------------------------------------------------------------------------------------------------------- carried


@pytest.mark.parametrize("tied", [False, True])
def test_rows_and_columns_of_shared_tokens_are_carried_exactly(tmp_path, capsys, tied):
    pretrained = language_preset(tmp_path / "old", "abcdef", tie_embeddings=tied)
    new_text = "zebdx"
    model = language_model(train_tokenizer(new_text, "char"), 1, tie_embeddings=tied, name="another_name")
    before, old = values(model), values(pretrained.model)
    tokenizer = train_tokenizer(new_text, "char")
    found = init_language_model(model, pretrained, tokenizer, new_head=True)
    after = values(model)
    in_part = ["embedding"] if tied else ["embedding", "logits"]
    assert found["init_weights"] == {"taken": 3, "in_part": dict.fromkeys(in_part, "3 of 5"), "new": []}
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.endswith(f": 3 tensors taken; in part embedding (3 of 5){'' if tied else ', logits (3 of 5)'}.")
    for path in after:
        if "lstm" in path:
            np.testing.assert_array_equal(after[path], old[path])
    for token in new_text:  # looked up by hand
        row, source = sorted(new_text).index(token), "abcdef".find(token)
        expected = before if source < 0 else old
        place = row if source < 0 else source
        np.testing.assert_array_equal(after["embedding/embeddings"][row], expected["embedding/embeddings"][place])
        if not tied:
            np.testing.assert_array_equal(after["logits/kernel"][:, row], expected["logits/kernel"][:, place])
            assert after["logits/bias"][row] == expected["logits/bias"][place]


def test_the_files_tokenizer_is_kept_unless_a_new_head_is_allowed(tmp_path):
    pretrained = language_preset(tmp_path / "old")
    args = argparse.Namespace(new_head=False, tokenizer="char", vocabulary_size=None, given=set())
    assert tokens(adopt_tokenizer(args, pretrained, "fade")) == list("abcdef") and args.vocabulary_size == 6
    with pytest.raises(
        UserError, match="^The text has 'x', 'é', for which .*old has no token: add --new-head"
    ) as caught:
        adopt_tokenizer(args, pretrained, "fade xé".replace(" ", ""))
    assert "\n" not in str(caught.value)
    args.given, args.vocabulary_size = {"vocabulary_size"}, 9
    with pytest.raises(UserError, match="--vocabulary-size 9 does not fit .*, which has 6: leave the flag out or add"):
        adopt_tokenizer(args, pretrained, "fade")
    args.new_head = True
    assert adopt_tokenizer(args, pretrained, "fade x") is None


def test_sizes_are_those_of_the_file_unless_the_command_says_otherwise(tmp_path):
    pretrained = language_preset(tmp_path / "old", units=6)
    args = argparse.Namespace(units=512, cell="gru", given=set())
    adopt_config(args, pretrained, infer_config, "units", "cell")
    assert (args.units, args.cell) == (6, "lstm")
    args.given, args.units = {"units"}, 7
    with pytest.raises(UserError, match="^--units 7 does not fit .*, which has 6: leave the flag out.$"):
        adopt_config(args, pretrained, infer_config, "units")


SHARED = {"num_layers": 1, "hidden_dim": 8, "intermediate_dim": 12, "num_heads": 2}


def translation_preset(folder, **options):
    tokenizer = SharedBPETokenizer.train(["ein Hund läuft", "a dog runs"] * 5, vocabulary_size=270)
    model = random_weights(transformer(vocabulary_size=tokenizer.vocabulary_size, **SHARED | options), 0)
    task = zoo.Translator(model, tokenizer)
    task.save_to_preset(folder, card={"source_lang": "de", "target_lang": "en"})
    return load_pretrained(folder, task="translation", with_tokenizer=True)


def test_the_encoder_alone(tmp_path):
    """Another target language: encoder and the shared tokens from the file, the decoder fresh."""
    pretrained = translation_preset(tmp_path / "old", decoder_layers=2)
    tokenizer = SharedBPETokenizer.train(["ein Hund läuft", "un chien court"] * 5, vocabulary_size=275)
    model = random_weights(transformer(vocabulary_size=tokenizer.vocabulary_size, **SHARED, name="de_fr"), 1)
    args = {"source_lang": "de", "target_lang": "fr", "new_head": False, "init_encoder_only": False}
    with pytest.raises(UserError, match="old has the target language en, this run fr: add --new-head"):
        init_translator(model, pretrained, tokenizer, argparse.Namespace(**args))
    before, old = values(model), values(pretrained.model)
    found = init_translator(model, pretrained, tokenizer, argparse.Namespace(**args | {"init_encoder_only": True}))
    after = values(model)
    both = set(tokens(tokenizer)) & set(tokens(pretrained.tokenizer))
    assert found["init_weights"]["in_part"] == {"embedding": f"{len(both)} of {tokenizer.vocabulary_size}"}
    assert 262 < len(both) < tokenizer.vocabulary_size
    encoder = [path for path in after if path.startswith("encoder_")]
    assert found["init_weights"]["taken"] == len(encoder) > 10
    for path in after:
        if not path.startswith("embedding"):
            np.testing.assert_array_equal(after[path], (old if path in encoder else before)[path])
    vocabularies = [one.tokenizer.get_vocab() for one in (tokenizer, pretrained.tokenizer)]
    for token, row in vocabularies[0].items():
        source = vocabularies[1].get(token)
        expected = before["embedding/embeddings"][row] if source is None else old["embedding/embeddings"][source]
        np.testing.assert_array_equal(after["embedding/embeddings"][row], expected)


def test_a_bias_of_the_logits_that_lies_in_a_table_of_one_row():
    old, model = (
        random_weights(transformer(vocabulary_size=size, logits_bias=True, **SHARED), seed)
        for seed, size in enumerate((5, 4))
    )
    before, source = values(model)["logits_bias/embeddings"], values(old)["logits_bias/embeddings"]
    pretrained = load_pretrained_model(old)
    row_names = dict.fromkeys(("embedding", "logits_bias"), (list("abcde"), list("exca")))
    init_weights(model, pretrained, row_names=row_names, new_head=True)
    expected = [[source[0, 4], before[0, 1], source[0, 2], source[0, 0]]]
    np.testing.assert_array_equal(values(model)["logits_bias/embeddings"], np.array(expected, "float32"))


def load_pretrained_model(model, **attributes):
    """A `Pretrained` of a model in memory."""
    from zoo.training.fine_tuning import Pretrained

    return Pretrained("a_file", {"model.keras": model}, {}, **{"card": {}} | attributes)


def image_classifier(num_classes, seed, **options):
    classifier = random_weights(cnn(num_classes=num_classes, image_size=8, units=4, **options), seed)
    return classifier, attach_preprocessing(
        preprocessing("test", input_shape=(None, None, 1), image_size=8), classifier, name="whole"
    )


def test_classes_are_matched_by_name(tmp_path):
    """The same classes in another order: the same probabilities by name; others: only with a new head, all fresh."""
    _, whole = image_classifier(3, 0)
    zoo.ImageClassifier(whole, class_names=["cat", "dog", "owl"]).save_to_preset(tmp_path / "old")
    pretrained = load_pretrained(tmp_path / "old", task="image-classification")
    new, _ = image_classifier(3, 1, name="new")
    before = values(new)
    init_classifier(new, pretrained, class_names=["owl", "cat", "dog"])
    image = np.random.default_rng(2).normal(size=(2, 8, 8, 3)).astype("float32")
    old = whole.get_layer("cnn")
    logits, expected = (keras.ops.convert_to_numpy(model(image)) for model in (new, old))
    np.testing.assert_allclose(logits, expected[:, [2, 0, 1]], rtol=1e-5, atol=1e-4)
    with pytest.raises(UserError, match="has no entry 'cow': add --new-head"):
        init_classifier(new, pretrained, class_names=["cow", "cat", "dog"])
    with pytest.raises(UserError, match="has the entry 'owl', which this data lacks: add --new-head"):
        init_classifier(new, pretrained, class_names=["cat", "dog"])
    new.set_weights(list(before.values()))
    found = init_classifier(new, pretrained, class_names=["cow", "cat", "dog"], new_head=True)
    assert found["init_weights"] == {"taken": 8, "in_part": {}, "new": ["logits"]}
    after = values(new)
    for path in after:
        is_head = path.startswith("logits")
        np.testing.assert_array_equal(after[path], before[path] if is_head else values(old)[path])


def test_a_file_that_does_not_name_its_classes(tmp_path):
    _, whole = image_classifier(3, 0)
    model_files.save_model(whole, tmp_path / "some.keras")
    pretrained = load_pretrained(tmp_path / "some.keras", task="image-classification")
    new, _ = image_classifier(3, 1)
    init_classifier(new, pretrained, class_names=["a", "b", "c"])
    np.testing.assert_array_equal(values(new)["logits/kernel"], values(whole)["logits/kernel"])
    new, _ = image_classifier(4, 1)
    with pytest.raises(UserError, match="it has 3 classes and this data 4: add --new-head"):
        init_classifier(new, pretrained, class_names=["a", "b", "c", "d"])


def test_nothing_is_changed_where_something_does_not_fit():
    """A layer in the middle is wider: one sentence, and no weight of the layers before it is taken."""
    old, _ = image_classifier(3, 0)
    new = random_weights(cnn(num_classes=3, image_size=8, units=5), 1)
    before = values(new)
    with pytest.raises(UserError, match=r"a_file has shape \(512, 4\) in dense1/kernel, this model \(512, 5\): give"):
        init_classifier(new, load_pretrained_model(old), class_names=["a", "b", "c"])
    for path, value in values(new).items():
        np.testing.assert_array_equal(value, before[path])


def other_activation():
    return transformer(vocabulary_size=5, activation="gelu", **SHARED)


def other_heads():
    return transformer(vocabulary_size=5, **SHARED | {"num_heads": 4})


@pytest.mark.once
@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: cnn(num_classes=5, image_size=8), "a_file is another kind of model: it has the layers conv1, conv2"),
        (lambda: transformer(vocabulary_size=5, **SHARED | {"num_layers": 2}), "a_file has the layers decoder_1_cross"),
        (lambda: transformer(vocabulary_size=5, pre_norm=True, **SHARED), "decoder_norm, encoder_norm, which this mo"),
        (
            lambda: transformer(vocabulary_size=5, logits_bias=False, tie_embeddings=False, **SHARED),
            "has the layers lo",
        ),
        (other_activation, "The layer .*_inner of a_file has activation=gelu, this model's activation=relu: give"),
        (other_heads, r"The layer .*_heads of a_file has target_shape=.* 2\), this model's target_shape=.* 4\)"),
    ],
)
def test_a_model_of_another_kind(make, words):
    model = transformer(vocabulary_size=5, **SHARED)
    with pytest.raises(UserError, match=words) as caught:
        init_weights(model, load_pretrained_model(make()))
    assert "\n" not in str(caught.value)


@pytest.mark.once
def test_what_cannot_be_loaded(tmp_path):
    language_preset(tmp_path / "text")
    with pytest.raises(UserError, match="text is a model for text-generation, this recipe trains one for translation"):
        load_pretrained(tmp_path / "text", task="translation")
    shutil.copy(tmp_path / "text" / "model.keras", tmp_path / "alone.keras")
    with pytest.raises(UserError, match="There is no tokenizer.json beside .*alone.keras, by which tokens are matched"):
        load_pretrained(tmp_path / "alone.keras", task="text-generation", with_tokenizer=True)
    with pytest.raises(UserError, match="starts from encoder.keras and decoder.keras: give their folder instead of"):
        load_pretrained(tmp_path / "alone.keras", task="text-to-image", names=("encoder.keras", "decoder.keras"))
    (tmp_path / "bare").mkdir()
    shutil.copy(tmp_path / "alone.keras", tmp_path / "bare" / "model.keras")
    with pytest.raises(
        UserError, match="bare has no classifier.keras, which this recipe starts from: it holds model.k"
    ):
        load_pretrained(tmp_path / "bare", task="text-to-image", names=["classifier.keras"])
    args = argparse.Namespace(units=1, given=set())
    _, whole = image_classifier(2, 0)
    with pytest.raises(UserError, match="a_file is another kind of model: whole is not a recurrent language model.$"):
        adopt_config(args, load_pretrained_model(whole), infer_config, "units")


@pytest.mark.once
def test_the_identity_of_the_files(tmp_path):
    pretrained = language_preset(tmp_path / "old")
    names = ("model.keras", "tokenizer.json")
    assert pretrained.sha256 == {name: files.sha256(tmp_path / "old" / name) for name in names}
    assert load_pretrained(None, task="any") is None and init_weights(pretrained.model, None) == {}


# -------------------------------------------------------------------------------------------------------------- frozen


def normalized_model():
    """Two blocks of convolution, batch normalization and dropout, the first in a model within the model."""
    image = keras.Input((4, 4, 2))
    block = keras.layers.BatchNormalization(name="norm1")(keras.layers.Conv2D(3, 3, name="conv1")(image))
    x = keras.Input((4, 4, 2))
    y = keras.Model(image, block, name="backbone")(x)
    y = keras.layers.BatchNormalization(name="norm2")(keras.layers.Conv2D(3, 1, name="conv2")(y))
    y = keras.layers.Dropout(0.5, seed=0)(keras.layers.Flatten()(y))
    model = random_weights(keras.Model(x, keras.layers.Dense(2, name="logits")(y)), 0)
    for weight in model.weights:
        if weight.name == "moving_variance":
            weight.assign(np.full(weight.shape, 2.0))
    return model


def changed_by_training(model, steps=3, **optimizer):
    """Train on random numbers; {path: whether the weight has changed by a bit}."""
    model.compile(TorchAdam(0.1, **optimizer), "mse")
    before, rng = values(model), np.random.default_rng(1)
    x, y = rng.normal(size=(8, 4, 4, 2)).astype("float32"), rng.normal(size=(8, 2)).astype("float32")
    with zoo.strategy("cpu"):
        model.fit(x, y, batch_size=8, epochs=steps, verbose=0)
    return {path: not np.array_equal(value, before[path]) for path, value in values(model).items()}


BACKBONE = {f"conv1/{name}" for name in ("kernel", "bias")}
BACKBONE |= {f"norm1/{name}" for name in ("gamma", "beta", "moving_mean", "moving_variance")}


@pytest.mark.parametrize("flag", [{"freeze": ["^backbone/"]}, {"train_only": ["conv2", "norm2", "logits"]}])
def test_frozen_weights_do_not_change_by_a_bit_and_the_others_do(flag, capsys):
    """The statistics of a frozen normalization are among them: it works as in inference."""
    model = normalized_model()
    found = set_trainable(model, **flag)
    # By hand: conv2 3·3 + 3, norm2 gamma and beta, logits 12·2 + 2; conv1 18·3 + 3, norm1 and the statistics of norm2.
    assert found == {"trained_parameters": 12 + 6 + 26, "frozen_parameters": 57 + 12 + 6}
    assert capsys.readouterr().out == "Training 44 of 119 parameters.\n"
    changed = changed_by_training(model, weight_decay=0.1, decoupled_weight_decay=True)
    assert {path for path, differs in changed.items() if not differs} == BACKBONE
    backbone = model.get_layer("backbone")
    x = np.random.default_rng(2).normal(size=(3, 4, 4, 2)).astype("float32")
    in_training, in_use = (keras.ops.convert_to_numpy(backbone(x, training=mode)) for mode in (True, False))
    np.testing.assert_array_equal(in_training, in_use)


def test_single_weights_of_a_layer(tmp_path):
    model = normalized_model()
    found = set_trainable(model, train_only=["bias$", "logits"], freeze=["conv2"])
    assert found["trained_parameters"] == 3 + 26
    changed = changed_by_training(model)
    trained = {path for path, differs in changed.items() if differs}
    # norm1 and norm2 are frozen as a whole, and so are their statistics.
    assert trained == {"conv1/bias", "logits/kernel", "logits/bias"}
    unfreeze(model)
    model_files.save_model(model, tmp_path / "m.keras")
    loaded = model_files.load_model(tmp_path / "m.keras")
    assert len(loaded.trainable_variables) == len(normalized_model().trainable_variables)


@pytest.mark.once
@pytest.mark.parametrize(
    "patterns, words",
    [
        ({"freeze": ["conv1", "cnov2"]}, "--freeze cnov2 is found in no weight of this model: it has the layers backb"),
        ({"train_only": ["dense"]}, "--train-only dense is found in no weight"),
        ({"freeze": ["moving_mean"]}, "--freeze moving_mean is found in no weight"),
        ({"freeze": ["."]}, "--freeze . leaves nothing to train: freeze less"),
        ({"freeze": ["conv2"], "train_only": ["conv2"]}, "--freeze conv2 leaves nothing to train"),
    ],
)
def test_patterns_that_are_refused(patterns, words):
    model = normalized_model()
    with pytest.raises(UserError, match=words) as caught:
        set_trainable(model, **patterns)
    assert "\n" not in str(caught.value) and len(model.trainable_variables) == 10


@pytest.mark.once
def test_flags_that_are_refused():
    parser = flags.parser("A recipe.")
    flags.add(parser, *flags.FINE_TUNING_FLAGS, "init_encoder_only")
    for arguments, words in (
        (["--freeze", "conv1", "--freeze", "("], r"--freeze \( is not a regular expression \(missing \)"),
        (["--new-head"], "--new-head belongs to --init-from: name the model to start from"),
        (["--init-encoder-only"], "--init-encoder-only belongs to --init-from"),
    ):
        with pytest.raises(UserError, match=words):
            flags.check(parser.parse_args(arguments))
    args = parser.parse_args(["--freeze", "a", "--freeze", "b", "--init-from", "x"])
    assert args.freeze == ["a", "b"] and args.train_only is None and args.given == {"freeze", "init_from"}
    assert flags.settings(args)["freeze"] == ["a", "b"] and "init_from" not in flags.settings(args)


def test_the_weights_that_callbacks_keep(tmp_path):
    """With a frozen part: the best epoch, the mean of epochs, and a copy to the model that is used."""
    tokenizer = train_tokenizer("abcd", "char")
    model, training = (language_model(tokenizer, 0), language_model(tokenizer, 0, stateful_batch_size=2))
    copy_weights(model, training)
    set_trainable(training, freeze=["lstm"])
    best = BestCheckpoint(tmp_path / "best.npz", patience=3)
    average = CheckpointAveraging(tmp_path, num_checkpoints=2)
    x = np.array([[0, 1, 2], [3, 2, 1]])
    training.compile(TorchAdam(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    kept = []
    keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: kept.append(values(training)))
    training.fit(x, x, validation_data=(x, x), batch_size=2, epochs=3, callbacks=[best, average, keep], verbose=0)
    best.restore(training)
    copy_weights(training, model)
    place = int(np.argmin(best.losses))
    for path, value in values(model).items():
        np.testing.assert_array_equal(value, kept[place][path])
        assert np.array_equal(value, kept[0][path]) or "lstm" not in path
    average.restore(training, epochs=3)
    for path, value in values(training).items():
        if "rnn_state" not in path:
            np.testing.assert_allclose(value, (kept[1][path] + kept[2][path]) / 2, rtol=1e-6, atol=1e-7)


def test_the_moving_average_beside_what_is_frozen(tmp_path):
    """`SampleGrid` generates with the averages of what is trained and with what is frozen as it is."""

    def dense(seed):
        x = keras.Input((2,))
        hidden = keras.layers.Dense(2, name="first")(x)
        return random_weights(keras.Model(x, keras.layers.Dense(1, name="second")(hidden)), seed)

    model, ema_model = dense(0), dense(1)
    set_trainable(model, freeze=["first"])
    start = values(model)
    model.compile(TorchAdam(0.1, use_ema=True, ema_momentum=0.5), "mse")
    drawn = []

    def generate():
        drawn.append(values(ema_model))
        return np.zeros((1, 2, 2, 3), "uint8")

    grid = SampleGrid(tmp_path / "g.png", ema_model, generate=generate, plot=lambda path, rows: None)
    steps = []
    keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: steps.append(values(model)))
    x = np.ones((2, 2), "float32")
    model.fit(x, x[:, :1], epochs=2, batch_size=2, callbacks=[keep, grid], verbose=0)
    for path, value in drawn[1].items():
        average = 0.5 * steps[0][path] + 0.5 * steps[1][path]  # Keras' average begins with the first step
        np.testing.assert_allclose(value, average, rtol=1e-5)
        assert np.array_equal(value, start[path]) == ("first" in path)
