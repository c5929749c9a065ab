"""Latent diffusion (Rombach et al. 2022), of which Stable Diffusion 1 is the variant "sd15".

zoo.models.stable_diffusion.text_encoder  CLIP's text transformer: a prompt's tokens into context
zoo.models.stable_diffusion.autoencoder   pictures into latents and back
zoo.models.stable_diffusion.denoiser      the U-Net that finds the noise in latents, given a context
zoo.generation.diffusion.noise_sampler how noise is added, and samplers that take it away step by step
zoo.generation.diffusion.latent_diffusion      all of them together: from a prompt, or a picture, to a picture
"""
