// The page's modules in plain Node, without a browser or a model: `node --test tests/web`.

import assert from "node:assert/strict";
import { test } from "node:test";

import { ByteDecoder, checkByteTokenizer, encode } from "../../docs/web/bytes.js";
import { checkBrowser, oneLine, PageError } from "../../docs/web/errors.js";
import { readFolder, readMetadata } from "../../docs/web/folder.js";
import { Model } from "../../docs/web/model.js";
import { Points } from "../../docs/web/points.js";
import { greedy, sampler } from "../../docs/web/sampler.js";
import { TimeBins } from "../../docs/web/time_plot.js";
import { Writer } from "../../docs/web/writer.js";

const TEXT = "Größe 漢字 😀 e\u0301 \ufeff\u0000.";

/** A model whose state is the list of all that it read, and which goes on with the next byte of a text. */
class FakeModel {
  runs = [];
  metadata = { endTokens: new Set([0]) };

  constructor(text = "") {
    this.bytes = encode(text);
  }

  start() {
    return [];
  }

  async advance(state, tokens) {
    assert.ok(tokens.length > 0);
    this.runs.push([...tokens]);
    const next = [...state, ...tokens];
    const logits = new Float32Array(256);
    logits[this.bytes[next.length] ?? 0] = 1;
    return { state: next, logits };
  }
}

/** A writer, what it said, and promises of its next end or preview. */
function startWriter(model) {
  const seen = { runs: [], text: "", previews: [] };
  const waiting = [];
  const wake = (event) =>
    waiting
      .splice(0)
      .forEach(([wanted, done]) => (wanted === event ? done() : waiting.push([wanted, done])));
  seen.next = (event) => new Promise((done) => waiting.push([event, done]));
  const writer = new Writer(model, {
    ran: (run) => (seen.runs.push(run), wake("ran")),
    text: (text) => (seen.text = text),
    preview: (text) => (seen.previews.push(text), wake("preview")),
    finished: (reason) => ((seen.reason = reason), wake("finished")),
    failed: (error) => {
      throw error;
    },
  });
  return { writer, seen };
}

const bytesOf = (text) => [...encode(text)];
const until = async (condition) => {
  while (!condition()) await new Promise((done) => setTimeout(done, 1));
};

test("bytes come back as the text, in whole characters", () => {
  const decoder = new ByteDecoder();
  const pieces = bytesOf(TEXT).map((byte) => decoder.push(byte));
  assert.equal(pieces.join("") + decoder.finish(), TEXT);
  assert.ok(pieces.every((piece) => !piece.includes("\ufffd")));
});

test("a character that was begun is not whole, and one U+FFFD at the end", () => {
  const decoder = new ByteDecoder();
  assert.equal(decoder.push(0xe6), "");
  assert.equal(decoder.isWhole, false);
  assert.equal(decoder.finish(), "\ufffd");
  assert.equal(decoder.isWhole, true);
});

test("what is typed is read once, in parts, and written on from", async () => {
  const story = `${TEXT.repeat(5)} and so on`.replaceAll("\0", "");
  const model = new FakeModel(story);
  const { writer, seen } = startWriter(model);
  const typed = TEXT.repeat(5).replaceAll("\0", "");
  for (let end = 1; end <= typed.length; end += 7) writer.edit(typed.slice(0, end));
  writer.edit(typed);
  writer.write(greedy, 3);
  await seen.next("finished");
  assert.equal(seen.text, `${typed} an`);
  assert.deepEqual(seen.runs.at(-1).state, bytesOf(`${typed} an`));
  assert.equal(seen.runs.at(-1).tokensRead, bytesOf(typed).length);
  assert.equal(seen.reason, "length");
});

test("an edit reads what follows the nearest kept state alone", async () => {
  const { writer, seen } = startWriter(new FakeModel());
  const long = "a".repeat(2000);
  writer.edit(long);
  await until(() => seen.runs.at(-1)?.tokens === 2000);
  writer.edit(`${long.slice(0, 1990)}b`);
  await until(() => seen.runs.at(-1).tokens === 1991);
  assert.deepEqual(seen.runs.at(-1).state, bytesOf(`${long.slice(0, 1990)}b`));
  assert.ok(seen.runs.at(-1).tokensRead <= 2000 + 16);
  writer.edit("c");
  await until(() => seen.runs.at(-1).tokens === 1);
  assert.deepEqual(seen.runs.at(-1).state, bytesOf("c"));
});

