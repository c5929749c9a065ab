"""Marian's translation models in ours: equal logits, equal tokens, weights there and back, and what is refused.

The peers are transformers' MarianMTModel with random weights and its MarianTokenizer. Tolerance of the logits, float32:
1e-4, the largest of each test being above 1.
"""

import gzip
import io
import json
import re
import shutil

import keras
import numpy as np
import pytest
import torch

import zoo
from zoo.cli import run as run_zoo
from zoo.converters.marian import GENERATION_DEFAULTS, load_marian, marian_config, marian_state_dict
from zoo.errors import UserError
from zoo.models.transformer import transformer
from zoo.tokenizers import load_tokenizer
from zoo.tokenizers.marian import MarianTokenizer

sentencepiece = pytest.importorskip("sentencepiece")
transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
# transformers' tokenizer recommends a package that it does not use for what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")

TOLERANCE = 1e-4


# ------------------------------------------------------------------------------------------------- folders to convert


def train_sentencepiece(sentences, **options):
    """Bytes of a SentencePiece model."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, minloglevel=2, **options
    )
    return model.getvalue()


def pieces_of(model):
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(i) for i in range(processor.get_piece_size()) if not processor.is_control(i)]


def vocabulary_of(*pieces, size=None):
    """As opus-mt has it: </s> first, <pad> last; `size` pieces, some made up."""
    ordered = list(dict.fromkeys(["</s>", "<unk>", *(piece for piece in pieces if piece != "<unk>")]))
    ordered += [f"▁{place}" for place in range(len(ordered), (size or len(ordered) + 1) - 1)]
    return {piece: place for place, piece in enumerate([*ordered, "<pad>"])}


@pytest.fixture(scope="module")
def small_models():
    """(source, target): SentencePiece models of sentences made of syllables, the same everywhere."""
    rng = np.random.default_rng(0)
    models = []
    for syllables in (["ba", "lo", "mi", "re", "su"], ["ka", "ne", "pi", "tu", "vo"]):
        words = ["".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(40)]
        sentences = [" ".join(rng.choice(words, 6)) for _ in range(100)]
        models.append(train_sentencepiece(sentences, vocab_size=40))
    return models


def random_peer(seed=0, std=0.2, **config):
    """A MarianMTModel with every number random: also norms, biases, and the row of <pad>."""
    torch.manual_seed(seed)
    peer = transformers.MarianMTModel(transformers.MarianConfig(**config)).eval()
    with torch.no_grad():
        for name, tensor in peer.state_dict().items():
            if "embed_positions" not in name:
                tensor.normal_(1.0 if name.endswith("norm.weight") else 0.0, std)
        if config.get(
            "share_encoder_decoder_embeddings", True
        ):  # without this, transformers 5 shares them if tied only
            for part in (peer.model.encoder, peer.model.decoder):
                part.embed_tokens.weight.copy_(peer.model.shared.weight)
    return peer


SIZES = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    **{f"{side}_ffn_dim": 24 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
    "max_position_embeddings": 32,
    "activation_function": "swish",
    "scale_embedding": True,
    "eos_token_id": 0,
    "forced_eos_token_id": 0,
}
SEPARATE = {"share_encoder_decoder_embeddings": False}
UNTIED = {"tie_word_embeddings": False}
CONFIGS = {
    "opus": {},
    "untied": UNTIED,
    "separate": SEPARATE,
    "separate untied": SEPARATE | UNTIED,
    "relu, not scaled": {"activation_function": "relu", "scale_embedding": False},
    "gelu, deep encoder": {"activation_function": "gelu", "encoder_layers": 3, "decoder_layers": 1},
    "silu, deep decoder, one head": {
        "activation_function": "silu",
        "encoder_layers": 1,
        "decoder_layers": 3,
        **{f"{side}_attention_heads": 1 for side in ("encoder", "decoder")},
    },
    "words ignored": {"normalize_before": True, "normalize_embedding": True, "add_final_layer_norm": True},
}


def make_folder(folder, small_models, *, seed=0, **config):
    """Write a model in the layout of Hugging Face; returns the peer."""
    source, target = (pieces_of(model) for model in small_models)
    own = not config.get("share_encoder_decoder_embeddings", True)
    vocabulary = vocabulary_of(*source, *([] if own else target), size=80)
    config = SIZES | {"vocab_size": len(vocabulary), "pad_token_id": vocabulary["<pad>"]} | config
    config["decoder_start_token_id"] = config["pad_token_id"]
    if own:
        target_vocabulary = vocabulary_of(*target, size=90)
        config["decoder_vocab_size"] = len(target_vocabulary)
        write(folder / "target_vocab.json", target_vocabulary)
    peer = random_peer(seed, **config)
    peer.generation_config = transformers.GenerationConfig(
        bad_words_ids=[[config["pad_token_id"]]],
        max_length=512,
        num_beams=6,
        renormalize_logits=True,
        **{
            name: config[name]
            for name in ("eos_token_id", "forced_eos_token_id", "pad_token_id", "decoder_start_token_id")
        },
    )
    peer.save_pretrained(folder)
    write(folder / "vocab.json", vocabulary)
    write(folder / "tokenizer_config.json", {"source_lang": "aa", "target_lang": "bb", "separate_vocabs": own})
    for side, model in zip(("source", "target"), small_models):
        (folder / f"{side}.spm").write_bytes(model)
    return peer


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False))


def change(path, **values):
    write(path, json.loads(path.read_text()) | values)


@pytest.fixture(scope="module")
def opus(tmp_path_factory, small_models):
    """(folder, peer) of the plainest model; read only."""
    folder = tmp_path_factory.mktemp("opus")
    return folder, make_folder(folder, small_models)


@pytest.fixture
def copied(opus, tmp_path):
    """A copy of its folder, to be spoilt."""
    return shutil.copytree(opus[0], tmp_path / "copied")


# -------------------------------------------------------------------------------------------------------------- logits


def batch(peer, seed=0, texts=4, length=9):
    """Padded sources (B, S) and targets (B, T), as int32."""
    pad, rng = peer.config.pad_token_id, np.random.default_rng(seed)
    source = rng.integers(0, pad, (texts, length))
    for row in range(1, texts):
        source[row, length - 2 * row :] = pad
    target = rng.integers(0, pad, (texts, length - 2))
    target[:, 0] = peer.config.decoder_start_token_id
    return source.astype("int32"), target.astype("int32")


def their_logits(peer, source, target):
    with torch.no_grad():
        source, target = torch.tensor(source).long(), torch.tensor(target).long()
        mask = source != peer.config.pad_token_id
        return peer(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits.numpy()


def our_logits(model, source, target):
    tensors = [keras.ops.convert_to_tensor(source), keras.ops.convert_to_tensor(target)]
    return np.array(keras.ops.convert_to_numpy(model(tensors)))


def same_logits(model, peer, **shape):
    """Compare the two; returns the largest difference."""
    source, target = batch(peer, **shape)
    ours, theirs = our_logits(model, source, target), their_logits(peer, source, target)
    assert ours.shape == theirs.shape and np.abs(theirs).max() > 1
    worst = np.abs(ours - theirs).max()
    assert worst < TOLERANCE
    print(f"largest difference of logits {worst:.1e}, largest logit {np.abs(theirs).max():.1f}")
    return worst


ON_EVERY_BACKEND = ("opus", "separate untied", "gelu, deep encoder")


@pytest.mark.parametrize(
    "name", [name if name in ON_EVERY_BACKEND else pytest.param(name, marks=pytest.mark.once) for name in CONFIGS]
)
def test_logits_equal(name, small_models, tmp_path):
    peer = make_folder(tmp_path, small_models, **CONFIGS[name])
    if name == "words ignored":
        assert json.loads((tmp_path / "config.json").read_text())["normalize_before"]
    model, tokenizer, _ = load_marian(tmp_path)
    same_logits(model, peer)
    same_logits(model, peer, seed=1, texts=1, length=30)
    shared = "separate" not in name
    assert tokenizer.vocabulary_size == peer.config.decoder_vocab_size
    assert tokenizer.source_vocabulary_size == peer.config.vocab_size
    assert (tokenizer.vocabulary_size == tokenizer.source_vocabulary_size) == shared

    # There and back: every tensor is what it was.
    back = marian_state_dict(model, max_position_embeddings=32)
    again = transformers.MarianMTModel(
        transformers.MarianConfig(**marian_config(model, max_position_embeddings=32))
    ).eval()
    again.load_state_dict({name: torch.from_numpy(array) for name, array in back.items()}, strict=True)
    assert back.keys() == peer.state_dict().keys()
    for key, tensor in peer.state_dict().items():
        tolerance = 1e-6 if "embed_positions" in key else 0
        np.testing.assert_allclose(back[key], tensor.numpy(), rtol=0, atol=tolerance, err_msg=key)
    np.testing.assert_array_equal(their_logits(again, *batch(peer)), their_logits(peer, *batch(peer)))


@pytest.mark.once
@pytest.mark.parametrize(
    "numbers",
    [
        {},
        {"tie_embeddings": False},
        {"source_vocabulary_size": 9, "logits_bias": True, "activation": "gelu"},
        {"source_vocabulary_size": 13, "tie_embeddings": False, "activation": "silu", "dropout": 0.1},
        {"num_layers": 1, "decoder_layers": 3, "scale_embeddings": False},
    ],
    ids=str,
)
def test_our_own_models_go_to_transformers(numbers):
    keras.utils.set_random_seed(0)
    model = transformer(
        **({"vocabulary_size": 11, "num_layers": 2, "hidden_dim": 8, "intermediate_dim": 12, "num_heads": 2} | numbers)
    )
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 1, weight.shape) for weight in model.get_weights()])
    peer = transformers.MarianMTModel(transformers.MarianConfig(**marian_config(model))).eval()
    peer.load_state_dict(
        {name: torch.from_numpy(array) for name, array in marian_state_dict(model).items()}, strict=True
    )
    source = rng.integers(1, 9, (3, 7)).astype("int32")
    source[1, 4:] = 0
    target = rng.integers(0, 11, (3, 5)).astype("int32")
    ours, theirs = our_logits(model, source, target), their_logits(peer, source, target)
    assert np.abs(ours - theirs).max() < TOLERANCE and np.abs(theirs).max() > 1


@pytest.mark.once
@pytest.mark.parametrize(
    "numbers, named",
    [
        ({"pre_norm": True}, "has pre_norm=True, which"),
        ({"positions": "learned", "epsilon": 1e-6}, "has positions='learned', epsilon=1e-06, which"),
    ],
    ids=str,
)
def test_models_that_marian_cannot_be(numbers, named):
    model = transformer(vocabulary_size=11, num_layers=1, hidden_dim=8, intermediate_dim=12, num_heads=2, **numbers)
    for call in (marian_state_dict, marian_config):
        with pytest.raises(UserError, match=re.escape(named)):
            call(model)


@pytest.mark.once
def test_other_models_do_not_go_to_transformers():
    plain = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)], name="plain")
    with pytest.raises(UserError, match="plain is not a transformer encoder-decoder"):
        marian_state_dict(plain)
    model = transformer(vocabulary_size=11, num_layers=1, hidden_dim=8, intermediate_dim=12, num_heads=2)
    longer = keras.Model(model.inputs, keras.layers.Dense(2, name="more")(model.output), name="longer")
    with pytest.raises(UserError, match="longer also has more/kernel, more/bias"):
        marian_state_dict(longer)


# --------------------------------------------------------------------------------------------------------------- files


def as_shards(folder, peer):
    (folder / "model.safetensors").unlink()
    peer.save_pretrained(folder, max_shard_size="5KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 3


def as_torch_file(folder, peer, **options):
    (folder / "model.safetensors").unlink()
    torch.save(peer.state_dict(), folder / "pytorch_model.bin", **options)


def as_old_torch_file(folder, peer):
    as_torch_file(folder, peer, _use_new_zipfile_serialization=False)


def as_shards_of_torch(folder, peer):
    (folder / "model.safetensors").unlink()
    names = list(peer.state_dict())
    for part in range(2):
        torch.save({name: peer.state_dict()[name] for name in names[part::2]}, folder / f"part{part}.bin")
    weight_map = {name: f"part{place % 2}.bin" for place, name in enumerate(names)}
    write(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": weight_map})


def as_one_of_the_tied(folder, peer):
    """What is tied is kept once, under another name than transformers' own choice."""
    from safetensors.torch import save_file

    state = {name: tensor.clone() for name, tensor in peer.state_dict().items() if "embed" not in name}
    save_file({name: tensor for name, tensor in state.items() if name != "model.shared.weight"}, folder / MODEL)
    assert "lm_head.weight" in state


