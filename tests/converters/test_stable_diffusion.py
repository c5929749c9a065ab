"""Stable Diffusion folders of diffusers to presets: equal outputs and tokens, configs, tensors back, errors.

The peers are diffusers' and transformers' models with random weights. Tolerance: 1e-4, float32.
"""

import json
import shutil

import keras
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tests.stable_diffusion_peers import (
    assert_same,
    autoencoder_kl,
    channels_first,
    channels_last,
    clip_text_encoder,
    conditional_unet,
    diffusers,
    images,
    transformers,
)
from zoo import cli as command
from zoo.converters.stable_diffusion import COMPONENT_BUILDERS, _scheduler_config, _Source, from_diffusers, to_diffusers
from zoo.errors import UserError
from zoo.tokenizers.clip import load_clip_tokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = ["a", "the", "photo", "of", "cat", "cats", "dog's", "naïve", "café", "red", "house", "2024"]


# ------------------------------------------------------------------------------------------------- folders to convert


def vocabulary_and_merges(words=WORDS):
    """As CLIP has them: the 256 bytes as letters, alone and at the end of a word, and what words are merged of."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letter = {byte: chr(byte) for byte in shown} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}
    vocabulary = [*letter.values(), *(f"{one}</w>" for one in letter.values())]
    merges = []
    for word in words:
        pieces = [letter[byte] for byte in word.encode()]
        pieces[-1] += "</w>"
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = ["".join(pieces[:2])]
    merges = list(dict.fromkeys(merges))
    vocabulary = list(dict.fromkeys([*vocabulary, *map("".join, merges)]))
    return {token: place for place, token in enumerate([*vocabulary, START, END])}, merges


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def change(path, **values):
    write(path, json.loads(path.read_text()) | values)


def write_tokenizer(folder, pad=END, **config):
    vocabulary, merges = vocabulary_and_merges()
    folder.mkdir(parents=True)
    write(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *map(" ".join, merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": True, "__type": "AddedToken"}
    tokens = {name: {"content": token} | flags for name, token in (("bos_token", START), ("eos_token", END))}
    write(
        folder / "tokenizer_config.json",
        tokens | {"unk_token": tokens["eos_token"], "pad_token": pad, "model_max_length": 11} | config,
    )
    return vocabulary


VOCABULARY_SIZE = len(vocabulary_and_merges()[0])
TEXT = {
    "vocabulary_size": VOCABULARY_SIZE,
    "num_layers": 2,
    "hidden_dim": 12,
    "intermediate_dim": 20,
    "num_heads": 2,
    "max_length": 11,
}
VAE = {"block_out_channels": (4, 8), "layers_per_block": 1, "norm_num_groups": 2}
UNET = {
    "block_out_channels": (8, 12),
    "layers_per_block": 1,
    "has_attention": (True, False),
    "num_heads": 2,
    "cross_attention_dim": 12,
    "norm_num_groups": 4,
    "sample_size": 64,
}
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
PIPELINE_CONFIG = {
    "kind": "stable_diffusion",
    "latent_channels": 4,
    "scaling_factor": 0.18215,
    "shift_factor": 0.0,
    "vae_scale_factor": 2,
    "image_size": 128,
    "max_length": 11,
    "start_id": VOCABULARY_SIZE - 2,
    "end_id": VOCABULARY_SIZE - 1,
    "pad_id": VOCABULARY_SIZE - 1,
    "noise_schedule": {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "num_train_timesteps": 1000,
    },
    "prediction_type": "epsilon",
    "sampler": "plms",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "use_karras_sigmas": False,
}


def random_peer(build, seed=0, **numbers):
    """A peer with every number random, norms and biases too."""
    torch.manual_seed(seed)
    peer = build(**numbers)
    with torch.no_grad():
        for name, tensor in peer.named_parameters():
            if tensor.ndim == 1:
                tensor.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
    return peer


def make_folder(folder, *, text=None, unet=None, variant=None, shard="1GB", pad=END):
    """Write a Stable Diffusion in the layout of diffusers; returns its three peers."""
    peers = {
        "text_encoder": random_peer(clip_text_encoder, 0, **TEXT | (text or {})),
        "vae": random_peer(autoencoder_kl, 1, **VAE),
        "unet": random_peer(conditional_unet, 2, **UNET | (unet or {})),
    }
    for name, peer in peers.items():
        peer = peer.half() if variant == "fp16" else peer
        peer.save_pretrained(folder / name, variant=variant, max_shard_size=shard)
    write_tokenizer(folder / "tokenizer", pad=pad)
    (folder / "scheduler").mkdir()
    write(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    index = {"text_encoder": "CLIPTextModel", "vae": "AutoencoderKL", "unet": "UNet2DConditionModel"}
    index |= {"tokenizer": "CLIPTokenizer", "scheduler": "PNDMScheduler", "safety_checker": None}
    write(
        folder / "model_index.json",
        {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.6.0", "requires_safety_checker": True}
        | {part: [name and "library", name] for part, name in index.items()},
    )
    return {name: peer.float() for name, peer in peers.items()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """(folder, peers) of the plainest model; read only."""
    folder = tmp_path_factory.mktemp("plain")
    return folder, make_folder(folder)


@pytest.fixture
def copied(plain, tmp_path):
    """A copy of its folder, to be spoilt."""
    return shutil.copytree(plain[0], tmp_path / "copied")


def numbers_of(peer, prefix=""):
    return {prefix + name: tensor.detach().numpy() for name, tensor in peer.state_dict().items()}


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def assert_weights(pipeline, peers, **options):
    """What is in a converted pipeline is what is in the peers, bit for bit."""
    found = to_diffusers(**dict(zip(COMPONENT_BUILDERS, pipeline)), **options)
    assert_equal(found["text_encoder"], numbers_of(peers["text_encoder"], "text_model."))
    assert_equal(found["vae"], numbers_of(peers["vae"]))
    assert_equal(found["unet"], numbers_of(peers["unet"]))


# ------------------------------------------------------------------------------------------------------------ folders


@pytest.mark.once
def test_a_folder_becomes_models_that_need_keras_only(plain, tmp_path, capsys, run):
    folder, peers = plain
    out = tmp_path / "new" / "out"
    command.main(["convert", "stable-diffusion", str(folder), str(out)])
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [f"{name}.keras" for name in COMPONENT_BUILDERS] + ["card.json", "pipeline.json", "tokenizer.json"]
    )
    assert json.loads((out / "pipeline.json").read_text()) == PIPELINE_CONFIG
    said = capsys.readouterr().out
    assert "plms" in said and f'zoo generate {out} "' in said
    card = json.loads((out / "card.json").read_text())
    assert card["task"] == "text-to-image" and "pipeline.json" in card["files"]

    inputs = {
        "text_encoder": np.random.default_rng(0).integers(0, VOCABULARY_SIZE, (2, 9)).astype("int32"),
        "encoder": images(0, 1, 6, 4, 3),
        "decoder": images(1, 1, 3, 2, 4),
        "denoiser": [images(2, 2, 3, 4, 4), np.array([7, 990], "float32"), images(3, 2, 5, 12)],
    }
    np.savez(
        tmp_path / "inputs.npz",
        denoiser_0=inputs["denoiser"][0],
        denoiser_1=inputs["denoiser"][1],
        denoiser_2=inputs["denoiser"][2],
        **{name: inputs[name] for name in COMPONENT_BUILDERS[:3]},
    )
    program = f"""
