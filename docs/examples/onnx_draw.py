"""Generate an image from a prompt with an exported latent diffusion: onnxruntime, NumPy, tokenizers and Pillow alone.

zoo export diffusion_captions --to onnx
python docs/examples/onnx_draw.py diffusion_captions_onnx "a green three on white" three.png --seed 1
"""

import argparse
import json
import pathlib

import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer


def draw(folder, prompt, *, negative_prompt="", seed=0):
    """An image (H, W, 3) uint8, by the sampler and the number of steps of config.json."""
    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    pipeline, plan = config["pipeline_config"], config["sampling_plan"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text_encoder, denoiser, decoder = (
        onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("text_encoder", "denoiser", "decoder")
    )

    def token_ids(text):
        ids = tokenizer.encode(text, add_special_tokens=False).ids[: pipeline["max_length"] - 2]
        ids = [pipeline["start_id"], *ids, pipeline["end_id"]]
        return ids + [pipeline["pad_id"]] * (pipeline["max_length"] - len(ids))

    tokens = np.array([token_ids(text) for text in (negative_prompt, prompt)], np.int32)
    (context,) = text_encoder.run(None, {"token": tokens})  # (2, S, d)
    side = pipeline["image_size"] // pipeline["vae_scale_factor"]
    rng, shape = np.random.default_rng(seed), (1, side, side, pipeline["latent_channels"])
    noise = rng.standard_normal(shape[1:], dtype=np.float32)[None]
    # The state of a sampler: x, the predicted x_0, and three arrays of history; a matrix (5, 7) gives the next state.
    state = np.zeros((5, *shape), np.float32)
    state[0] = plan["init_noise_sigma"] * noise
    scale = config["generation_config"]["guidance_scale"]
    for timestep, input_scale, matrix in zip(plan["timesteps"], plan["input_scales"], plan["step_matrices"]):
        matrix = np.array(matrix, np.float32)
        noise = rng.standard_normal(shape[1:], dtype=np.float32)[None] if matrix[0, 6] else np.zeros(shape, np.float32)
        latents = np.repeat(np.float32(input_scale) * state[0], 2, axis=0)
        feeds = {"latents": latents, "timestep": np.full(2, timestep, np.float32), "context": context}
        negative, positive = denoiser.run(None, feeds)[0]
        output = negative + np.float32(scale) * (positive - negative) if scale > 1 else positive
        state = np.tensordot(matrix, np.concatenate([state, [output[None]], [noise]]), axes=1)
    latents = (state[0] / pipeline["scaling_factor"] + pipeline["shift_factor"]).astype(np.float32)
    (image,) = decoder.run(None, {"latents": latents})
    return np.round(255 * np.clip(image[0] / 2 + 0.5, 0, 1)).astype(np.uint8)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("prompt")
    parser.add_argument("output")
    parser.add_argument("--negative-prompt", default="")
    parser.add_argument("--seed", type=int, default=0)
    arguments = vars(parser.parse_args())
    output = arguments.pop("output")
    Image.fromarray(draw(**arguments)).save(output)
