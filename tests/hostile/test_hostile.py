"""Files made to harm, each of which ends in one sentence: huge sizes, deep nesting, texts that grow, other models."""

import io
import json
import shutil
import zipfile

import pytest

from tests.hostile.mutants import read_in_child

pytestmark = [pytest.mark.once, pytest.mark.heavy, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """{kind: (path, function that reads it)}, made when first asked for."""
    from tests.hostile.sources import SOURCES

    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = SOURCES[kind](tmp_path_factory.mktemp("sources"))
            path, use = made[kind]
            use(path)
        return made[kind]

    return get


def entry(file, *keys, value):
    """A function that sets an entry of a JSON file in a folder."""

    def change(folder):
        path = folder / file
        content = part = json.loads(path.read_text()) if path.is_file() else {}
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value
        path.write_text(json.dumps(content))

    return change


def deep(file, depth=3000):
    return lambda folder: (folder / file).write_text('{"a": ' + "[" * depth + "]" * depth + "}")


def in_archive(name, change):
    """A function that changes one member of an archive."""

    def rewrite(path):
        out = io.BytesIO()
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as changed:
            for member in archive.namelist():
                content = archive.read(member)
                changed.writestr(member, change(content) if member == name else content)
        path.write_bytes(out.getvalue())

    return rewrite


def replaced(old, new):
    def change(content):
        assert old in content
        return content.replace(old, new)

    return change


def tensors(make):
    """A function that writes a torch file of other tensors."""

    def change(path):
        import torch

        path = path / "pytorch_model.bin" if path.is_dir() else path
        (path.parent / "model.safetensors").unlink(missing_ok=True)
        torch.save(make(torch), path)

    return change


def other_model(folder):
    shutil.copy(folder / "decoder.keras", folder / "denoiser.keras")


GROWS = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
LONG_CLASS = b'"module": [' + b"1, " * 999 + b'1], "class_name": "Dense"'
CASES = [
    ("keras", in_archive("config.json", replaced(b'"units": 4', b'"units": 400000000')), "more weights than the file"),
    ("keras", in_archive("config.json", lambda content: content[:-1] + b" " * 2**27 + b"}"), "description of 134,"),
    ("keras", in_archive("config.json", replaced(b'"Conv2D"', b'"Lambda"')), ""),
    (
        "keras",
        in_archive("config.json", replaced(b'"module": "keras.layers", "class_name": "Dense"', LONG_CLASS)),
        "needs the custom class",
    ),
    ("marian", deep("config.json"), "is not valid JSON"),
    ("marian", deep("generation_config.json", 200), "nested more than 64 deep"),
    ("marian", entry("config.json", "encoder_layers", value=10**6), "at most 512"),
    ("marian", entry("config.json", "encoder_layers", value=500), "tensors for 502 layers"),
    ("marian", entry("config.json", "d_model", value=10**7), "at most 65536"),
    ("marian", entry("config.json", "d_model", value=2**16), "no tensor of the weights has an axis of that size"),
    ("marian", entry("config.json", "vocab_size", value=2**22), "no tensor of the weights has an axis of that size"),
    ("marian", entry("generation_config.json", "max_length", value=10**9), "at most 131072"),
    ("marian", entry("vocab.json", "</s>", value=-1), "an entry of the object is not a whole number from 0 up"),
    ("marian", tensors(lambda torch: {"a": torch.zeros(3).to_sparse()}), "sparse"),
    (
        "marian",
        tensors(lambda torch: {"a": torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)}),
        "quantized",
    ),
    ("marian", tensors(lambda torch: {"a": torch.zeros(3, device="meta")}), "meta"),
    ("marian", tensors(lambda torch: {"a": torch.zeros(3, dtype=torch.float8_e4m3fn)}), ""),
    ("diffusers", entry("unet/config.json", "block_out_channels", value=[2**20]), "at most 65536"),
    ("diffusers", entry("unet/config.json", "layers_per_block", value=512), "layers"),
    ("diffusers", entry("vae/config.json", "layers_per_block", value=-1), "from 1 up"),
    ("diffusers", entry("scheduler/scheduler_config.json", "num_train_timesteps", value=10**12), "at most 100000"),
    ("diffusers", entry("scheduler/scheduler_config.json", "beta_end", value=-3), "above 0"),
    ("text-to-image", entry("pipeline.json", "max_length", value=10**9), "at most 4096"),
    ("text-to-image", entry("pipeline.json", "vae_scale_factor", value=0), "where 1 or 2 or 4"),
    ("text-to-image", entry("pipeline.json", "start_id", value=-1), "from 0 up"),
    ("text-to-image", entry("pipeline.json", "end_id", value=10**6), "has no token 1000000"),
    ("text-to-image", entry("generation_config.json", "num_steps", value=10**9), "at most 10000"),
    ("text-to-image", other_model, "do not belong together"),
    ("text-to-image", entry("tokenizer.json", "normalizer", value=GROWS), "normalizer"),
    (
        "language model",
        entry("tokenizer.json", "normalizer", value={"type": "Sequence", "normalizers": [GROWS] * 4}),
        "",
    ),
    (
        "language model",
        entry("tokenizer.json", "padding", value={"strategy": {"Fixed": 2**62}, "direction": "Right", "pad_id": 0}),
        "padding",
    ),
    ("language model", entry("tokenizer.json", "pre_tokenizer", "pattern", "Regex", value="(a+)+$"), "pre_tokenizer"),
    ("language model", entry("tokenizer.json", "pre_tokenizer", value=None), "has no tokens for this text"),
    ("language model", entry("tokenizer.json", "model", "vocab", "a", value=4 * 10**6), "are not 0 to"),
    ("language model", entry("generation_config.json", "max_new_tokens", value=10**12), "at most 1000000"),
    ("language model", entry("generation_config.json", "temperature", value="hot"), "a number"),
    ("classifier", entry("card.json", "test_accuracy", value="high"), "a number"),
    ("classifier", entry("card.json", "class_names", value=["a"]), "There are 1 class names"),
    ("classifier", deep("card.json", 5000), "is not valid JSON"),
    ("classifier", entry("generation_config.json", "top_k", value=-1), "from 1 up"),
    (
        "parity",
        in_archive("about.npy", lambda content: content.replace(b"b\0\0\0a\0\0\0c\0\0\0k", b"x\0\0\0a\0\0\0c\0\0\0k")),
        "",
    ),
    ("labels", lambda path: path.write_text('{"id2label": {"-1": "a", "7": "b"}}'), "holds no names"),
    ("labels", lambda path: path.write_bytes(b"\x00" * 2**25), "too many"),
    ("safetensors", lambda path: path.write_bytes(b"\xff" * 7 + b"\x7f{" + b"0" * 100), ""),
]


@pytest.mark.parametrize("kind, change, words", CASES, ids=[f"{kind} {n}" for n, (kind, *_) in enumerate(CASES)])
def test_hostile_files(sources, kind, change, words, tmp_path):
    source, use = sources(kind)
    target = tmp_path / source.name
    (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    change(target)
    outcome, told = read_in_child(use, target)
    assert outcome == "sentence" and words in told, told


@pytest.mark.parametrize(
    "name, value", [("test_accuracy", None), ("test_accuracy", 0.5), ("files", None), ("components", None)]
)
def test_a_card_without_an_entry(sources, name, value, tmp_path):
    source, use = sources("classifier")
    shutil.copytree(source, tmp_path / "own")
    entry("card.json", name, value=value)(tmp_path / "own")
    assert read_in_child(use, tmp_path / "own") == ("ok", "")
