"""Generate text with an exported language model, one token a step: LiteRT, NumPy and tokenizers alone.

zoo export lstm_shakespeare --to litert
python docs/examples/litert_generate.py lstm_shakespeare_litert ROMEO: --seed 1
"""

import argparse
import json
import pathlib

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from tokenizers import Tokenizer


def generate(folder, prompt, *, max_new_tokens=400, temperature=0.8, seed=0):
    """The prompt and the text that follows it."""
    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    step = Interpreter(str(folder / "decode_step.tflite")).get_signature_runner()
    token_input, *state_inputs = config["models"]["decode_step.tflite"]["inputs"]
    states = [np.zeros((1, state["shape"][1]), np.float32) for state in state_inputs]
    rng, generated = np.random.default_rng(seed), []
    pending = tokenizer.encode(prompt).ids  # tokens that the model has not seen
    while len(generated) < max_new_tokens:
        for token in pending:
            feeds = {state["name"]: value for state, value in zip(state_inputs, states)}
            feeds[token_input["name"]] = np.array([token], np.int32)
            outputs = step(**feeds)
            states = [outputs[f"{state['name']}_next"] for state in state_inputs]
        scaled = outputs["logits"][0].astype(np.float64) / temperature
        cumulative = np.cumsum(np.exp(scaled - scaled.max()))
        # Inversion sampling: one uniform number a token.
        pending = [int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))]
        generated += pending
    return prompt + tokenizer.decode(generated)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("prompt")
    parser.add_argument("--max-new-tokens", type=int, default=400)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=0)
    print(generate(**vars(parser.parse_args())))
