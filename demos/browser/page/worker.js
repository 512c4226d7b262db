// The language model. It runs in a worker, so that the page stays responsive while it computes.
//
// Three packages do the work: onnxruntime-web executes the graph in WebAssembly, @huggingface/jinja renders the chat
// template, @huggingface/tokenizers turns text into token ids and back. Everything comes from where the page comes from:
//   model/    an ONNX folder as course_lib.export.to_onnx writes it
//   modules/  the packages' files
// Sources: https://onnxruntime.ai/docs/tutorials/web/, https://onnxruntime.ai/docs/api/js/, https://github.com/huggingface/tokenizers.js

const CONTEXT = 1024; // tokens of prompt and answer together, as course_lib.export.OnnxModel has it by default

class Problem extends Error {
  constructor(kind, detail) {
    super(detail);
    this.kind = kind; // a text of texts.json: error.<kind>
  }
}

let model = null;
let stopped = false;

self.onmessage = async ({ data }) => {
  try {
    if (data.type === "stop") stopped = true;
    if (data.type === "load") model = await load(data.threads);
    if (data.type === "ask") await answer(data.messages, data.limit);
  } catch (error) {
    self.postMessage({ type: "error", kind: kindOf(error), detail: String(error?.message ?? error) });
  }
};

function kindOf(error) {
  if (error instanceof Problem) return error.kind;
  // WebAssembly has no exception for it: allocators report in words of their own, or by a bare number
  const words = String(error?.message ?? error);
  return error instanceof RangeError || /out of memory|bad_alloc|allocat|^\d+$/i.test(words) ? "memory" : "other";
}

// ---- loading ---------------------------------------------------------------------------------------------------------

async function load(threads) {
  const begin = performance.now();
  const [ort, { Tokenizer }, { Template }] = await Promise.all(
    ["onnxruntime-web/dist/ort.wasm.min.mjs", "@huggingface/tokenizers/dist/tokenizers.min.mjs",
      "@huggingface/jinja/dist/index.js"].map(module));
  const wasm = await fetchWhole("modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm", "module");
  const [config, tokenizerJson, tokenizerConfig, template] = await Promise.all([
    json("genai_config.json"), json("tokenizer.json"), json("tokenizer_config.json"), text("chat_template.jinja")]);
  const decoder = config.model.decoder;
  const graph = await fetchWhole(`model/${decoder.filename}`, "model");
  const weights = await fetchWhole(`model/${decoder.filename}.data`, "model");
  self.postMessage({ type: "start" });

  // Threads need shared memory, which browsers give only to pages isolated from other origins (two HTTP headers).
  ort.env.wasm.numThreads = self.crossOriginIsolated ? threads : 1;
  ort.env.wasm.wasmPaths = new URL("modules/onnxruntime-web/dist/", self.location.href).href;
  ort.env.wasm.wasmBinary = wasm.buffer;
  const session = await build(ort, graph, [{ path: `${decoder.filename}.data`, data: weights }]);
  const ends = [config.model.eos_token_id].flat();
  self.postMessage({ type: "ready", seconds: (performance.now() - begin) / 1000, threads: ort.env.wasm.numThreads });
  return {
    ort, session, decoder, ends, special: tokenizerConfig, template: new Template(template),
    tokenizer: new Tokenizer(tokenizerJson, tokenizerConfig), context: Math.min(CONTEXT, config.model.context_length),
  };
}

async function build(ort, graph, externalData) {
  try {
    return await ort.InferenceSession.create(graph, { executionProviders: ["wasm"], externalData });
  } catch (error) {
    throw kindOf(error) === "memory" ? error : new Problem("model", error.message);
  }
}

async function module(path) {
  const url = new URL(`modules/${path}`, self.location.href).href;
  try {
    return await import(url);
  } catch (error) {
    throw new Problem("module", `${path}: ${error.message}`);
  }
}