import sys
sys.modules.update(sklearn=None, matplotlib=None)  # which Keras imports for what is not used here
import keras, numpy as np
given, found = np.load({str(tmp_path / "inputs.npz")!r}), {{}}
for name in {COMPONENT_BUILDERS}:
    model = keras.saving.load_model({str(out)!r} + "/" + name + ".keras")
    inputs = [given[f"denoiser_{{i}}"] for i in range(3)] if name == "denoiser" else given[name]
    for i, x in enumerate(keras.tree.flatten(model.predict_on_batch(inputs))):
        found[f"{{name}}_{{i}}"] = x
np.savez({str(tmp_path / "outputs.npz")!r}, **found)
assert not any(name.split(".")[0] == "zoo" for name in sys.modules)
"""
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # less to compile on JAX
    ended = run(["-c", program], XLA_FLAGS=quick)
    assert ended.returncode == 0, ended.stderr
    ours = np.load(tmp_path / "outputs.npz")
    with torch.no_grad():
        theirs = peers["text_encoder"](torch.tensor(inputs["text_encoder"]).long()).last_hidden_state.numpy()
        assert_same(ours["text_encoder_0"], theirs)
        theirs = peers["vae"].encode(channels_first(inputs["encoder"])).latent_dist
        assert_same(ours["encoder_0"], channels_last(theirs.mean), 0.1)
        assert_same(ours["encoder_1"], channels_last(theirs.logvar), 0.1)
        theirs = peers["vae"].decode(channels_first(inputs["decoder"])).sample
        assert_same(ours["decoder_0"], channels_last(theirs), 0.1)
        latents, timestep, context = inputs["denoiser"]
        theirs = peers["unet"](channels_first(latents), torch.tensor(timestep), torch.tensor(context)).sample
        assert_same(ours["denoiser_0"], channels_last(theirs), 0.1)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"variant": "fp16"}, marks=pytest.mark.once),
        pytest.param({"shard": "20KB"}, marks=pytest.mark.once),
        pytest.param({"variant": "fp16", "shard": "10KB"}, marks=pytest.mark.once),
        {
            "text": {"activation": "gelu"},
            "unet": {
                "use_linear_projection": True,
                "num_heads": (2, 3),
                "in_channels": 9,
                "transformer_layers_per_block": (2, 1),
            },
        },
    ],
    ids=["fp16", "shards", "fp16 shards", "inpainting, stable diffusion 2"],
)
def test_other_folders(options, tmp_path):
    peers = make_folder(tmp_path, **options)
    if "shard" in options:
        assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    pipeline = from_diffusers(tmp_path)
    assert_weights(pipeline, peers, use_linear_projection="unet" in options)
    assert pipeline.denoiser.inputs[0].shape[-1] == options.get("unet", {}).get("in_channels", 4)


@pytest.mark.once
def test_names_of_older_files(copied, plain):
    """Projections of the autoencoder's attention, the prefix of the text encoder, and its buffer of positions."""
    path = copied / "vae" / "diffusion_pytorch_model.safetensors"
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    found = load_file(path)
    for new, old in older.items():
        found = {name.replace(f".{new}.", f".{old}."): array for name, array in found.items()}
    assert sum("proj_attn" in name for name in found) == 4
    save_file(found, path)
    path = copied / "text_encoder" / "model.safetensors"
    found = {"text_model." + name.removeprefix("text_model."): array for name, array in load_file(path).items()}
    save_file(found | {"text_model.embeddings.position_ids": np.arange(11)[None]}, path)
    assert_weights(from_diffusers(copied), plain[1])
    save_file({name.removeprefix("text_model."): array for name, array in found.items()}, path)
    assert_weights(from_diffusers(copied), plain[1])


