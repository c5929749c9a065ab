"""Models of diffusers and transformers from the arguments of the zoo's builders, with random weights."""


def clip_text_encoder(
    *, vocabulary_size, num_layers, hidden_dim, intermediate_dim, num_heads, max_length, activation="quick_gelu"
):
    """The `CLIPTextModel` of `zoo.models.stable_diffusion.text_encoder`."""
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=vocabulary_size,
        num_hidden_layers=num_layers,
        hidden_size=hidden_dim,
        intermediate_size=intermediate_dim,
        num_attention_heads=num_heads,
        max_position_embeddings=max_length,
        hidden_act=activation,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return transformers.CLIPTextModel(config).eval()


def autoencoder_kl(
    *, block_out_channels, layers_per_block, norm_num_groups, image_channels=3, latent_channels=4, **config
):
    """The `AutoencoderKL` of `zoo.models.stable_diffusion.autoencoder`."""
    import diffusers

    return diffusers.AutoencoderKL(
        in_channels=image_channels,
        out_channels=image_channels,
        down_block_types=("DownEncoderBlock2D",) * len(block_out_channels),
        up_block_types=("UpDecoderBlock2D",) * len(block_out_channels),
        block_out_channels=block_out_channels,
        layers_per_block=layers_per_block,
        latent_channels=latent_channels,
        norm_num_groups=norm_num_groups,
        **config,
    ).eval()


def conditional_unet(*, has_attention, num_heads, **config):
    """The `UNet2DConditionModel` of `zoo.models.stable_diffusion.denoiser`."""
    import diffusers

    down = tuple("CrossAttnDownBlock2D" if one else "DownBlock2D" for one in has_attention)
    return diffusers.UNet2DConditionModel(
        down_block_types=down,
        up_block_types=tuple(block.replace("Down", "Up") for block in reversed(down)),
        attention_head_dim=num_heads,  # the number of heads, by a name that diffusers keeps (its issue 2011)
        **config,
    ).eval()
