// Reads the text into the state as it is typed, and writes on from there. One run of the model at a time.

import { ByteDecoder, encode } from "./bytes.js";
import { Points } from "./points.js";
import { greedy } from "./sampler.js";

const PART = 16; // characters that one run reads, so that the page stays quick
const LOOKAHEAD = 48; // tokens of the preview

/**
 * A text and the state after it.
 *
 * `events` has the functions
 *   ran({tokens, count, tokensRead, ms, state, isWriting}): a run of the model, which took `count` tokens;
 *     `state` is that after `tokens`; `tokensRead` is how many were read of what was typed;
 *   text(shown): the text grew by what was written;
 *   preview(text): how the model would go on;
 *   finished(reason), failed(error).
 */
export class Writer {
  #model;
  #events;
  #points;
  #at; // {state, logits, tokens, length}: what was read
  #shown = ""; // the text that #at stands for
  #wanted = "";
  #isEdited = false;
  #writing = null; // {choose, left, decoder}
  #preview = null; // {from, at, text, decoder, left}
  #isBusy = false;
  #isAsked = false;
  #tokensRead = 0; // of the typed text, with those that an edit made to be read again

  constructor(model, events) {
    this.#model = model;
    this.#events = events;
    this.#at = { state: model.start(), logits: null, tokens: 0, length: 0 };
    this.#points = new Points(this.#at);
  }

  /** The text is now this: what is new of it is read. */
  edit(text) {
    this.#wanted = text;
    this.#isEdited = true;
    this.#preview = null;
    this.#events.preview("");
    this.#work();
  }

  /** Writes `count` tokens at most, chosen by `choose` from the logits. */
  write(choose, count) {
    this.#preview = null;
    this.#events.preview("");
    this.#writing = { choose, left: count, decoder: new ByteDecoder() };
    this.#work();
  }

  stop() {
    if (this.#writing) this.#writing.left = 0;
  }

  /** Takes the preview into the text: its state is there already. */
  take() {
    const preview = this.#preview;
    if (!preview || preview.from !== this.#at || !preview.text) return;
    this.#grow(preview.text + preview.decoder.finish());
    this.#at = { ...preview.at, length: this.#shown.length };
    this.#points.add(this.#at);
    this.#preview = null;
    this.#events.preview("");
    this.#work();
  }

  async #work() {
    this.#isAsked = true;
    if (this.#isBusy) return;
    this.#isBusy = true;
    try {
      // What was asked while the last step found nothing to do must not be left.
      while (this.#isAsked) {
        this.#isAsked = false;
        while (await this.#step()) await nextTask();
      }
    } catch (error) {
      this.#writing = this.#preview = null;
      this.#events.failed(error);
    } finally {
      this.#isBusy = false;
    }
  }

  /** One run; false where there is nothing to do. */
  async #step() {
    if (this.#isEdited) this.#goBack();
    if (this.#shown.length < this.#wanted.length) await this.#read();
    else if (this.#writing) await this.#write();
    else return this.#lookAhead();
    return true;
  }

  #goBack() {
    this.#isEdited = false;
    let length = 0;
    if (this.#wanted.startsWith(this.#shown)) return;
    while (this.#wanted[length] === this.#shown[length]) length++;
    this.#at = this.#points.backTo(length);
    this.#shown = this.#shown.slice(0, this.#at.length);
  }

  async #read() {
    const from = this.#shown.length;
    const last = this.#wanted.charCodeAt(from + PART - 1);
    const isHalf = last >= 0xd800 && last < 0xdc00; // the other half of the character follows
    const part = this.#wanted.slice(from, from + PART + (isHalf ? 1 : 0));
    const tokens = encode(part);
    const at = await this.#run(this.#at, tokens, false);
    this.#shown += part;
    this.#at = { ...at, length: this.#shown.length };
    this.#points.add(this.#at);
  }

  async #write() {
    const writing = this.#writing;
    const token = writing.left > 0 && this.#at.logits ? writing.choose(this.#at.logits) : null;
    const isEnd = this.#model.metadata.endTokens.has(token);
    if (token === null || isEnd) {
      this.#writing = null;
      this.#grow(writing.decoder.finish());
      this.#at = { ...this.#at, length: this.#shown.length };
      this.#points.add(this.#at);
      this.#events.finished(isEnd ? "end of text" : "length");
      return;
    }
    const at = await this.#run(this.#at, [token], true);
    this.#grow(writing.decoder.push(token));
    this.#at = { ...at, length: this.#shown.length };
    if (writing.decoder.isWhole) this.#points.add(this.#at);
    if (writing.left > 0) writing.left--; // stop() may have come in between
  }

  /** One token of the preview, on a branch of the state; false when it is there. */
  async #lookAhead() {
    if (!this.#at.logits) return false;
    this.#preview ??= {
      from: this.#at,
      at: this.#at,
      text: "",
      decoder: new ByteDecoder(),
      left: LOOKAHEAD,
    };
    const preview = this.#preview;
    if (preview.left-- <= 0) return false;
    const token = greedy(preview.at.logits);
    if (this.#model.metadata.endTokens.has(token)) return false;
    const next = await this.#model.advance(preview.at.state, [token]);
    if (this.#preview !== preview) return true; // the text was edited meanwhile
    preview.at = { ...next, tokens: preview.at.tokens + 1 };
    preview.text += preview.decoder.push(token);
    this.#events.preview(preview.text);
    return true;
  }

  async #run(from, tokens, isWriting) {
    const begun = performance.now();
    const { state, logits } = await this.#model.advance(from.state, tokens);
    const ms = performance.now() - begun;
    const all = from.tokens + tokens.length;
    if (!isWriting) this.#tokensRead += tokens.length;
    this.#events.ran({
      tokens: all,
      count: tokens.length,
      tokensRead: this.#tokensRead,
      ms,
      state,
      isWriting,
    });
    return { state, logits, tokens: all };
  }

  #grow(piece) {
    if (!piece) return;
    this.#shown += piece;
    this.#wanted = this.#shown;
    this.#events.text(this.#shown);
  }
}

/** Lets the browser draw and listen; setTimeout would wait 4 ms. */
function nextTask() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => (port1.close(), resolve());
    port2.postMessage(null);
  });
}
