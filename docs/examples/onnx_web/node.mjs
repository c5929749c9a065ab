// The example under node, after `npm install onnxruntime-web` in this folder or one above it:
//
//     node docs/examples/onnx_web/node.mjs classify cnn_mnist_onnx PIXELS.json
//     node docs/examples/onnx_web/node.mjs generate lstm_shakespeare_onnx "ROMEO:" 0
//
// PIXELS.json holds {"height": H, "width": W, "pixels": [0 to 255, row by row]}; the last argument is the temperature.

import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-web";
import { classify, generate, loadFolder } from "./onnx_web.mjs";

ort.env.wasm.numThreads = 1;
const [task, path, input, temperature = "0.8"] = process.argv.slice(2);
const read = async (name) => new Uint8Array(await readFile(`${path}/${name}`));

if (task === "classify") {
  const { height, width, pixels } = JSON.parse(await readFile(input, "utf8"));
  const folder = await loadFolder(ort, read, ["model.onnx"]);
  for (const { label, probability } of (await classify(folder, pixels, height, width)).slice(0, 3)) {
    console.log(`${label.padEnd(20)} ${probability.toFixed(4)}`);
  }
} else {
  const folder = await loadFolder(ort, read, ["decode_step.onnx"]);
  console.log(await generate(folder, await read("tokenizer.json"), input, { temperature: Number(temperature) }));
}
