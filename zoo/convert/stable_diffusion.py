"""Stable Diffusion 1 and 2 as diffusers keeps them, into our models; and their weights back.

A folder holds                                          which becomes, in the folder OUT
text_encoder/config.json, model.safetensors             text_encoder.keras  tokens (B, T) -> context (B, T, d)
vae/config.json, diffusion_pytorch_model.safetensors    encoder.keras       image -> [mean, log-variance] of latents
                                                        decoder.keras       latents -> image
unet/config.json, diffusion_pytorch_model.safetensors   denoiser.keras      [latents, timestep, context] -> latents
tokenizer/vocab.json, merges.txt (or tokenizer.json)    tokenizer.json      of the package `tokenizers`
scheduler/scheduler_config.json, model_index.json       pipeline.json       the settings below

Weights may be float32, float16 or bfloat16 (ours are float32), in one file or in shards with an index, of the variant
"fp16" too. A safety checker, a feature extractor and an image encoder are not read.

Shapes, channels last: image (B, H, W, 3) in [-1, 1]; mean, log-variance and latents (B, H/8, W/8, 4), as the
autoencoder has them: the denoiser's are (z - latent_shift) * latent_scale. H and W are divisible by `downsampling`.
timestep (B,) float32. The image that the decoder gives is not clipped.

pipeline.json is one object:

kind              "stable_diffusion"
latent_channels   4
latent_scale      0.18215, vae/config.json's scaling_factor
latent_shift      0.0, vae/config.json's shift_factor
downsampling      8, pixels of an image to one latent, in height and in width
image_size        512, what the denoiser was trained for, in height and in width
max_length        77, tokens of a prompt, with start, end and padding
start_id, end_id  49406 and 49407, before and after a prompt; tokenizer.json writes both around what it encodes
pad_id            49407 in Stable Diffusion 1, 0 in 2; up to max_length, what tokenizer.json leaves to the caller
schedule          {"kind": "linear", "scaled_linear" or "squared_cosine",
                   "beta_start": 0.00085, "beta_end": 0.012, "steps": 1000}
prediction        "epsilon", "v" or "x0"
sampler           "plms", "ddim", "ddpm", "euler", "euler_ancestral", "heun" or "dpm++", after the scheduler's class
spacing           "leading", "trailing" or "linspace": which timesteps a sampler visits
offset            1, steps_offset: added to the timesteps of "leading"
final_alpha_one   false: the alpha after the last step is that of timestep 0 (set_alpha_to_one)
clip_sample       0.0, or the bound that predicted latents are clipped to (clip_sample_range)
karras            false: whether sigmas are respaced as Karras et al. 2022 do

The denoiser's inputs tell the rest: `denoiser.inputs[0].shape[-1]` is 9 for inpainting (latents, mask, masked latents).
"""
