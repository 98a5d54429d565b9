// Time a token against the tokens before it: flat, where the cost does not depend on the text's length.

import { Picture } from "./canvas.js";

const MOST_BINS = 240;

/** Runs in bins of equally many tokens, joined in pairs when there are too many: its size is bounded. */
export class TimeBins {
  width = 1;
  /** A bin: {ms, count} of written tokens and {ms, count} of those read. */
  bins = [];

  add({ tokens, count, ms, isWriting }) {
    while (tokens > this.width * MOST_BINS) this.#join();
    const index = Math.floor((tokens - 1) / this.width);
    const bin = (this.bins[index] ??= { written: { ms: 0, count: 0 }, read: { ms: 0, count: 0 } });
    const kind = isWriting ? bin.written : bin.read;
    kind.ms += ms;
    kind.count += count;
  }

  #join() {
    const sum = (a, b) => ({
      ms: (a?.ms ?? 0) + (b?.ms ?? 0),
      count: (a?.count ?? 0) + (b?.count ?? 0),
    });
    const pairs = Math.ceil(this.bins.length / 2);
    this.bins = Array.from({ length: pairs }, (_, i) => {
      const [a, b] = [this.bins[2 * i], this.bins[2 * i + 1]];
      return { written: sum(a?.written, b?.written), read: sum(a?.read, b?.read) };
    });
    this.width *= 2;
  }

  /** Points (tokens, ms a token) of a kind, "written" or "read". */
  points(kind) {
    return this.bins.flatMap((bin, index) =>
      bin?.[kind].count ? [[(index + 0.5) * this.width, bin[kind].ms / bin[kind].count]] : [],
    );
  }
}

export class TimePlot {
  #bins = new TimeBins();
  #picture;

  constructor(canvas) {
    this.#picture = new Picture(canvas, (...to) => this.#draw(...to));
  }

  add(run) {
    this.#bins.add(run);
    this.#picture.redraw();
  }

  clear() {
    this.#bins = new TimeBins();
    this.#picture.redraw();
  }

  #draw(context, width, height, colour) {
    const box = { left: 44, right: width - 8, top: 10, bottom: height - 34 };
    const kinds = ["read", "written"].map((kind) => [kind, this.#bins.points(kind)]);
    const all = kinds.flatMap(([, points]) => points.map(([, ms]) => ms)).sort((a, b) => a - b);
    // A pause of the machine's must not flatten all else: the axis holds 97 of 100 points.
    const most = niceAbove(1.3 * (all[Math.floor(0.97 * (all.length - 1))] ?? 1));
    const tokens = Math.max(16, this.#bins.width * this.#bins.bins.length);
    const x = (at) => box.left + ((box.right - box.left) * at) / tokens;
    const y = (ms) => box.bottom - ((box.bottom - box.top) * Math.min(ms, most)) / most;

    context.fillStyle = context.strokeStyle = colour("muted");
    context.textAlign = "right";
    for (const part of [0, 0.5, 1]) {
      context.globalAlpha = 0.4;
      context.fillRect(box.left, y(most * part), box.right - box.left, 1);
      context.globalAlpha = 1;
      context.fillText(`${+(most * part).toPrecision(3)}`, box.left - 6, y(most * part) + 4);
    }
    context.fillText(tokens.toLocaleString("en"), box.right, box.bottom + 15);
    context.textAlign = "left";
    context.fillText("0", box.left, box.bottom + 15);
    context.fillText("ms a token, against tokens before it", box.left, box.bottom + 30);
    for (const [kind, points] of kinds) {
      context.fillStyle = colour(kind);
      for (const [at, ms] of points) context.fillRect(x(at) - 1.5, y(ms) - 1.5, 3, 3);
    }
  }
}

/** The next of 1, 2, 5, 10, 20, ... from a number on. */
function niceAbove(number) {
  const power = 10 ** Math.floor(Math.log10(number));
  return power * [1, 2, 5, 10].find((step) => step * power >= number);
}
