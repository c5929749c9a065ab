"""From text to token ids and back, and from logits to the next token.

zoo.text.tokenizers        characters, words or byte-pair pieces, kept as JSON
zoo.text.marian_tokenizer  SentencePiece and a vocabulary, as Marian's translation models use them
zoo.text.decoding          greedy, temperature, top-k, top-p
"""