MODEL = "model.safetensors"


@pytest.mark.once
@pytest.mark.parametrize(
    "rewrite", [as_shards, as_torch_file, as_old_torch_file, as_shards_of_torch, as_one_of_the_tied]
)
def test_kinds_of_files(rewrite, opus, copied):
    rewrite(copied, opus[1])
    model, *_ = load_marian(copied)
    for ours, expected in zip(model.get_weights(), load_marian(opus[0])[0].get_weights(), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.once
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes_become_float32(dtype, opus, copied):
    rounded = transformers.MarianMTModel.from_pretrained(opus[0], dtype=getattr(torch, dtype))
    rounded.save_pretrained(copied)
    torch.save(rounded.state_dict(), copied / "pytorch_model.bin")  # this one holds rounded positions, too
    peer = transformers.MarianMTModel.from_pretrained(copied, dtype=torch.float32).eval()
    models = [load_marian(copied)[0]]
    (copied / MODEL).unlink()
    models.append(load_marian(copied)[0])
    for model in models:
        assert {weight.dtype for weight in model.weights} == {"float32"}
        same_logits(model, peer)


@pytest.mark.once
def test_no_bias_of_the_logits_means_zeros(opus, copied, small_models, tmp_path):
    rewrite_tensors(copied, lambda tensors: tensors.pop("final_logits_bias"))
    model, *_ = load_marian(copied)
    biased, *_ = load_marian(opus[0])
    assert "logits_bias" not in [layer.name for layer in model.layers]
    source, target = batch(opus[1])
    bias = opus[1].final_logits_bias.numpy()
    difference = our_logits(biased, source, target) - our_logits(model, source, target)
    np.testing.assert_allclose(difference, np.broadcast_to(bias, difference.shape), atol=1e-5)

    make_folder(tmp_path, small_models, **UNTIED)
    rewrite_tensors(tmp_path, lambda tensors: tensors.pop("final_logits_bias"))
    assert not load_marian(tmp_path)[0].get_layer("logits").get_weights()[1].any()


def rewrite_tensors(folder, change):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / MODEL)
    change(tensors)
    save_file(tensors, folder / MODEL)