@pytest.mark.once
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("variant", ["", "fp16."])
def test_torch_files_by_the_names_of_transformers_and_diffusers(variant, shards, copied, plain):
    """Those of the text encoder are transformers'; the variant comes before `bin`, in an index before `json`."""
    for part, stem in (
        ("text_encoder", transformers.utils.WEIGHTS_NAME.removesuffix(".bin")),
        ("vae", diffusers.utils.WEIGHTS_NAME.removesuffix(".bin")),
        ("unet", diffusers.utils.WEIGHTS_NAME.removesuffix(".bin")),
    ):
        (path,) = (copied / part).glob("*.safetensors")
        tensors = {name: torch.from_numpy(array) for name, array in load_file(path).items()}
        path.unlink()
        weight_map, names = {}, list(tensors)
        for place in range(shards):
            number = f"-{place + 1:05}-of-{shards:05}" if shards > 1 else ""
            file = f"{stem}.{variant}bin" if shards == 1 else f"{stem}.{variant}{number[1:]}.bin"
            chosen = {name: tensors[name] for name in names[place::shards]}
            torch.save(chosen, copied / part / file)
            weight_map |= dict.fromkeys(chosen, file)
        if shards > 1:
            index = f"{stem}.bin.index.{variant}json"
            write(copied / part / index, {"metadata": {}, "weight_map": weight_map})
    assert_weights(from_diffusers(copied), plain[1])


