"""Every published size of the models: keyword arguments of the functions that build them. Imports no Keras."""

from typing import Any

TRANSFORMER: dict[str, dict[str, Any]] = {
    # Wu et al. 2021, "Good for Misconceived Reasons", table 1: the small one made for Multi30k
    "tiny": {"num_layers": 4, "hidden_dim": 128, "intermediate_dim": 256, "num_heads": 4},
    # Vaswani et al. 2017, table 3
    "base": {"num_layers": 6, "hidden_dim": 512, "intermediate_dim": 2048, "num_heads": 8},
}

TEXT_ENCODER: dict[str, dict[str, Any]] = {
    # Chosen here, for captions of a few words: a token sees at most 31 before it
    "tiny": {"num_layers": 3, "hidden_dim": 128, "intermediate_dim": 512, "num_heads": 4, "max_length": 32},
    # Radford et al. 2021, table 20, text transformer of ViT-L/14; the rest: openai/clip-vit-large-patch14, config.json
    "sd15": {
        "vocabulary_size": 49408,
        "num_layers": 12,
        "hidden_dim": 768,
        "intermediate_dim": 3072,
        "num_heads": 12,
        "max_length": 77,
        "activation": "quick_gelu",
    },
}

AUTOENCODER: dict[str, dict[str, Any]] = {
    # Chosen here, for images of 48x48: latents of 12x12
    "tiny": {"block_out_channels": (32, 64, 96), "layers_per_block": 1, "norm_num_groups": 16},
    # Rombach et al. 2022, table 8, f = 8 KL; runwayml/stable-diffusion-v1-5, vae/config.json
    "sd15": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32},
}

DENOISER: dict[str, dict[str, Any]] = {
    # Chosen here, for latents of 12x12 and the context of the tiny text encoder
    "tiny": {
        "block_out_channels": (64, 96, 128),
        "layers_per_block": 1,
        "has_attention": (False, True, True),
        "num_heads": 4,
        "cross_attention_dim": 128,
        "norm_num_groups": 16,
    },
    # Rombach et al. 2022, table 15 (text-to-image); runwayml/stable-diffusion-v1-5, unet/config.json
    "sd15": {
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "has_attention": (True, True, True, False),
        "num_heads": 8,
        "cross_attention_dim": 768,
        "norm_num_groups": 32,
    },
}
