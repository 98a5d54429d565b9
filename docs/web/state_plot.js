// One layer's recurrent state: as it is now, and how much each channel holds as the text goes by.

import { Picture, drawMatrix } from "./canvas.js";

const COLUMNS = 512; // runs of the model that are kept
const ROWS = 128; // groups of neighbouring channels

export class StatePlot {
  #states; // of the metadata, the recurrent ones
  #columns = []; // a run: for each layer its groups' root mean squares
  #state = null;
  #shown = 0;
  #now;
  #passed;

  constructor(now, passed) {
    this.#now = new Picture(now, (...to) => this.#drawNow(...to));
    this.#passed = new Picture(passed, (...to) => this.#drawPassed(...to));
  }

  /** Begins again, with the states of a model. */
  clear(states) {
    this.#states = states;
    this.#columns = [];
    this.#state = null;
    this.show(0);
  }

  /** Shows the layer at this place among `states`. */
  show(index) {
    this.#shown = index;
    this.#now.redraw();
    this.#passed.redraw();
  }

  add(state) {
    this.#state = state;
    this.#columns.push(
      this.#states.map(({ past, shape }) => groups(state[past].data, shape.at(-1))),
    );
    if (this.#columns.length > COLUMNS) this.#columns.shift();
    this.#now.redraw();
    this.#passed.redraw();
  }

  /** Channels from left to right, the d_state numbers of each from top to bottom. */
  #drawNow(context, width, height, colour) {
    const colours = ["negative", "ground", "positive"].map(colour);
    if (!this.#state) return;
    const { past, shape } = this.#states[this.#shown];
    const values = this.#state[past].data;
    const dState = shape.at(-1);
    const largest = quantile(values, 0.995) || 1;
    const at = (row, column) => squash(values[column * dState + row] / largest);
    drawMatrix(context, { x: 0, y: 0, width, height }, dState, values.length / dState, at, colours);
  }

  /** Runs from left to right, groups of channels from top to bottom, each beside its own average. */
  #drawPassed(context, width, height, colour) {
    const colours = ["negative", "ground", "positive"].map(colour);
    if (this.#columns.length === 0) return;
    const columns = this.#columns.map((layers) => layers[this.#shown]);
    const rows = columns[0].map((_, row) => average(columns, row));
    const largest = rows.map((mean, row) =>
      columns.reduce((most, one) => Math.max(most, Math.abs(one[row] - mean)), 0),
    );
    const at = (row, column) =>
      column < columns.length
        ? squash((columns[column][row] - rows[row]) / (largest[row] || 1))
        : 0;
    drawMatrix(
      context,
      { x: 0, y: 0, width, height },
      rows.length,
      Math.max(64, columns.length),
      at,
      colours,
    );
  }
}

function average(columns, row) {
  return columns.reduce((sum, one) => sum + one[row], 0) / columns.length;
}

/** Root mean squares of ROWS groups of channels; `values` are (channels, dState). */
function groups(values, dState) {
  const channels = values.length / dState;
  const rows = Math.min(ROWS, channels);
  const found = new Float32Array(rows);
  for (let row = 0; row < rows; row++) {
    const from = Math.floor((row * channels) / rows) * dState;
    const to = Math.floor(((row + 1) * channels) / rows) * dState;
    let sum = 0;
    for (let i = from; i < to; i++) sum += values[i] * values[i];
    found[row] = Math.sqrt(sum / (to - from));
  }
  return found;
}

/** So that small values are seen beside large ones. */
const squash = (value) => Math.sign(value) * Math.sqrt(Math.abs(value));

/** Of absolute values: of some thousand of them, evenly taken. */
function quantile(values, part) {
  const every = Math.ceil(values.length / 4096);
  const some = values
    .filter((_, index) => index % every === 0)
    .map(Math.abs)
    .sort();
  return some[Math.floor(part * (some.length - 1))];
}