# ---------------------------------------------------------------------------------------------------------- strictness

FC1 = "model.encoder.layers.0.fc1.weight"
ENCODER, LM_HEAD = "model.encoder.embed_tokens.weight", "lm_head.weight"
PLACES = "model.decoder.embed_positions.weight"


@pytest.mark.once
@pytest.mark.parametrize(
    "spoil, named",
    [
        (lambda t: t.pop(FC1), f"missing {FC1} (24, 16): fetch both"),
        (lambda t: t.pop("model.shared.weight"), "missing model.shared.weight ("),
        (lambda t: t.update({"model.extra": torch.zeros(2)}), "unexpected model.extra: fetch both"),
        (lambda t: t.update({FC1: torch.zeros(16, 24)}), f"{FC1} has shape (16, 24), expected (24, 16)"),
        (
            lambda t: t.pop(FC1) is t.update(extra=torch.zeros(1), final_logits_bias=torch.zeros(3)),
            f"missing {FC1} (24, 16); unexpected extra; final_logits_bias has shape (3,), expected (1, 80): fetch",
        ),
        (
            lambda t: t.update({FC1: torch.zeros(24, 16, dtype=torch.int8)}),
            f"{FC1} holds int8, where floating-point numbers",
        ),
        (lambda t: t.update({LM_HEAD: t["model.shared.weight"] + 1}), f"{LM_HEAD} differs from model.shared.weight"),
        (lambda t: t.update({PLACES: torch.zeros(32, 16)}), f"{PLACES} does not hold sinusoids"),
        (lambda t: t.update({PLACES: torch.zeros(31, 16)}), f"{PLACES} has shape (31, 16), expected (32, 16)"),
        (lambda t: [t.pop(name) for name in list(t) if "layers.1" in name], "… (42 in all)"),
    ],
)
def test_tensors_that_do_not_fit(spoil, named, copied):
    rewrite_tensors(copied, spoil)
    refused(copied, named)


