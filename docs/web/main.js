// The page: what its controls do, and what it shows of a run.

import { checkByteTokenizer } from "./bytes.js";
import { checkBrowser, oneLine, PageError } from "./errors.js";
import { readFolder } from "./folder.js";
import { Model } from "./model.js";
import { sampler } from "./sampler.js";
import { StatePlot } from "./state_plot.js";
import { TimePlot } from "./time_plot.js";
import { Writer } from "./writer.js";

const at = (id) => document.getElementById(id);
const timePlot = new TimePlot(at("time"), at("quickest"));
const statePlot = new StatePlot(at("state-now"), at("state-passed"));
const SPEED_OVER = 1000; // ms of runs
const TEXT_EVERY = 100; // ms: a long text takes the browser a while to lay out

let contract, ort, model, writer;
let recent = []; // runs of the last second of computing
let pendingText = null;

function say(text, isError = false) {
  at("status").textContent = text;
  at("status").classList.toggle("error", isError);
}

async function open(name) {
  enable(false);
  say(`Loading ${name}`);
  const progress = (file, bytes, total) => {
    const all = total ? ` of ${megabytes(total)}` : "";
    say(`Loading ${file}: ${megabytes(bytes)}${all}`);
  };
  const folder = await readFolder(name, contract, progress);
  checkByteTokenizer(folder.tokenizer, folder.metadata.vocabSize);
  say("ONNX Runtime makes the session");
  await writer?.close();
  await model?.release();
  model = null;
  model = await Model.load(ort, folder, contract.weightsFile);
  await begin();
  say("Ready: type, and it reads; press Write, and it goes on.");
  enable(true);
}

async function begin() {
  await writer?.close();
  const layers = model.metadata.states.filter(({ layer }) => layer !== null);
  at("layer").replaceChildren(
    ...layers.map(({ layer }, index) => new Option(`layer ${layer}`, index)),
  );
  const [channels, dState] = [layers[0].shape.slice(1, -1).join(" x "), layers[0].shape.at(-1)];
  at("state-shape").textContent = `${channels} channels x ${dState}`;
  at("state-size").textContent = `${Math.round(model.stateBytes / 1024)} KiB`;
  statePlot.clear(layers);
  timePlot.clear();
  recent = [];
  for (const id of ["speed", "tokens", "read"]) at(id).textContent = "0";
  writer = new Writer(model, { ran, text, preview, finished, failed });
  writer.edit(at("text").value);
}

function ran(run) {
  timePlot.add(run);
  statePlot.add(run.state);
  recent.push(run);
  let ms = recent.reduce((sum, one) => sum + one.ms, 0);
  while (ms - recent[0].ms > SPEED_OVER) ms -= recent.shift().ms;
  const count = recent.reduce((sum, one) => sum + one.count, 0);
  at("speed").textContent = ms > 0 ? Math.round((1000 * count) / ms).toLocaleString("en") : "";
  at("tokens").textContent = run.tokens.toLocaleString("en");
  at("read").textContent = run.tokensRead.toLocaleString("en");
}

function text(shown) {
  if (pendingText === null) setTimeout(showText, TEXT_EVERY);
  pendingText = shown;
}

function showText() {
  if (pendingText === null) return;
  const box = at("text");
  const isAtEnd = box.scrollTop + box.clientHeight > box.scrollHeight - 40;
  box.value = pendingText;
  if (isAtEnd) box.scrollTop = box.scrollHeight;
  pendingText = null;
}

function preview(text) {
  at("preview").textContent = text;
  at("take").disabled = !text;
}

function finished(reason) {
  showText();
  enable(true);
  say(
    reason === "end of text"
      ? "The model ended the text."
      : "Ready: type, and it reads; press Write, and it goes on.",
  );
}

function failed(error) {
  showText();
  enable(Boolean(model));
  say(oneLine(error), true);
}

function write() {
  if (at("write").disabled) return;
  try {
    const count = at("count").valueAsNumber;
    const choose = sampler(at("temperature").valueAsNumber, at("seed").valueAsNumber);
    enable(false);
    at("stop").disabled = false;
    say("Writing");
    writer.write(choose, Number.isInteger(count) && count > 0 ? count : Infinity);
  } catch (error) {
    failed(error);
  }
}

function enable(isReady) {
  at("text").readOnly = !isReady;
  at("write").disabled = !isReady || at("text").value === "";
  at("clear").disabled = at("model").disabled = !isReady;
  at("stop").disabled = true;
}

/** What `make web` puts beside these sources. */
async function builtModules() {
  try {
    return [(await import("./contract.js")).default, await import("./ort/ort.wasm.min.mjs")];
  } catch {
    throw new PageError("The page is not built: run make web, and serve build/web.");
  }
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

function listen() {
  at("text").addEventListener("input", () => {
    pendingText = null;
    at("write").disabled = at("text").value === "";
    writer.edit(at("text").value);
  });
  at("text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) write();
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && writer?.stop());
  at("write").addEventListener("click", write);
  at("stop").addEventListener("click", () => writer.stop());
  at("take").addEventListener("click", () => {
    writer.take();
    showText();
  });
  at("clear").addEventListener("click", () => {
    at("text").value = "";
    enable(true);
    begin().catch(failed);
  });
  at("layer").addEventListener("change", () => statePlot.show(Number(at("layer").value)));
  at("model").addEventListener("change", () => open(at("model").value).catch(failed));
}

try {
  checkBrowser();
  [contract, ort] = await builtModules();
  ort.env.wasm.numThreads = 1; // more would need headers that a plain server does not send
  at("model").replaceChildren(...contract.models.map((name) => new Option(name, name)));
  const asked = new URLSearchParams(location.search).get("model");
  if (contract.models.includes(asked)) at("model").value = asked;
  listen();
  await open(at("model").value);
} catch (error) {
  failed(error);
}
