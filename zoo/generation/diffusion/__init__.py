"""From a denoiser to an image: noise samplers and the latent diffusion pipeline."""