def refused(folder, named):
    with pytest.raises(UserError, match=re.escape(named)) as caught:
        load_marian(folder)
    assert len(re.findall(r"[.!?]( |$)", str(caught.value))) == 1, caught.value  # one sentence


def cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def without(name):
    return lambda folder: (folder / name).unlink()


def config(**values):
    return lambda folder: change(folder / "config.json", **values)


def generation(**values):
    return lambda folder: change(folder / "generation_config.json", **values)


def index(weight_map):
    def write_index(folder):
        (folder / MODEL).unlink()
        write(folder / f"{MODEL}.index.json", {"weight_map": weight_map})

    return write_index


def words(edit):
    def rewrite(folder):
        vocabulary = json.loads((folder / "vocab.json").read_text())
        edit(vocabulary)
        write(folder / "vocab.json", vocabulary)

    return rewrite


@pytest.mark.once
@pytest.mark.parametrize(
    "spoil, named",
    [
        (lambda folder: shutil.rmtree(folder), "There is no folder"),
        (
            lambda folder: (shutil.rmtree(folder), folder.write_bytes(b"weights")),
            "is a file, where a folder was expected: give the one that holds config.json",
        ),
        (without("config.json"), "There is no config.json in"),
        (cut("config.json", 20), "config.json is not valid JSON"),
        (lambda folder: write(folder / "config.json", [1]), "config.json holds a list, not a JSON object"),
        (config(model_type="bart"), "describes a model of type 'bart', where 'marian' was expected"),
        (config(model_type=None), "describes a model of type '', where 'marian' was expected"),
        (config(d_model="16"), "says d_model is '16', where a whole number was expected"),
        (config(scale_embedding=1), "says scale_embedding is 1, where true or false was expected"),
        (
            config(d_model=24),
            "model.shared.weight has shape (80, 16), expected (80, 24)",
        ),
        (config(encoder_layers=0), "says encoder_layers is 0, where a whole number from 1 up was expected"),
        (config(decoder_ffn_dim=32), "says encoder_ffn_dim is 24 and decoder_ffn_dim 32, which have to be the same"),
        (config(decoder_attention_heads=2), "says encoder_attention_heads is 4 and decoder_attention_heads 2, which"),
        (
            config(activation_function="gelu_new"),
            "says activation_function is 'gelu_new', and the zoo's models have swish,",
        ),
        (config(d_model=32), "says d_model is 32, and no tensor of the weights has an axis of that size"),
        (config(encoder_layers=3), "missing model.encoder.layers.2.self_attn.q_proj.weight (16, 16), "),
        (config(tie_word_embeddings=False), f"missing {LM_HEAD} (80, 16): "),
        (config(share_encoder_decoder_embeddings=False), f"missing {ENCODER} (80, 16), "),
        (config(vocab_size=70), "has a piece with the id 79, and config.json says vocab_size is 70"),
        (config(pad_token_id=3), "says pad_token_id is 3, and <pad> has the id 79 in vocab.json"),
        (generation(decoder_start_token_id=90), "says decoder_start_token_id is 90, where an id below 80"),
        (generation(eos_token_id=[0, 1]), "says eos_token_id is [0, 1], where a whole number"),
        (lambda folder: write(folder / "tokenizer_config.json", {"pad_token": 5}), "pad_token is 5, where a string"),
        (generation(num_beams="6"), "generation_config.json says num_beams is '6', where a whole number"),
        (generation(bad_words_ids=[3]), "says bad_words_ids[0] is 3, where a list was expected"),
        (without("source.spm"), "There is no source.spm, the SentencePiece model of the source, in"),
        (without("target.spm"), "There is no target.spm, the SentencePiece model of the target, in"),
        (cut("source.spm", 100), "The SentencePiece model source.spm of"),
        (cut("target.spm", 0), "The SentencePiece model target.spm of"),
        (without("vocab.json"), "There is no vocab.json in"),
        (words(lambda v: v.pop("<unk>")), "lacks <unk>"),
        (words(lambda v: v.update({"a": 3})), "not every piece has an id of its own"),
        (words(lambda v: v.update({"a": "3"})), "an entry of the object is not a whole number"),
        (lambda folder: write(folder / "tokenizer_config.json", {"separate_vocabs": True}), "no target_vocab.json in"),
        (without(MODEL), "holds no weights that can be read: model.safetensors, "),
        (cut(MODEL, 5000), "model.safetensors is damaged or no safetensors file"),
        (cut(MODEL, 5), "model.safetensors is damaged or no safetensors file"),
        (index({"a": "model-1.safetensors"}), "index.json names model-1.safetensors, which"),
        (index({"a": "../model.safetensors"}), "an entry of weight_map is not the name of a file in its folder"),
        (index([]), "says weight_map is [], where an object was expected"),
    ],
)
def test_folders_that_are_refused(spoil, named, copied):
    spoil(copied)
    refused(copied, named)