@pytest.mark.once
def test_weights_that_theirs_have_no_place_for():
    x = keras.Input((None, None, 4))
    model = keras.Model(x, keras.layers.Conv2D(4, 1, name="extra")(x), name="mine")
    with pytest.raises(UserError, match="The model mine has a layer extra, for which diffusers has no name"):
        to_diffusers(denoiser=model)


# ---------------------------------------------------------------------------------------------------------- tokenizer

TEXTS = [
    "A photo of the CAT",
    "the dog's  café,\tnaïve\n2024!!",
    "",
    "   ",
    "ÀÉ 中文 😀 e\u0301 it's we'll",
    "cats <|endoftext|> red <|STARTOFTEXT|>house",
    "hello! ! wow!!",
]


@pytest.mark.once
@pytest.mark.parametrize("pad", [END, "!"])
@pytest.mark.parametrize("saved_again", [False, True])
def test_tokens_are_those_of_transformers(pad, saved_again, tmp_path):
    vocabulary = write_tokenizer(tmp_path / "tokenizer", pad=pad)
    peer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    folder = tmp_path / "tokenizer"
    if saved_again:
        folder = tmp_path / "again"
        peer.save_pretrained(folder)
        assert not (folder / "vocab.json").exists()
        peer = transformers.CLIPTokenizer.from_pretrained(folder)
    tokenizer, ids, length = load_clip_tokenizer(folder, len(vocabulary))
    assert ids == {"start_id": vocabulary[START], "end_id": vocabulary[END], "pad_id": vocabulary[pad]} and length == 11
    rng = np.random.default_rng(0)
    letters = list("abcdeéï'!? \n<|>2.,") + [START, "cat", "<|"]
    for text in TEXTS + ["".join(rng.choice(letters, 12)) for _ in range(100)]:
        assert tokenizer.encode(text).ids == peer(text).input_ids, text


