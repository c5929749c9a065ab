"""The models of latent diffusion (Rombach et al. 2022), of which Stable Diffusion 1 is the variant "sd15".

text_encoder  CLIP's text transformer: token ids to context
autoencoder   images to latents and back
denoiser      the U-Net that predicts the noise in latents, given a timestep and the context

`zoo.generation.diffusion` holds the noise samplers and what joins the models to a text-to-image pipeline.
"""
