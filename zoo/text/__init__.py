"""From text to token ids and back, and from logits to the next token.

zoo.text.tokenizers        characters, words or byte-pair pieces, kept as JSON
zoo.text.marian_tokenizer  SentencePiece and a vocabulary, as Marian's translation models use them
zoo.text.decoding          the next token of one text: greedy, temperature, top-k, top-p
zoo.text.translating       batches of texts from an encoder-decoder: greedy, beam search, sampling
zoo.text.search            one step of that, on tensors
zoo.text.torch_transformer the encoder-decoder as plain PyTorch calls
"""