@pytest.mark.once
@pytest.mark.parametrize("declared", [False, True], ids=["not declared", "declared in added_tokens_decoder"])
@pytest.mark.parametrize("in_map", [None, "!", {"content": "!", "lstrip": False, "normalized": False}], ids=str)
@pytest.mark.parametrize("pad", [END, "!"])
def test_padding_is_that_of_transformers(pad, in_map, declared, tmp_path):
    """Of Stable Diffusion 2, tokenizer_config.json names one token and special_tokens_map.json another."""
    folder = tmp_path / "tokenizer"
    vocabulary = write_tokenizer(folder, pad=pad)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    if declared:
        token = {"content": END, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        config["added_tokens_decoder"] = {str(vocabulary[END]): token | {"special": True}}
    path.write_text(json.dumps(config))
    if in_map:
        (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": in_map, "eos_token": END}))
    peer = transformers.CLIPTokenizer.from_pretrained(folder)
    _, ids, _ = load_clip_tokenizer(folder, len(vocabulary))
    assert ids["pad_id"] == peer.pad_token_id
    assert peer("a cat", padding="max_length", max_length=11).input_ids[-1] == ids["pad_id"]


# ----------------------------------------------------------------------------------------------------------- settings


@pytest.mark.once
@pytest.mark.parametrize(
    "peer, expected",
    [
        (
            diffusers.PNDMScheduler(skip_prk_steps=True),
            {"sampler": "plms", "timestep_spacing": "leading", "set_alpha_to_one": False},
        ),
        (
            diffusers.DDIMScheduler(prediction_type="v_prediction"),
            {"sampler": "ddim", "set_alpha_to_one": True, "prediction_type": "v_prediction"},
        ),
        (
            diffusers.DDPMScheduler(prediction_type="sample"),
            {"sampler": "ddpm", "prediction_type": "sample", "timestep_spacing": "leading"},
        ),
        (
            diffusers.EulerDiscreteScheduler(use_karras_sigmas=True),
            {"sampler": "euler", "timestep_spacing": "linspace", "use_karras_sigmas": True},
        ),
        (
            diffusers.EulerAncestralDiscreteScheduler(timestep_spacing="trailing"),
            {"sampler": "euler_ancestral", "timestep_spacing": "trailing"},
        ),
        (
            diffusers.HeunDiscreteScheduler(beta_schedule="squaredcos_cap_v2"),
            {
                "sampler": "heun",
                "noise_schedule": {
                    "beta_schedule": "squaredcos_cap_v2",
                    "num_train_timesteps": 1000,
                    "beta_start": 0.00085,
                    "beta_end": 0.012,
                },
            },
        ),
        (
            diffusers.LCMScheduler(),
            {
                "sampler": "lcm",
                "set_alpha_to_one": True,
                "noise_schedule": {
                    "beta_schedule": "scaled_linear",
                    "num_train_timesteps": 1000,
                    "beta_start": 0.00085,
                    "beta_end": 0.012,
                },
            },
        ),
        (
            diffusers.DPMSolverMultistepScheduler(num_train_timesteps=100),
            {
                "sampler": "dpmpp_2m",
                "noise_schedule": {
                    "beta_schedule": "linear",
                    "num_train_timesteps": 100,
                    "beta_start": 0.0001,
                    "beta_end": 0.02,
                },
            },
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_schedulers(peer, expected, tmp_path):
    peer.save_pretrained(tmp_path)
    found = _scheduler_config(tmp_path / "scheduler_config.json")
    assert found | expected == found and found["steps_offset"] == 1


@pytest.mark.once
def test_image_size_of_old_files(copied):
    """diffusers' pipelines take 64 where a file older than 0.9 says 32, and so do we."""
    for version, expected in (("0.6.0.dev0", 128), ("0.9.0", 64), ("0.42.1", 64)):
        change(copied / "unet" / "config.json", sample_size=32, _diffusers_version=version)
        assert _Source(copied).pipeline_config["image_size"] == expected


# ------------------------------------------------------------------------------------------------- what is refused


def spoil_config(part, **values):
    return lambda folder: change(folder / part / "config.json", **values)


def spoil_index(**values):
    return lambda folder: change(folder / "model_index.json", **values)


def spoil_scheduler(**values):
    return lambda folder: change(folder / "scheduler" / "scheduler_config.json", **values)


def remove(*path):
    def spoil(folder):
        target = folder.joinpath(*path)
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return spoil


def spoil_tensors(**changes):
    """Give tensors of the text encoder another value; None takes one away."""

    def spoil(folder):
        path = folder / "text_encoder" / "model.safetensors"
        found = load_file(path) | changes
        save_file({name: array for name, array in found.items() if array is not None}, path)

    return spoil


def damage(folder):
    path = folder / "text_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


NORM = "text_model.final_layer_norm.weight"
UNSUPPORTED = [
    (remove("vae"), "There is no folder vae in .*: fetch all of the model's parts"),
    (remove("model_index.json"), "There is no model_index.json in .*, which is the list of the parts"),
    (remove("unet", "config.json"), "There is no config.json in .*unet, which is the description of the denoiser"),
    (
        remove("unet", "diffusion_pytorch_model.safetensors"),
        "unet holds no weights that can be read: diffusion_pytorch",
    ),
    (remove("tokenizer", "merges.txt"), "There is no merges.txt in .*tokenizer"),
    (remove("scheduler", "scheduler_config.json"), "There is no scheduler_config.json in .*scheduler"),
    (spoil_index(_class_name="StableDiffusionXLPipeline"), "describes a StableDiffusionXLPipeline, and what can be"),
    (spoil_index(unet=["diffusers", "UNet2DModel"]), "says the unet is a UNet2DModel, and .* UNet2DConditionModel"),
    (spoil_index(vae=[None, None]), "model_index.json names no vae"),
    (
        spoil_index(scheduler=["diffusers", "KDPM2DiscreteScheduler"]),
        "says the scheduler is a KDPM2DiscreteScheduler, and .*PNDMScheduler",
    ),
    (spoil_scheduler(_class_name="KDPM2DiscreteScheduler"), "scheduler_config.json describes a KDPM2DiscreteScheduler"),
    (spoil_scheduler(beta_schedule="sigmoid"), "says beta_schedule is 'sigmoid', where linear or scaled_linear"),
    (spoil_scheduler(skip_prk_steps=False), "says skip_prk_steps is False, where only True is supported"),
    (spoil_scheduler(trained_betas=[0.1]), r"says trained_betas is \[0.1\], where only None is supported"),
    (
        spoil_config("unet", class_embed_type="timestep"),
        "says class_embed_type is 'timestep', where only None is supported",
    ),
    (spoil_config("unet", num_attention_heads=2), "says num_attention_heads is 2, where only None is supported"),
    (spoil_config("unet", cross_attention_dim=16), "cross_attention_dim of the unet is 16, where 12 was expected"),
    (spoil_config("unet", in_channels=8), "in_channels of the unet is 8, where 4 or 9 was expected"),
    (spoil_config("unet", attention_head_dim=[2]), r"says attention_head_dim is \[2\], where one for each of 2 levels"),
    (spoil_config("unet", block_out_channels="wide"), "says block_out_channels is 'wide', where a list was expected"),
    (spoil_config("unet", up_block_types=["UpBlock2D"] * 2), "up_block_types .*, which have to mirror each other"),
    (spoil_config("unet", down_block_types=["Down", "DownBlock2D"]), "where CrossAttnDownBlock2D or DownBlock2D for"),
    (spoil_config("unet", sample_size=[64, 32]), r"says sample_size is \[64, 32\], where one whole number"),
    (
        spoil_config("unet", norm_num_groups=5),
        "unet.config.json describes no model that can be built: block_out_channels must",
    ),
    (spoil_config("vae", latents_mean=[0.0]), r"says latents_mean is \[0.0\], where only None is supported"),
    (spoil_config("vae", down_block_types=["AttnDownEncoderBlock2D"] * 2), "where DownEncoderBlock2D for each of 2"),
    (spoil_config("vae", scaling_factor="big"), "says scaling_factor is 'big', where a number was expected"),
    (
        spoil_config("text_encoder", model_type="clip"),
        "says model_type is 'clip', where only 'clip_text_model' is supported",
    ),
    (
        spoil_config("text_encoder", hidden_act="relu"),
        "says hidden_act is 'relu', where quick_gelu or gelu was",
    ),
    (spoil_config("text_encoder", vocab_size=100), "tokenizer has a token with the id .*, and vocab_size .* is 100"),
    (spoil_tensors(**{NORM: None}), r"missing text_model.final_layer_norm.weight \(12,\)"),
    (spoil_tensors(extra=np.zeros(3, "float32")), "unexpected extra"),
    (spoil_tensors(**{NORM: np.zeros(3, "float32")}), r"final_layer_norm.weight has shape \(3,\), expected \(12,\)"),
    (spoil_tensors(**{NORM: np.zeros(12, "int32")}), "final_layer_norm.weight holds int32"),
    (damage, "model.safetensors is damaged"),
]


@pytest.mark.once
@pytest.mark.parametrize("spoil, words", UNSUPPORTED, ids=[words[:40] for _, words in UNSUPPORTED])
def test_what_is_refused(spoil, words, copied, tmp_path):
    path = copied / "text_encoder" / "model.safetensors"
    save_file({"text_model." + name.removeprefix("text_model."): x for name, x in load_file(path).items()}, path)
    spoil(copied)
    with pytest.raises(UserError, match=words) as caught:
        from_diffusers(copied)
    assert "\n" not in str(caught.value)


@pytest.mark.once
def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="There is no folder .*nowhere: give the one that holds model_index.json"):
        from_diffusers(tmp_path / "nowhere")
    single = tmp_path / "v1-5.safetensors"
    save_file({"model.diffusion_model.out.0.bias": np.zeros(4, "float32")}, single)
    with pytest.raises(UserError, match=r"is a file, .* let diffusers make one, .*from_single_file\('.*v1-5"):
        from_diffusers(single)
    single.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(UserError, match="is a pointer of Git LFS"):
        from_diffusers(single)