// A whole file as bytes; tells the page how much of it has arrived.
async function fetchWhole(path, kind) {
  const response = await get(path, kind);
  const size = Number(response.headers.get("Content-Length"));
  const chunks = [];
  let got = 0;
  for (const reader = response.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    chunks.push(value);
    got += value.length;
    self.postMessage({ type: "progress", file: path.split("/").pop(), got, size: Math.max(size, got) });
  }
  if (got < size) throw new Problem(kind, `${path}: ${got} / ${size} bytes`);
  const whole = new Uint8Array(got);
  let place = 0;
  for (const chunk of chunks) {
    whole.set(chunk, place);
    place += chunk.length;
  }
  return whole;
}

async function get(path, kind) {
  let response;
  try {
    response = await fetch(path);
  } catch (error) {
    throw new Problem("server", `${path}: ${error.message}`);
  }
  if (!response.ok) throw new Problem(kind, `${path}: HTTP ${response.status}`);
  return response;
}

const json = async (name) => {
  try {
    return JSON.parse(await text(name));
  } catch (error) {
    throw error instanceof SyntaxError ? new Problem("model", `${name}: ${error.message}`) : error;
  }
};
const text = async (name) => (await get(`model/${name}`, "model")).text();

// ---- answering -------------------------------------------------------------------------------------------------------

async function answer(messages, limit) {
  const { tokenizer, template, special } = model;
  const rendered = template.render({ messages, add_generation_prompt: true, bos_token: special.bos_token, eos_token: special.eos_token });
  const promptIds = tokenizer.encode(rendered, { add_special_tokens: false }).ids;
  if (promptIds.length + limit > model.context) throw new Problem("long", `${promptIds.length} + ${limit} > ${model.context}`);
  self.postMessage({ type: "prompt", rendered, ids: promptIds });
  stopped = false;
  const ids = [];
  const begin = performance.now();
  let first = 0, rate = 0;
  for await (const id of greedy(promptIds, limit)) {
    const now = performance.now();
    first ||= now;
    ids.push(id);
    rate = ids.length > 1 ? (ids.length - 1) / ((now - first) / 1000) : 0;
    const shown = tokenizer.decode(ids, { skip_special_tokens: true }).replace(/\uFFFD+$/, ""); // half a character, so far
    self.postMessage({ type: "token", text: shown, ids, first: (first - begin) / 1000, rate });
    await new Promise((resolve) => setTimeout(resolve)); // let "stop" arrive
    if (stopped) break;
  }
  self.postMessage({ type: "done", stopped });
}

// The likeliest token, again and again, until the model ends its turn (which is not given out) or the limit is reached.
async function* greedy(promptIds, limit) {
  const { ort, session, decoder, ends } = model;
  const int64 = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
  const past = {}; // keys and values of every layer: what the graph gives out is what it takes in the next time
  const pairs = [];
  for (let layer = 0; layer < decoder.num_hidden_layers; layer++) {
    for (const part of ["key", "value"]) {
      const [input, output] = [decoder.inputs[`past_${part}_names`], decoder.outputs[`present_${part}_names`]]
        .map((name) => name.replace("%d", layer));
      pairs.push([input, output]);
      past[input] = new ort.Tensor("float32", new Float32Array(0), [1, decoder.num_key_value_heads, 0, decoder.head_size]);
    }
  }
  let ids = promptIds;
  for (let made = 0, total = promptIds.length; made < limit; made++, total++) {
    const results = await session.run({
      [decoder.inputs.input_ids]: int64(ids),
      [decoder.inputs.attention_mask]: int64(new Array(total).fill(1)),
      ...past,
    });
    for (const [input, output] of pairs) past[input] = results[output];
    const logits = results[decoder.outputs.logits];
    const next = argmax(logits.data.subarray(-logits.dims.at(-1))); // the last position's
    if (ends.includes(next)) return;
    yield next;
    ids = [next];
  }
}

function argmax(values) {
  let best = 0;
  for (let index = 1; index < values.length; index++) if (values[index] > values[best]) best = index;
  return best;
}
