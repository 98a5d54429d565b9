// The exported graph in ONNX Runtime: tokens and a state in, logits and the next state out.

import { AGAIN, PageError } from "./errors.js";

/** A language model. A state is a value: what was computed from it leaves it as it is. */
export class Model {
  #ort;
  #session;

  constructor(ort, session, metadata) {
    this.#ort = ort;
    this.#session = session;
    this.metadata = metadata;
  }

  /**
   * @param ort the module onnxruntime-web.
   * @param folder what readFolder returns.
   * @param {string} weightsFile the name that the graph has for its file of weights.
   */
  static async load(ort, { metadata, model, weights }, weightsFile) {
    const externalData = weights ? [{ path: weightsFile, data: weights }] : [];
    const session = await ort.InferenceSession.create(model, { externalData }).catch((error) => {
      throw new PageError(`ONNX Runtime refuses the exported model (${error.message}): ${AGAIN}`);
    });
    checkNames("input", session.inputNames, [metadata.input, ...names(metadata, "past")]);
    checkNames("output", session.outputNames, [metadata.logits, ...names(metadata, "present")]);
    return new Model(ort, session, metadata);
  }

  /** The state before any token. */
  start() {
    const tensor = ({ shape, start }) => {
      const values = new Float32Array(shape.reduce((product, size) => product * size, 1)).fill(
        start,
      );
      return new this.#ort.Tensor("float32", values, shape);
    };
    return Object.fromEntries(this.metadata.states.map((state) => [state.past, tensor(state)]));
  }

  /** Bytes of a state, the same however long the text. */
  get stateBytes() {
    const size = ({ shape }) => 4 * shape.reduce((product, one) => product * one, 1);
    return this.metadata.states.reduce((sum, state) => sum + size(state), 0);
  }

  /**
   * Reads tokens, at least one.
   *
   * @returns {Promise<{state: object, logits: Float32Array}>} logits (vocabSize) of what follows.
   */
  async advance(state, tokens) {
    const { input, logits, vocabSize, states } = this.metadata;
    const ids = new this.#ort.Tensor("int64", BigInt64Array.from(tokens, BigInt), [
      1,
      tokens.length,
    ]);
    const outputs = await this.#session.run({ ...state, [input]: ids });
    return {
      state: Object.fromEntries(states.map(({ past, present }) => [past, outputs[present]])),
      logits: outputs[logits].data.slice(-vocabSize),
    };
  }

  release() {
    return this.#session.release();
  }
}

const names = (metadata, which) => metadata.states.map((state) => state[which]);

/** A graph that was swapped for another must not be fed by the metadata's names. */
function checkNames(kind, found, described) {
  const [other] = [
    ...found.filter((name) => !described.includes(name)),
    ...described.filter((name) => !found.includes(name)),
  ];
  if (other !== undefined) {
    throw new PageError(`The graph is not the metadata's (${kind} ${other} differs): ${AGAIN}`);
  }
}
