// Classify a digit and generate text with exported folders, in a browser or under node: onnxruntime-web alone.
//
//     zoo export cnn_mnist --to onnx
//     zoo export lstm_shakespeare --to onnx
//
// `ort` is the module onnxruntime-web; `read(name)` gives the bytes of a file of the exported folder, as a promise.

const text = (bytes) => new TextDecoder().decode(bytes);

/** An exported folder: its config, and the models that were asked for. */
export async function loadFolder(ort, read, names) {
  const config = JSON.parse(text(await read("config.json")));
  const sessions = {};
  for (const name of names) {
    sessions[name] = await ort.InferenceSession.create(await read(name), { executionProviders: ["wasm"] });
  }
  return { ort, config, sessions };
}

/** Run a model on {name: typed array}, with {name: shape}; gives {name: tensor}. */
export function run({ ort, config, sessions }, name, arrays, shapes) {
  const feeds = {};
  for (const { name: input, dtype } of config.models[name].inputs) {
    feeds[input] = new ort.Tensor(dtype, arrays[input], shapes[input]);
  }
  return sessions[name].run(feeds);
}

/** The classes of an image, most probable first: [{label, probability}]. Pixels are 0 to 255, row by row. */
export async function classify(folder, pixels, height, width) {
  const { config } = folder;
  const channels = config.models["model.onnx"].inputs[0].shape[3];
  let values = Float32Array.from(pixels);
  if (config.invert_light_backgrounds) { // the model was trained on light ink on dark ground
    const isBorder = (i) => [0, height - 1].includes(Math.floor(i / width)) || [0, width - 1].includes(i % width);
    const border = values.filter((_, i) => isBorder(i));
    const mean = border.reduce((a, b) => a + b) / border.length;
    if (mean > 127.5) values = values.map((value) => 255 - value);
  }
  if (config.preprocess_input !== "none") throw new Error("this example does no other preprocessing");
  const outputs = await run(folder, "model.onnx", { image: values }, { image: [1, height, width, channels] });
  const logits = Array.from(outputs.logits.data);
  const highest = Math.max(...logits);
  const p = logits.map((x) => Math.exp(x - highest));
  const total = p.reduce((a, b) => a + b);
  return p.map((x, k) => ({ label: config.class_names[k], probability: x / total }))
    .sort((a, b) => b.probability - a.probability);
}

/** Text that follows a prompt, one character a step: sampled, or with temperature 0 the most probable ones. */
export async function generate(folder, tokenizer, prompt, { maxNewTokens = 200, temperature = 0.8, random = Math.random } = {}) {
  const { config } = folder;
  const { vocab } = JSON.parse(text(tokenizer)).model;
  const characters = Object.fromEntries(Object.entries(vocab).map(([character, id]) => [id, character]));
  const [token, ...states] = config.models["decode_step.onnx"].inputs;
  const shapes = { [token.name]: [1] };
  const arrays = {};
  for (const state of states) {
    shapes[state.name] = [1, state.shape[1]];
    arrays[state.name] = new Float32Array(state.shape[1]);
  }
  let pending = [...prompt].map((character) => vocab[character] ?? 0);
  const generated = [];
  while (generated.length < maxNewTokens) {
    let outputs;
    for (const id of pending) {
      arrays[token.name] = Int32Array.from([id]);
      outputs = await run(folder, "decode_step.onnx", arrays, shapes);
      for (const state of states) arrays[state.name] = outputs[`${state.name}_next`].data;
    }
    const id = sample(outputs.logits.data, temperature, random);
    generated.push(id);
    pending = [id];
  }
  return prompt + generated.map((id) => characters[id]).join("");
}

function sample(logits, temperature, random) {
  const highest = Math.max(...logits);
  if (temperature === 0) return logits.indexOf(highest);
  const p = Array.from(logits, (x) => Math.exp((x - highest) / temperature));
  let left = random() * p.reduce((a, b) => a + b);
  return Math.max(0, p.findIndex((x) => (left -= x) < 0));
}
