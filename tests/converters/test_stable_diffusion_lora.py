"""LoRA files of Stable Diffusion in the layouts of peft, diffusers and Kohya: diffusers' picture with the same file.

peft 0.21, which diffusers loads LoRA with, does not work with transformers 5.24. So diffusers' own converters rename
the tensors, and W + scale · (alpha / rank) B A (Hu et al. 2021, section 4.1) is computed here in PyTorch.
"""

import copy
import functools
import json

import numpy as np
import pytest

from tests.tasks.test_text_to_image import OPTIONS, PROMPT, folder, noises, theirs
from tests.tiny_diffusion import tiny_pipeline
from zoo import cli, lora
from zoo.converters.stable_diffusion_lora import module_names, parse_key
from zoo.errors import UserError
from zoo.tasks.text_to_image import TextToImage

diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
from safetensors.numpy import load_file, save_file  # noqa: E402

# What is adapted: of the U-Net linear layers, 1x1 convolutions and 3x3 convolutions of stride 1 and 2.
UNET_LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2")
UNET_LAYERS += ("conv_shortcut", "time_emb_proj", "conv", "conv_in", "conv_out", "linear_1", "linear_2")
TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def adapters(seed, layers, *, ranks=(2,), alphas=(None,)):
    """{(component, name of a layer in diffusers): (down, up, alpha)}, random; None for an alpha that is the rank."""
    rng, found = np.random.default_rng(seed), {}
    for component in ("unet", "text_encoder"):
        for index, (name, module) in enumerate(getattr(tiny_pipeline(4), component).named_modules()):
            if not (f".{name}".endswith(tuple(f".{one}" for one in layers)) and hasattr(module, "weight")):
                continue
            (outputs, *inputs), rank = module.weight.shape, ranks[index % len(ranks)]
            down = rng.normal(size=(rank, *inputs)) / np.prod(inputs) ** 0.5
            up = 0.4 * rng.normal(size=(outputs, rank, *[1] * (len(inputs) - 1)))
            found[component, name] = down.astype("float32"), up.astype("float32"), alphas[index % len(alphas)]
    return found


def write_peft(path, found):
    """As diffusers writes it today: an alpha for all, in the metadata."""
    tensors, config = {}, {}
    for (component, name), (down, up, alpha) in found.items():
        prefix = f"{component}.{'text_model.' if component == 'text_encoder' else ''}{name}"
        tensors |= {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}
        if alpha is not None:
            config |= {f"{component}.r": len(down), f"{component}.lora_alpha": alpha}
    save_file(tensors, path, {"format": "pt", "lora_adapter_metadata": json.dumps(config)} if config else None)


def write_old_diffusers(path, found):
    """As diffusers wrote it until 0.20: of the attention processors."""
    tensors, names = {}, dict(zip(TEXT_LAYERS, ("to_q", "to_k", "to_v", "to_out")))
    for (component, name), (down, up, _) in found.items():
        head, _, last = name.removesuffix(".0").rpartition(".")
        if component == "unet":
            prefix = f"unet.{head}.processor.{last}_lora"
        else:
            linear = f"text_encoder.text_model.{name}.lora_linear_layer"
            prefix = f"text_encoder.text_model.{head}.{names[last]}_lora" if last in names else linear
        tensors |= {f"{prefix}.down.weight": down, f"{prefix}.up.weight": up}
    save_file(tensors, path)


def write_kohya(path, found):
    """As sd-scripts writes it."""
    tensors = {}
    for (component, name), (down, up, alpha) in found.items():
        prefix = "lora_te_text_model_" if component == "text_encoder" else "lora_unet_"
        prefix += name.replace(".", "_")
        tensors |= {f"{prefix}.lora_down.weight": down, f"{prefix}.lora_up.weight": up}
        tensors[f"{prefix}.alpha"] = np.float32(len(down) if alpha is None else alpha)
    save_file({key: np.asarray(array) for key, array in tensors.items()}, path)


def of_diffusers(path):
    """{(component, module): (down, up, alpha)} of a file, its tensors named by diffusers' converters."""
    from diffusers.utils import state_dict_utils as convert

    state_dict, alphas, metadata = diffusers.StableDiffusionPipeline.lora_state_dict(
        str(path), return_lora_metadata=True
    )
    raw, found = load_file(path), {}
    for component in ("unet", "text_encoder"):
        part = {k.removeprefix(f"{component}."): v for k, v in state_dict.items() if k.startswith(f"{component}.")}
        if component == "text_encoder" and part:
            part = convert.convert_state_dict_to_peft(convert.convert_state_dict_to_diffusers(part))
            part = {key.removeprefix("text_model."): value for key, value in part.items()}
        elif part and "lora_A" not in next(iter(part)):
            part = convert.convert_unet_state_dict_to_peft(part)
        for name in (key.removesuffix(".lora_A.weight") for key in part if key.endswith(".lora_A.weight")):
            down, up = (part[f"{name}.lora_{letter}.weight"] for letter in "AB")
            alpha = (metadata or {}).get(f"{component}.lora_alpha", len(down))
            if alphas:
                prefix = "lora_unet_" if component == "unet" else "lora_te_text_model_"
                alpha = raw[f"{prefix}{name.replace('.', '_')}.alpha"].item()
            found[component, name] = down, up, alpha
        assert len(part) == 2 * len([key for key in found if key[0] == component])
    return found


