"""Published weights into our models and back, one file a source format.

zoo.convert.torch_rnn         torch.nn.LSTM, GRU and RNN; the usual PyTorch word language model
zoo.convert.marian            Marian's translation models (opus-mt) as Hugging Face transformers keeps them
zoo.convert.stable_diffusion  Stable Diffusion 1 and 2 as diffusers keeps it
zoo.convert.keras_cv          the models of KerasCV, whose last release was 0.9
zoo.convert.clip_tokenizer    CLIP's tokenizer as transformers keeps it
zoo.convert.tensor_files      what they read: safetensors and torch files, one tensor at a time
"""
