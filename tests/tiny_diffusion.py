"""A very small Stable Diffusion of diffusers with random weights, and a way to feed it noise."""

import functools
import importlib
import json
import tempfile

import numpy as np

WORDS = ("a", "red", "fox", "in", "the", "snow", "blurry", "photograph", "of")
# scheduler/scheduler_config.json of Stable Diffusion 1.5; steps_offset and so on are then those of published pipelines
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}
SCHEDULERS = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "plms": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "lcm": "LCMScheduler",
}
# Modules of diffusers that sample random numbers.
_MODULES_WITH_NOISE = (
    "models.autoencoders.vae",
    "pipelines.stable_diffusion.pipeline_stable_diffusion",
    "pipelines.stable_diffusion.pipeline_stable_diffusion_img2img",
    "pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint",
    "schedulers.scheduling_ddpm",
    "schedulers.scheduling_ddim",
    "schedulers.scheduling_euler_ancestral_discrete",
    "schedulers.scheduling_lcm",
)


def vocabulary():
    """(vocab.json, merges.txt) of a CLIP tokenizer that knows some words whole and all others by letters."""
    letters = "abcdefghijklmnopqrstuvwxyz!,."
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges = []
    for word in WORDS:
        *pieces, last = word
        pieces.append(f"{last}</w>")
        while len(pieces) > 1:
            merge, pieces = (pieces[0], pieces[1]), ["".join(pieces[:2]), *pieces[2:]]
            if merge not in merges:
                merges.append(merge)
                tokens.append(pieces[0])
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    return {token: index for index, token in enumerate(tokens)}, "\n".join(lines) + "\n"


@functools.cache
def tiny_pipeline(channels):
    """A `StableDiffusionPipeline` (4 channels) or `…InpaintPipeline` (9) whose images are anything but gray."""
    import diffusers
    import torch
    import transformers

    torch.manual_seed(0)
    ids, merges = vocabulary()
    folder = tempfile.mkdtemp()
    with open(f"{folder}/vocab.json", "w") as file:
        json.dump(ids, file)
    with open(f"{folder}/merges.txt", "w") as file:
        file.write(merges)
    tokenizer = transformers.CLIPTokenizer(f"{folder}/vocab.json", f"{folder}/merges.txt", model_max_length=12)
    text_encoder = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(ids),
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=12,
            bos_token_id=ids["<|startoftext|>"],
            eos_token_id=ids["<|endoftext|>"],
            pad_token_id=ids["<|endoftext|>"],
        )
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=24,
        norm_num_groups=4,
    )
    _randomize(text_encoder, vae, unet)
    pipeline_class = diffusers.StableDiffusionPipeline if channels == 4 else diffusers.StableDiffusionInpaintPipeline
    pipeline = pipeline_class(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=diffusers.PNDMScheduler.from_config(SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _randomize(*modules):
    """Random weights under which prompts and latents make a visible difference."""
    import torch

    generator = torch.Generator().manual_seed(1)
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                scale = parameter[0].numel() ** -0.5 * (4 if "attn" in name and "to_k" in name else 1.2)
            else:
                scale = 0.1
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
                if parameter.ndim == 1 and name.endswith("weight"):
                    parameter.add_(1.0)


def feed_noise(monkeypatch, arrays):
    """Make diffusers take its noise from an iterator of arrays (B, h, w, C)."""
    import torch

    arrays = iter(arrays)

    def next_noise(shape, *args, **kwargs):
        array = np.moveaxis(next(arrays), -1, 1)
        assert array.shape == tuple(shape), (array.shape, shape)
        return torch.tensor(np.ascontiguousarray(array))

    for name in _MODULES_WITH_NOISE:
        monkeypatch.setattr(importlib.import_module(f"diffusers.{name}"), "randn_tensor", next_noise)
