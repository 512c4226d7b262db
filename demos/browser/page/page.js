// What the learner sees: the worker's messages as text, in English or Korean.
//
// The address may say more: ?lang=ko for the language, ?threads=1 for the number of threads.

const at = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const texts = await (await fetch("texts.json")).json();
const state = { lang: firstLanguage(), status: ["load"], error: null, figures: null, ready: false, busy: false };
const worker = new Worker("worker.js", { type: "module" });

function firstLanguage() {
  const wanted = query.get("lang") ?? navigator.language.slice(0, 2);
  return wanted === "ko" ? "ko" : "en";
}

function words(key, values = {}) {
  return texts[key][state.lang].replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

function draw() {
  document.documentElement.lang = state.lang;
  document.title = words("title");
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = words(element.dataset.text);
  for (const button of document.querySelectorAll("[data-lang]")) {
    button.setAttribute("aria-pressed", String(button.dataset.lang === state.lang));
  }
  at("status").textContent = state.error && !state.ready ? "" : words(...state.status);
  at("progress").hidden = state.ready || state.error !== null;
  at("error").hidden = state.error === null;
  if (state.error) at("error").textContent = words(`error.${state.error.kind}`, state.error);
  at("figures").textContent = state.figures ? words(...state.figures) : "";
  at("ask").disabled = !state.ready || state.busy;
  at("stop").disabled = !state.busy;
}

const mega = (bytes) => (bytes / 1e6).toFixed(1);

const on = {
  progress({ file, got, size }) {
    state.status = ["fetching", { file, got: mega(got), size: mega(size) }];
    at("progress").value = got / size;
  },
  start() {
    state.status = ["starting"];
    at("progress").removeAttribute("value"); // how long this takes is not known
  },
  ready({ seconds, threads }) {
    state.status = ["ready", { seconds: seconds.toFixed(1), threads }];
    state.ready = true;
  },
  prompt({ rendered, ids }) {
    at("result").hidden = false;
    at("rendered").textContent = rendered;
    at("prompt-ids").textContent = ids.join(" ");
    state.figures = ["reading", { count: ids.length }];
  },
  token({ text, ids, first, rate }) {
    at("answer").textContent = text.trimStart();
    at("answer-ids").textContent = ids.join(" ");
    state.figures = ["figures", { first: first.toFixed(2), rate: rate.toFixed(1), count: ids.length }];
  },
  done() {
    state.busy = false;
  },
  error({ kind, detail }) {
    state.error = { kind, detail };
    state.busy = false;
  },
};

worker.onmessage = ({ data }) => {
  on[data.type](data);
  draw();
};
worker.onerror = (event) => {
  on.error({ kind: "other", detail: event.message ?? "worker.js" });
  draw();
};

for (const button of document.querySelectorAll("[data-lang]")) {
  button.onclick = () => {
    state.lang = button.dataset.lang;
    query.set("lang", state.lang);
    history.replaceState(null, "", `?${query}`);
    draw();
  };
}

at("stop").onclick = () => worker.postMessage({ type: "stop" });
at("form").onsubmit = (event) => {
  event.preventDefault();
  if (!state.ready || state.busy) return;
  state.busy = true;
  state.error = state.figures = null;
  for (const id of ["answer", "rendered", "prompt-ids", "answer-ids"]) at(id).textContent = "";
  at("result").hidden = true;
  worker.postMessage({ type: "ask", limit: at("limit").valueAsNumber, messages: [{ role: "user", content: at("prompt").value }] });
  draw();
};

at("prompt").value = words("example");
draw();
const threads = Number(query.get("threads")) || Math.min(navigator.hardwareConcurrency || 1, 8);
worker.postMessage({ type: "load", threads });