test("the end of the text ends the writing, and is not read", async () => {
  const { writer, seen } = startWriter(new FakeModel("In the end"));
  writer.edit("In ");
  writer.write(greedy, Infinity);
  await seen.next("finished");
  assert.equal(seen.text, "In the end");
  assert.equal(seen.reason, "end of text");
});

test("stop ends the writing", async () => {
  const { writer, seen } = startWriter(new FakeModel("x".repeat(100000)));
  writer.edit("x");
  writer.write(greedy, Infinity);
  await until(() => seen.runs.length > 20);
  writer.stop();
  await seen.next("finished");
  assert.ok(seen.text.length < 1000);
});

test("a preview that is taken is not read again", async () => {
  const model = new FakeModel("In the beginning was");
  const { writer, seen } = startWriter(model);
  writer.edit("In the");
  await until(() => seen.previews.at(-1) === " beginning was");
  const before = model.runs.length;
  writer.take();
  assert.equal(seen.text, "In the beginning was");
  const end = seen.next("finished");
  writer.write(greedy, 5);
  await end;
  assert.equal(model.runs.length, before); // the end of the text follows
});

test("points are bounded, and lead back to before an edit", () => {
  const points = new Points({ length: 0 });
  for (let length = 1; length <= 20000; length++) points.add({ length });
  assert.equal(points.backTo(19999).length, 19999);
  const middle = points.backTo(10000).length;
  assert.ok(middle > 9000 && middle <= 10000, `${middle}`);
  assert.equal(points.backTo(10).length, 0);
});

test("greedy takes the first of the likeliest, and no NaN", () => {
  assert.equal(greedy(Float32Array.of(0, 2, 2, 1)), 1);
  assert.throws(() => greedy(Float32Array.of(NaN, 1)), PageError);
  assert.throws(() => greedy(Float32Array.of(1, Infinity)), PageError);
});

test("draws follow the softmax at the temperature, equally for equal seeds", () => {
  const logits = Float32Array.of(0, 1, 2, -Infinity);
  const draws = (seed) => {
    const choose = sampler(0.5, seed);
    return Array.from({ length: 20000 }, () => choose(logits));
  };
  const found = draws(3);
  assert.deepEqual(found, draws(3));
  assert.notDeepEqual(found, draws(4));
  const weights = [0, 1, 2].map((logit) => Math.exp(logit / 0.5));
  const total = weights.reduce((a, b) => a + b);
  weights.forEach((weight, token) => {
    const part = found.filter((one) => one === token).length / found.length;
    assert.ok(Math.abs(part - weight / total) < 0.015, `${token}: ${part}`);
  });
  assert.ok(!found.includes(3));
});

test("temperatures and seeds out of range are named", () => {
  for (const temperature of [-1, NaN, Infinity])
    assert.throws(() => sampler(temperature, 0), /^PageError|Temperature/);
  for (const seed of [-1, 0.5, NaN, 2 ** 32]) assert.throws(() => sampler(1, seed), /Seed/);
});

test("times are kept in a bounded number of bins, and none is lost", () => {
  const times = new TimeBins();
  for (let tokens = 1; tokens <= 100000; tokens++)
    times.add({ tokens, count: 1, ms: 2, isWriting: tokens > 50000 });
  assert.ok(times.bins.length <= 240);
  assert.ok([...times.points("written"), ...times.points("read")].every(([, ms]) => ms === 2));
  const count = times.bins.reduce((sum, { written, read }) => sum + written.count + read.count, 0);
  assert.equal(count, 100000);
});

test("a browser without WebAssembly SIMD is told in one line", () => {
  checkBrowser();
  for (const absent of [null, { validate: () => false }]) {
    assert.throws(
      () => checkBrowser(absent),
      (error) => /WebAssembly SIMD/.test(oneLine(error)) || assert.fail(error),
    );
  }
});

