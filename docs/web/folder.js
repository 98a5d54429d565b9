// The exported folder: its files, and what its metadata says of the graph. What cannot run here is refused.

import { AGAIN, PageError } from "./errors.js";

/**
 * Reads an exported folder.
 *
 * @param {string} url of the folder, without a slash at its end.
 * @param {object} contract names and versions, as build_web.py writes them into contract.js.
 * @param {(file: string, bytes: number, total: number) => void} onProgress
 * @param {typeof fetch} get
 * @returns {Promise<{metadata: object, tokenizer: object, model: Uint8Array, weights: ?Uint8Array}>}
 */
export async function readFolder(url, contract, onProgress = () => {}, get = (at) => fetch(at)) {
  const file = (name) => readFile(`${url}/${name}`, name, onProgress, get);
  const metadata = readMetadata(
    parse(await file(contract.metadataFile), contract.metadataFile),
    contract,
  );
  const tokenizer = parse(await file(contract.tokenizerFile), contract.tokenizerFile);
  const model = await file(contract.modelFile);
  // Small models keep their weights in the model's file.
  const weights = await file(contract.weightsFile).catch((error) => {
    if (error instanceof MissingFile) return null;
    throw error;
  });
  return { metadata, tokenizer, model, weights };
}

/** What the page needs of `mamba_export.json`; PageError where it is of another format, or cannot run here. */
export function readMetadata(content, contract) {
  try {
    return described(content, contract);
  } catch (error) {
    if (error instanceof PageError) throw error;
    throw new PageError(`${contract.metadataFile} is damaged (${error.message}): ${AGAIN}`);
  }
}

function described(content, contract) {
  const name = contract.metadataFile;
  if (content?.format !== contract.metadataFormat) {
    throw new PageError(
      `${name} is of format ${show(content?.format)}, and this page reads format ` +
        `${contract.metadataFormat}: ${AGAIN}, and build the page of the same version.`,
    );
  }
  const { tokens, dtype, inputs, states } = content;
  if (!tokens || !Array.isArray(states) || !Array.isArray(inputs)) {
    throw new PageError(`${name} describes no language model: this page writes text.`);
  }
  if (dtype !== "fp32") {
    throw new PageError(
      `The folder is in ${show(dtype)}, and this page runs fp32: ${AGAIN} and --dtype fp32.`,
    );
  }
  if (inputs.length !== 1) {
    throw new PageError(
      `The graph takes ${inputs.length} inputs, and this page feeds token ids alone.`,
    );
  }
  const layers = states.map((state) => layerOf(state, contract));
  if (layers.every((layer) => layer === null)) {
    throw new PageError(`${name} names no recurrent state: this page runs models that have one.`);
  }
  const ends = tokens.eos_token_id ?? [];
  return {
    input: inputs[0].name,
    logits: content.outputs[0].name,
    vocabSize: tokens.vocab_size,
    endTokens: new Set([ends].flat()),
    states: states.map((state, index) => ({
      ...state,
      shape: stateShape(state),
      layer: layers[index],
    })),
  };
}

function stateShape(state) {
  const shape = state.shape.map((size) => (size === "batch" ? 1 : size));
  if (state.grows !== null || !shape.every((size) => Number.isSafeInteger(size) && size > 0)) {
    throw new PageError(
      `State ${show(state.name)} grows with the text: this page carries states of a fixed size.`,
    );
  }
  if (state.dtype !== "fp32") {
    throw new PageError(
      `State ${show(state.name)} is in ${show(state.dtype)}: ${AGAIN} and --state-dtype fp32.`,
    );
  }
  return shape;
}

/** The layer whose recurrent state it is, or null: of a convolution. */
function layerOf(state, contract) {
  const [before, after] = contract.recurrentState.split("{layer}");
  if (!state.past.startsWith(before) || !state.past.endsWith(after)) return null;
  return Number(state.past.slice(before.length, state.past.length - after.length));
}

class MissingFile extends PageError {}

async function readFile(url, name, onProgress, get) {
  const response = await get(url).catch(() => {
    throw new PageError(`${url} cannot be fetched: is the server still running?`);
  });
  if (response.status === 404) {
    throw new MissingFile(
      `${url} is not there: run make web, which exports the model beside the page.`,
    );
  }
  if (!response.ok)
    throw new PageError(`${url} cannot be fetched: the server answers ${response.status}.`);
  const total = Number(response.headers.get("content-length")) || 0;
  const parts = [];
  let bytes = 0;
  for (const reader = response.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    bytes += value.length;
    onProgress(name, bytes, total);
  }
  const whole = new Uint8Array(bytes);
  parts.reduce((at, part) => (whole.set(part, at), at + part.length), 0);
  return whole;
}

function parse(bytes, name) {
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw new PageError(`${name} is not JSON: ${AGAIN}`);
  }
}

const show = (value) => JSON.stringify(value) ?? "none";