class Code:
    def __reduce__(self):
        return exec, ("raise SystemExit('code in a file was run')",)


@pytest.mark.once
def test_code_in_a_torch_file_is_not_run(copied):
    (copied / MODEL).unlink()
    torch.save({"model.shared.weight": torch.zeros(2), "code": Code()}, copied / "pytorch_model.bin")
    refused(copied, "pytorch_model.bin holds more than tensors by name, or is damaged, and code in a file is never run")


# ------------------------------------------------------------------------------------------------------------ settings


@pytest.mark.once
def test_generation_config(opus, copied):
    _, tokenizer, settings = load_marian(copied)
    pad = opus[1].config.pad_token_id
    assert settings == GENERATION_DEFAULTS | {
        "decoder_start_token_id": pad,
        "suppress_tokens": [pad],
        "renormalize_logits": True,
        "num_beams": 6,
    }
    assert (tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id, tokenizer.suppress_tokens) == (pad, 0, pad, [pad])
    assert (tokenizer.source_lang, tokenizer.target_lang) == ("aa", "bb")

    # Older folders have them in config.json; without it, these are transformers' defaults.
    generation(bad_words_ids=[[pad], [3, 4]], forced_eos_token_id=None, eos_token_id=[0], early_stopping="never")(
        copied
    )
    settings = load_marian(copied)[2]
    assert settings["suppress_tokens"] == [pad] and settings["bad_words_ids"] == [[3, 4]]
    assert settings["forced_eos_token_id"] is None and settings["eos_token_id"] == 0
    assert settings["early_stopping"] == "never"
    (copied / "generation_config.json").unlink()
    (copied / "tokenizer_config.json").unlink()
    config(num_beams=4, bad_words_ids=[[pad]], length_penalty=0.6)(copied)
    _, tokenizer, settings = load_marian(copied)
    assert (settings["num_beams"], settings["length_penalty"], settings["suppress_tokens"]) == (4, 0.6, [pad])
    assert (tokenizer.source_lang, settings["max_length"]) == (None, 512)