def expected_image(monkeypatch, files):
    """The picture of diffusers' pipeline, each file merged into its weights: {path: scale}."""
    pipeline = copy.copy(tiny_pipeline(4))
    parts = {name: copy.deepcopy(getattr(pipeline, name)) for name in ("unet", "text_encoder")}
    for path, scale in files.items():
        for (component, name), (down, up, alpha) in of_diffusers(path).items():
            weight = parts[component].get_submodule(name).weight
            with torch.no_grad():
                weight += scale * alpha / len(down) * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    made = diffusers.StableDiffusionPipeline(
        **pipeline.components | parts | {"safety_checker": None}, requires_safety_checker=False
    )
    with monkeypatch.context() as patch:
        patch.setattr("tests.tasks.test_text_to_image.tiny_pipeline", lambda channels: made)
        return theirs(patch, "StableDiffusionPipeline", "plms", noises())


@functools.cache
def base_image():
    return TextToImage.from_preset(folder()).generate(PROMPT, **OPTIONS)


def check(monkeypatch, files):
    """Ours with files {path: scale} is theirs, and moved from the base's."""
    expected = expected_image(monkeypatch, files)[0].astype(int)
    task = TextToImage.from_preset(folder(), lora=list(files.items()))
    found = task.generate(PROMPT, **OPTIONS).astype(int)
    assert np.abs(found - expected).max() <= 2
    assert np.abs(expected - base_image()).max() >= 10 and expected.std() > 20
    return task


def test_peft_with_an_alpha(tmp_path, monkeypatch):
    write_peft(tmp_path / "a.safetensors", adapters(1, UNET_LAYERS + TEXT_LAYERS, ranks=(3,), alphas=(2,)))
    task = check(monkeypatch, {tmp_path / "a.safetensors": 1.0})
    assert task.card["lora"] == ["a.safetensors:1"]


@pytest.mark.slow("tensorflow", "jax")
def test_old_diffusers(tmp_path, monkeypatch):
    write_old_diffusers(tmp_path / "a.safetensors", adapters(2, ATTENTION + TEXT_LAYERS))
    check(monkeypatch, {tmp_path / "a.safetensors": 1.0})


def test_kohya_beside_another_at_other_scales(tmp_path, monkeypatch):
    """Every layer with a rank and an alpha of its own; and a second file."""
    options = {"ranks": (1, 2, 4), "alphas": (1, 2.5, 8, None)}
    write_kohya(tmp_path / "a.safetensors", adapters(3, UNET_LAYERS + TEXT_LAYERS, **options))
    write_peft(tmp_path / "b.safetensors", adapters(4, ATTENTION))
    check(monkeypatch, {tmp_path / "a.safetensors": 0.5, tmp_path / "b.safetensors": -0.7})


def test_what_is_written_is_read_by_diffusers(tmp_path, monkeypatch):
    """Trained parts, each with an alpha of its own, in one file."""
    task, rng = TextToImage.from_preset(folder()), np.random.default_rng(0)
    models = [task.components["text_encoder"], task.components["denoiser"]]
    for model, alpha in zip(models, (2, 6)):
        lora.add_lora(model, rank=2, alpha=alpha, targets=".*(query|value|inner|conv1|in|shortcut)")
        for variable in model.trainable_variables:
            variable.assign(0.3 * rng.normal(size=variable.shape))
    applied = task.generate(PROMPT, **OPTIONS).astype(int)  # by what was compiled for the base, if anything was
    lora.save_lora(models, tmp_path / "a.safetensors")
    written = of_diffusers(tmp_path / "a.safetensors")
    for (component, name), (down, up, _) in written.items():  # peft loads no other shapes
        weight = getattr(tiny_pipeline(4), component).get_submodule(name).weight
        assert (down.shape, up.shape) == ((2, *weight.shape[1:]), (weight.shape[0], 2, *[1] * (weight.ndim - 2)))
    assert {len(down.shape) for down, _, _ in written.values()} == {2, 4} and len(written) > 20
    expected = expected_image(monkeypatch, {tmp_path / "a.safetensors": 1.0})[0].astype(int)
    assert np.abs(applied - expected).max() <= 2 and np.abs(expected - base_image()).max() >= 10
    with pytest.raises(UserError, match="has LoRA layers, which a .keras file does not keep apart"):
        task.save_to_preset(tmp_path / "preset")
    for model in models:
        lora.merge_lora(model)
    task.save_to_preset(tmp_path / "preset")
    merged = TextToImage.from_preset(tmp_path / "preset").generate(PROMPT, **OPTIONS)
    assert np.abs(merged - applied).max() <= 1


