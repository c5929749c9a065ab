"""Drawing with a latent diffusion in a folder: prompts in, pictures out.

zoo.drawing.painter    the models and the tokenizer of a folder together
zoo.drawing.draw       the command `zoo draw`
zoo.drawing.pictures   picture files: read, written with the settings inside, strips and animations
"""
