"""Published weights into our models and back, one file a source format.

zoo.convert.torch_rnn     torch.nn.LSTM, GRU and RNN; the usual PyTorch word language model
zoo.convert.marian        Marian's translation models (opus-mt) as Hugging Face transformers keeps them
zoo.convert.tensor_files  what they read: safetensors and torch files, one tensor at a time
"""