@pytest.mark.once
def test_the_generation_config_is_enough_to_translate(copied):
    """Greedily, as transformers' generate does it: <pad>, the likeliest token by far, is never generated."""
    rewrite_tensors(copied, lambda tensors: tensors["final_logits_bias"][0, -1].add_(20))
    peer = transformers.MarianMTModel.from_pretrained(copied).eval()
    model, tokenizer, settings = load_marian(copied)
    for text in ("balomi re", "su relo"):
        source, written = tokenizer.encode(text), [tokenizer.start_id]
        while len(written) < 6 and (len(written) == 1 or written[-1] != tokenizer.end_id):
            logits = our_logits(model, np.array([source], "int32"), np.array([written], "int32"))[0, -1]
            logits[settings["suppress_tokens"]] = -np.inf
            last = len(written) == 5
            written.append(settings["forced_eos_token_id"] if last else int(logits.argmax()))
        theirs = peer.generate(torch.tensor([source]), num_beams=1, max_length=6)
        assert written == theirs[0].tolist()


# ----------------------------------------------------------------------------------------------------------- tokenizer

ODD = [
    "",
    " ",
    "  two  spaces   and more ",
    "tab\tand\nline\r\nend",
    "日本語のテキスト and 한국어",
    "🙂🙃 👩‍👩‍👧 faces",
    "decomposed: a\u0308\u0323 e\u0301\u0302 \u1100\u1161\u11a8",
    "ﬁne ﬂow ①②½ Ⅳ ㎏ Ａ１",
    "no\u00a0break zero\u200bwidth soft\u00adhyphen \ufeffmark",
    "▁underline ▁▁ twice",
    "</s> in <pad> the<unk>middle</s>",
    "<s> and </S>",
    ">>fra<< a man",
    ">>fra<<a man >>fra<<",
    ">>xyz<< a man",
    ">> no code <<",
    ">><< empty",
    " >>fra<< after a space",
    "</s>>>fra<< after a token",
    "a\x00b\x07c",
    "quotes “curly” ‘single’ «angles» — dash … dots",
    "a " * 600,
    "DON'T SHOUT!!!",
    "ß ẞ ĳ Ǆ",
    "She 's here , I 'm not . Do n't ! They 've , we 're ? ' so ' .. ' ,",
]


def lines(folder, name):
    with gzip.open(folder / name, "rt", encoding="utf-8") as file:
        return file.read().splitlines()


@pytest.fixture(scope="module", params=["shared", "separate", "bytes"])
def tokenizers(request, multi30k, tmp_path_factory):
    """(transformers' tokenizer, ours, texts): one vocabulary with languages, two vocabularies, or BPE with bytes."""
    folder = tmp_path_factory.mktemp(request.param)
    english, german = (lines(multi30k, f"train.{language}.gz") for language in ("en", "de"))
    options = {"vocab_size": 1000, "character_coverage": 0.9995}
    if request.param == "bytes":
        options |= {"model_type": "bpe", "byte_fallback": True}
    models = [train_sentencepiece(sentences[:5000], **options) for sentences in (english, german)]
    source, target = map(pieces_of, models)
    separate = request.param == "separate"
    if separate:
        vocabulary, own = vocabulary_of(*source), vocabulary_of(*target)
        assert vocabulary["<pad>"] == own["<pad>"]  # transformers takes the source's ids for both
        write(folder / "target_vocab.json", own)
    else:  # some pieces are not in the vocabulary
        vocabulary = vocabulary_of(*source[::2], *source[1:700:2], *target, ">>fra<<", ">>ita<<")
    write(folder / "vocab.json", vocabulary)
    clean_up = request.param != "bytes"
    write(folder / "tokenizer_config.json", {"separate_vocabs": separate, "clean_up_tokenization_spaces": clean_up})
    for side, model in zip(("source", "target"), models):
        (folder / f"{side}.spm").write_bytes(model)
    peer = transformers.MarianTokenizer.from_pretrained(folder)
    ours = MarianTokenizer(
        source_model=models[0],
        target_model=models[1],
        vocabulary=vocabulary,
        target_vocabulary=own if separate else None,
        clean_up_tokenization_spaces=clean_up,
    )
    sentences = lines(multi30k, "val.en.gz")[:300] + lines(multi30k, "val.de.gz")[:300]
    return peer, ours, sentences + ODD