@pytest.mark.once
def test_tensors_of_a_file_are_those_of_diffusers(tmp_path):
    """Each module by the name that diffusers gives it."""
    found = adapters(5, UNET_LAYERS + TEXT_LAYERS)
    write_kohya(tmp_path / "kohya.safetensors", found)
    write_peft(tmp_path / "peft.safetensors", found)
    for name in ("kohya", "peft"):
        assert of_diffusers(tmp_path / f"{name}.safetensors").keys() == found.keys()
    assert len(found) > 60


@pytest.mark.once
@pytest.mark.parametrize(
    "key, expected",
    [
        ("unet.mid_block.attentions.0.proj_in.lora.down.weight", ("unet.mid_block.attentions.0.proj_in", "down")),
        ("mid_block.a.attn1.processor.to_out_lora.up.weight", ("unet.mid_block.a.attn1.to_out.0", "up")),
        ("text_encoder.layers.0.mlp.fc1.lora_A.weight", ("text_encoder.text_model.layers.0.mlp.fc1", "down")),
        ("lora_te1_text_model_a.alpha", ("lora_te_text_model_a", "alpha")),
        ("lora_te_encoder_layers_0_mlp_fc1.alpha", ("lora_te_text_model_encoder_layers_0_mlp_fc1", "alpha")),
        ("lora_te1_encoder_a.lora_up.weight", ("lora_te_text_model_encoder_a", "up")),
        ("unet.conv_in.weight", None),
    ],
)
def test_names_of_tensors(key, expected):
    assert parse_key(key) == expected


@pytest.mark.once
def test_as_lycoris_writes(tmp_path):
    """lycoris-lora 4.1 beside transformers 5: no "text_model_" in names, and alpha may be an integer.

    Against W + alpha / rank · B A. Files of the package itself (LoRA, LoCon, rank-stabilized, a trained scalar) were
    compared once: the largest difference from its own `get_diff_weight` was 2e-7.
    """
    found = adapters(6, ("conv1", "to_q", *TEXT_LAYERS), ranks=(2, 4), alphas=(1, 3))
    write_kohya(tmp_path / "kohya.safetensors", found)
    tensors = {}
    for key, array in load_file(tmp_path / "kohya.safetensors").items():
        key = key.replace("lora_te_text_model_", "lora_te_")
        tensors[key] = array.astype("int64") if key.endswith(".alpha") else array
    save_file(tensors, tmp_path / "lycoris.safetensors")
    base = TextToImage.from_preset(folder())
    adapted = TextToImage.from_preset(folder(), lora=tmp_path / "lycoris.safetensors")
    compared = 0
    for component, prefix in (("denoiser", "unet"), ("text_encoder", "text_encoder")):
        before, after = (module_names(task.components[component], component) for task in (base, adapted))
        for name, layer in after.items():
            change = np.array(layer.get_weights()[0]) - np.array(before[name].get_weights()[0])
            key = prefix, name.removeprefix("unet.").removeprefix("text_encoder.text_model.")
            if key not in found:
                assert not change.any()
                continue
            down, up, alpha = found[key]
            product = alpha / len(down) * up.reshape(len(up), -1) @ down.reshape(len(down), -1)
            expected = product.reshape(len(up), *down.shape[1:])
            axes = (2, 3, 1, 0) if change.ndim == 4 else (1, 0)
            np.testing.assert_allclose(change, expected.transpose(axes).reshape(change.shape), atol=1e-5)
            compared += 1
    assert compared == len(found) > 20


@pytest.mark.once
def test_lora_of_another_model(tmp_path):
    """A deeper U-Net; a file for the U-Net alone is fine."""
    write_kohya(tmp_path / "a.safetensors", {("unet", "down_blocks.7.conv"): (np.ones((1, 2)), np.ones((2, 1)), 1)})
    words = "a LoRA of another model: it adapts lora_unet_down_blocks_7_conv, which text_encoder and denoiser do not"
    with pytest.raises(UserError, match=words):
        TextToImage.from_preset(folder(), lora=tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="There is no file at .*missing.safetensors"):
        TextToImage.from_preset(folder(), lora=[(tmp_path / "missing.safetensors", 0.5)])


@pytest.mark.once
def test_the_command(tmp_path, capsys):
    write_peft(tmp_path / "a.safetensors", adapters(1, ATTENTION))
    size = ["--num-steps", "6", "--seed", "5", "--negative-prompt", OPTIONS["negative_prompt"], "--size", "24x16"]
    image = tmp_path / "fox.png"
    command = ["generate", str(folder()), PROMPT, *size, "--output", str(image)]
    assert cli.run([*command, "--lora", f"{tmp_path / 'a.safetensors'}:0.5"]) == 0
    capsys.readouterr()
    from PIL import Image

    task = TextToImage.from_preset(folder(), lora=(tmp_path / "a.safetensors", 0.5))
    found = Image.open(image)
    np.testing.assert_array_equal(np.asarray(found), task.generate(PROMPT, **OPTIONS))
    assert found.text["lora"] == "a.safetensors:0.5"
