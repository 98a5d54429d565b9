// Text to tokens and back, of a model of bytes: a token is a byte.

import { PageError } from "./errors.js";

/** Throws PageError unless a tokenizer.json is that of a model of bytes, with byte i as token i. */
export function checkByteTokenizer(tokenizer, vocabSize) {
  const { vocab, merges } = tokenizer?.model ?? {};
  const characters = byteCharacters();
  const isOfBytes =
    vocabSize === 256 &&
    merges?.length === 0 &&
    characters.every((character, byte) => vocab?.[character] === byte);
  if (!isOfBytes) {
    throw new PageError(
      "The folder's tokenizer is not one of bytes: this page reads and writes bytes alone.",
    );
  }
}

/** GPT-2's character of each byte: printable Latin-1 bytes are themselves, the others follow from U+0100 on. */
function byteCharacters() {
  let other = 0x100;
  const isPrintable = (byte) => (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
  return Array.from({ length: 256 }, (_, byte) =>
    String.fromCharCode(isPrintable(byte) ? byte : other++),
  );
}

/** The UTF-8 bytes of a text. */
export function encode(text) {
  return new TextEncoder().encode(text);
}

/** Bytes to text, one at a time; characters of several bytes come when they are whole. */
export class ByteDecoder {
  #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  /** Whether no byte waits for others of its character. */
  isWhole = true;

  push(byte) {
    const text = this.#decoder.decode(Uint8Array.of(byte), { stream: true });
    this.isWhole = text !== "" && !text.endsWith("\ufffd"); // a byte that ends a character leaves none behind
    return text;
  }

  /** The rest: U+FFFD for a character that was begun. */
  finish() {
    this.isWhole = true;
    return this.#decoder.decode();
  }
}