@pytest.mark.once
def test_tokens_equal(tokenizers):
    peer, ours, texts = tokenizers
    seen = set()
    for text in texts:
        expected = peer(text)["input_ids"]
        assert ours.encode(text) == expected, text
        assert ours.encode_target(text) == peer(text_target=text)["input_ids"], text
        seen.update(expected)
    assert len(texts) > 600 and peer.unk_token_id in seen and len(seen) > 300


@pytest.mark.once
def test_texts_equal(tokenizers):
    peer, ours, texts = tokenizers
    rng = np.random.default_rng(0)
    written = [ours.encode_target(text) for text in texts]
    written += [rng.integers(0, ours.vocabulary_size, 20).tolist() for _ in range(300)]
    for ids in written:
        assert ours.decode(ids) == peer.decode(ids, skip_special_tokens=True), ids
    assert ours.decode(np.array(ours.encode_target("Ein Mann schläft.") + [ours.pad_id], "int32")) == (
        "Ein Mann schläft."
    )
    assert ours.decode([ours.vocabulary_size + 5, ours.end_id]) == ""
    for pieces, ids in (
        (ours.ids_to_tokens, ours.encode("A man")),
        (ours.target_ids_to_tokens, ours.encode_target("A man")),
    ):
        assert len(pieces(ids)) == len(ids) and "".join(pieces(ids)) == " A man</s>"


@pytest.mark.once
@pytest.mark.parametrize("clean_up", [True, False, None])
def test_spaces_are_cleaned_up_if_the_folder_says_so(clean_up, copied, tmp_path):
    saved = json.loads((copied / "tokenizer_config.json").read_text())
    saved.pop("clean_up_tokenization_spaces", None)
    write(
        copied / "tokenizer_config.json",
        saved | ({} if clean_up is None else {"clean_up_tokenization_spaces": clean_up}),
    )
    load_marian(copied)[1].save(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path / "tokenizer.json").clean_up_tokenization_spaces is bool(clean_up)
    assert transformers.MarianTokenizer.from_pretrained(copied).clean_up_tokenization_spaces is bool(clean_up)


@pytest.mark.once
def test_languages(tokenizers):
    peer, ours, _ = tokenizers
    if ours.target_vocabulary:
        assert ours.languages == []
        with pytest.raises(UserError, match=r"no target language 'fra': choose one of \(none"):
            ours.encode("a man", language="fra")
        return
    assert ours.languages == ["fra", "ita"] == [code[2:-2] for code in peer.supported_language_codes]
    assert ours.encode("a man", language="fra") == peer(">>fra<< a man")["input_ids"]
    assert ours.encode("a man", language="fra")[0] == ours.vocabulary[">>fra<<"]
    with pytest.raises(UserError, match="no target language 'fre': choose one of fra, ita. Did you mean 'fra'"):
        ours.encode("a man", language="fre")


@pytest.mark.once
def test_save_and_load(tokenizers, tmp_path):
    _, ours, texts = tokenizers
    ours.save(tmp_path / "a.json")
    again = load_tokenizer(tmp_path / "a.json")
    for text in texts[::5]:
        assert again.encode(text) == ours.encode(text)
        assert again.decode(ours.encode_target(text)) == ours.decode(ours.encode_target(text))
    again.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.once
@pytest.mark.parametrize(
    "content, message",
    [
        ("", "is not valid JSON"),
        ("[]", "holds a list, not a JSON object"),
        *((content, "does not say model") for content in ("{}", '{"kind": "BPE"}')),
        *((f'{{"kind": "marian"{rest}}}', "does not say source_model") for rest in ("", ', "x": 1')),
        ('{"kind": "marian", "source_model": "?"}', "says source_model is '\\?', where base64 was expected"),
    ],
)
def test_files_that_are_no_tokenizer(content, message, tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(UserError, match="There is no tokenizer at"):
        load_tokenizer(path)
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_tokenizer(path)


@pytest.mark.once
def test_sentencepiece_that_is_not_installed(monkeypatch, opus):
    import sys

    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UserError, match=r"needs sentencepiece, .* pip install 'keras-model-zoo\[convert\]'"):
        load_marian(opus[0])


