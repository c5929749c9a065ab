"""Published weights into our models and back, one file a source format.

zoo.convert.torch_rnn  torch.nn.LSTM, GRU and RNN; the usual PyTorch word language model
"""