/** Every content that differs from the given one in one value, which is another or missing. */
function* changed(content) {
  for (const key of Object.keys(content)) {
    for (const other of [undefined, null, -1, 0.5, 2 ** 60, "", "batch", [], {}, true]) {
      yield Array.isArray(content) ? content.with(key, other) : { ...content, [key]: other };
    }
    if (typeof content[key] !== "object" || content[key] === null) continue;
    for (const inner of changed(content[key])) {
      yield Array.isArray(content) ? content.with(key, inner) : { ...content, [key]: inner };
    }
  }
}

test("metadata that the page cannot run is named", () => {
  const contract = {
    metadataFile: "m.json",
    metadataFormat: 2,
    recurrentState: "past.{layer}.recurrent",
  };
  const state = {
    name: "s",
    past: "past.3.recurrent",
    present: "p",
    dtype: "fp32",
    shape: ["batch", 4, 2],
    start: 0,
    grows: null,
  };
  const good = {
    format: 2,
    dtype: "fp32",
    inputs: [{ name: "input_ids" }],
    outputs: [{ name: "logits" }],
    states: [state],
    tokens: { vocab_size: 256, eos_token_id: [0, 7] },
  };
  const read = readMetadata(good, contract);
  assert.deepEqual(read.states[0].shape, [1, 4, 2]);
  assert.equal(read.states[0].layer, 3);
  assert.deepEqual([...read.endTokens], [0, 7]);
  for (const [change, line] of [
    [{ format: 3 }, /m.json is of format 3, and this page reads format 2/],
    [{ tokens: null }, /no language model/],
    [{ states: [{ ...state, past: "past.3.conv" }] }, /no recurrent state/],
    [{ dtype: "bf16" }, /"bf16"/],
    [{ inputs: [...good.inputs, { name: "positions" }] }, /2 inputs/],
    [{ states: [{ ...state, grows: 1 }] }, /"s" grows/],
    [{ states: [{ ...state, dtype: "fp16" }] }, /"s" is in "fp16"/],
  ]) {
    assert.throws(
      () => readMetadata({ ...good, ...change }, contract),
      (error) => error instanceof PageError && line.test(error.message),
    );
  }
  for (const other of changed(good)) {
    try {
      readMetadata(other, contract);
    } catch (error) {
      assert.ok(error instanceof PageError, error);
    }
  }
  for (const other of [null, [], "text"])
    assert.throws(() => readMetadata(other, contract), PageError);
});

test("a graph that is not the metadata's, or that ONNX Runtime refuses, is named", async () => {
  const metadata = {
    input: "ids",
    logits: "logits",
    states: [{ past: "past", present: "present" }],
  };
  const runtime = (create) => ({ InferenceSession: { create } });
  const session = { inputNames: ["ids", "past"], outputNames: ["logits", "present"] };
  await Model.load(
    runtime(async () => session),
    { metadata },
    "data",
  );
  const other = { ...session, outputNames: ["logits", "later"] };
  const swapped = Model.load(
    runtime(async () => other),
    { metadata },
    "data",
  );
  await assert.rejects(swapped, /output later differs/);
  const refused = Model.load(
    runtime(async () => assert.fail("bad node")),
    { metadata },
    "data",
  );
  await assert.rejects(refused, /refuses the exported model \(bad node\)/);
});

test("a tokenizer that is not of bytes is named", () => {
  assert.throws(
    () => checkByteTokenizer({ model: { vocab: { a: 0 }, merges: [] } }, 256),
    /tokenizer/,
  );
  assert.throws(() => checkByteTokenizer(null, 256), PageError);
});

test("a folder that is missing is named", async () => {
  const contract = { metadataFile: "m.json" };
  const missing = async () => new Response("", { status: 404 });
  await assert.rejects(readFolder("kjv", contract, undefined, missing), /kjv\/m.json is not there/);
  const noJson = async () => new Response("{");
  await assert.rejects(readFolder("kjv", contract, undefined, noJson), /m.json is not JSON/);
});