# ---------------------------------------------------------------------------------------------------------- command


def test_command(opus, tmp_path, capsys):
    out = tmp_path / "new folder" / "aa-bb"
    assert not run_zoo(["convert", "marian", str(opus[0]), str(out)])
    printed = capsys.readouterr().out.splitlines()
    files = ["card.json", "generation_config.json", "model.keras", "tokenizer.json"]
    assert sorted(path.name for path in out.iterdir()) == files
    task = zoo.Translator.from_preset(out)
    same_logits(task.model, opus[1])
    assert task.tokenizer.encode("balo mi") == load_marian(opus[0])[1].encode("balo mi")
    assert task.generation_config["num_beams"] == 6
    for part, line in zip(
        (
            f"{out / 'model.keras'}: {task.model.count_params():,} parameters, 2 + 2 layers, hidden_dim 16, "
            "intermediate_dim 24, 4 heads, silu",
            f"{out / 'tokenizer.json'}: 80 pieces, aa to bb",
            f"{out / 'generation_config.json'}: 6 beams, length penalty 1, at most 512 tokens",
            f"Use it: zoo translate '{out}' \"…\"",
        ),
        printed,
        strict=True,
    ):
        assert line == part


@pytest.mark.slow("tensorflow", "jax")
def test_a_preset_obeys_its_generation_config(copied, tmp_path):
    """Beams, length penalty, longest translation, suppressed tokens and renormalization, as transformers' generate."""
    generation(num_beams=3, length_penalty=0.4, max_length=9)(copied)
    rewrite_tensors(copied, lambda tensors: tensors["final_logits_bias"][0, :2].sub_(1))  # the end, <unk>
    peer = transformers.MarianMTModel.from_pretrained(copied).eval()
    tokenizer = transformers.MarianTokenizer.from_pretrained(copied)
    texts = ["balomi re", "su relo", "mi", "lore sumi ba re"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    expected = [tokenizer.decode(ids, skip_special_tokens=True) for ids in peer.generate(**batch)]
    task = zoo.Translator.from_preset(zoo.convert("marian", copied, tmp_path / "preset"))
    assert task.translate(texts) == expected and len({*expected}) > 1
    assert task.translate(texts, num_beams=1) != expected


@pytest.mark.once
def test_command_refuses_names(opus, tmp_path):
    write(tmp_path / "card.json", {"command": "python recipes/transformer_multi30k.py"})
    with pytest.raises(UserError, match="card.json is the card of a trained model"):
        zoo.convert("marian", opus[0], tmp_path)
    assert not (tmp_path / "model.keras").exists()


@pytest.mark.once
def test_command_ends_with_2_and_one_line(run, copied, tmp_path):
    config(model_type="bart")(copied)
    ended = run(["-m", "zoo", "convert", "marian", copied, tmp_path / "out.keras"], backend="torch")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        f"error: {copied / 'config.json'} describes a model of type 'bart', where 'marian' was expected.\n"
    )
    ended = run(["-m", "zoo", "convert", "mariam", copied, tmp_path / "out.keras"])
    assert ended.returncode == 2 and "invalid choice: 'mariam'" in ended.stderr


# ------------------------------------------------------------------------------------------------------- the real size


@pytest.mark.slow
@pytest.mark.heavy
def test_size_of_opus_mt(tmp_path, small_models):
    """opus-mt-en-de: 6 + 6 layers, 512 wide, 58,101 pieces."""
    pad = {"pad_token_id": 58100, "decoder_start_token_id": 58100}
    sizes = {"d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "max_position_embeddings": 512}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_ffn_dim": 2048, f"{side}_attention_heads": 8}
    peer = random_peer(std=0.05, **SIZES | sizes | pad | {"vocab_size": 58101})
    peer.save_pretrained(tmp_path)
    write(tmp_path / "vocab.json", vocabulary_of(*pieces_of(small_models[0])) | {"<pad>": 58100})
    for side, model in zip(("source", "target"), small_models):
        (tmp_path / f"{side}.spm").write_bytes(model)
    model, *_ = load_marian(tmp_path)
    assert model.count_params() == 73_944_309
    assert model.count_params() == sum(p.numel() for p in peer.parameters()) - 2 * 512 * 512 + 58101
    same_logits(model, peer, texts=4, length=40)
