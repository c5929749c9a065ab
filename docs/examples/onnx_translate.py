"""Translate a sentence with an exported transformer and beam search: onnxruntime, NumPy and tokenizers alone.

zoo export transformer_multi30k_de_en --to onnx
python docs/examples/onnx_translate.py transformer_multi30k_de_en_onnx "Ein Hund läuft durch den Schnee."

Letters: K beams, S source tokens, M cached positions, N heads, H size of a head, V vocabulary.
"""

import argparse
import json
import pathlib

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


class Translator:
    """An exported folder, loaded."""

    def __init__(self, folder):
        folder = pathlib.Path(folder)
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.encoder = onnxruntime.InferenceSession(folder / "encoder.onnx")
        self.step = onnxruntime.InferenceSession(folder / "decode_step.onnx")
        self.inputs = [x["name"] for x in self.config["models"]["decode_step.onnx"]["inputs"]]

    def translate(self, text, num_beams=5):
        """The translation of a sentence."""
        source = [*self.tokenizer.encode(text.strip(), add_special_tokens=False).ids, self.config["end_id"]]
        return self.tokenizer.decode(self.search(source, num_beams)[0]).strip()

    def search(self, source, num_beams):
        """(ids of the best hypothesis, its score): greedy for one beam, else as transformers' beam search."""
        config, end_id = self.config, self.config["end_id"]
        penalty, last = config["generation_config"]["length_penalty"], 2 * len(source) + 20 - 2
        padding_mask, *cross = self.encoder.run(None, {"source": np.array([source], np.int32)})
        shape = cross[0].shape
        # The K hypotheses lie side by side in the caches; a row of the mask says which positions are a hypothesis' own.
        caches = [np.zeros((1, shape[1], 1, shape[3]), np.float32) for _ in cross]  # (1, N, M, H), first unused
        mask = np.zeros((1, num_beams, 1), bool)  # (1, K, M)
        tokens, scores = np.full(num_beams, config["start_id"], np.int32), np.full(num_beams, -1e9)
        hypotheses, finished, scores[0] = [[] for _ in range(num_beams)], [], 0.0
        for position in range(last + 1):
            arrays = [tokens[None], np.array([position], np.int32), padding_mask, mask, *cross, *caches]
            logits, *new = self.step.run(None, dict(zip(self.inputs, arrays)))
            caches = [np.concatenate(pair, axis=2) for pair in zip(caches, new)]
            mask = np.concatenate([mask, np.eye(num_beams, dtype=bool)[None]], axis=2)
            p = self.log_probabilities(logits[0], force_end=position == last and config["force_end"])  # (K, V)
            totals = (scores[:, None] + p).reshape(-1)
            order = np.argsort(-totals, kind="stable")[: 1 if num_beams == 1 else 2 * num_beams]
            candidates = [(totals[i], *divmod(int(i), p.shape[1])) for i in order]  # (score, parent, token), best first
            for score, parent, token in candidates[:num_beams]:
                if token == end_id or position == last:
                    ids = hypotheses[parent] + ([] if token == end_id else [token])
                    finished.append((score / (position + 1) ** penalty, ids))
            finished = sorted(finished, key=lambda one: -one[0])[:num_beams]
            going = [one for one in candidates if one[2] != end_id][:num_beams]
            done = len(finished) == num_beams and going and going[0][0] / (position + 1) ** penalty <= finished[-1][0]
            if position == last or not going or done:
                break
            going += [(-1e9, 0, end_id)] * (num_beams - len(going))
            scores, parents, tokens = (np.array(column) for column in zip(*going))
            tokens, mask = tokens.astype(np.int32), mask[:, parents]
            hypotheses = [hypotheses[parent] + [int(token)] for parent, token in zip(parents, tokens)]
        return finished[0][1], finished[0][0]

    def log_probabilities(self, logits, force_end):
        """Log-probabilities (K, V) of the next token; at the last position of the end alone."""
        if force_end:
            p = np.full(logits.shape, -np.inf)
            p[:, self.config["end_id"]] = 0
            return p
        allowed = logits.astype(np.float64)
        if self.config["renormalize_logits"]:
            allowed[:, self.config["suppress_tokens"]] = -np.inf
        highest = allowed.max(axis=1, keepdims=True)
        p = allowed - highest - np.log(np.exp(allowed - highest).sum(axis=1, keepdims=True))
        p[:, self.config["suppress_tokens"]] = -np.inf
        return p


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("sentence")
    parser.add_argument("--num-beams", type=int, default=5)
    arguments = parser.parse_args()
    print(Translator(arguments.folder).translate(arguments.sentence, arguments.num_beams))
