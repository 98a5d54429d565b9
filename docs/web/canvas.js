// What the plots share: a canvas of the screen's own pixels, drawn at most once a frame, in the page's colours.

const MOST_OFTEN = 100; // ms between two drawings

/** Calls `draw(context, width, height, colour)` soon after `redraw()`, and when size or colours change. */
export class Picture {
  #canvas;
  #draw;
  #isDue = false;
  #drawnAt = -MOST_OFTEN;

  constructor(canvas, draw) {
    this.#canvas = canvas;
    this.#draw = draw;
    new ResizeObserver(() => this.redraw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  redraw() {
    if (this.#isDue) return;
    this.#isDue = true;
    const wait = Math.max(0, this.#drawnAt + MOST_OFTEN - performance.now());
    setTimeout(() => requestAnimationFrame(() => this.#now()), wait);
  }

  #now() {
    this.#isDue = false;
    this.#drawnAt = performance.now();
    const canvas = this.#canvas;
    const scale = devicePixelRatio;
    const { clientWidth: width, clientHeight: height } = canvas;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    context.font = `12px ${getComputedStyle(canvas).fontFamily}`;
    const style = getComputedStyle(document.documentElement);
    this.#draw(context, width, height, (name) => style.getPropertyValue(`--${name}`).trim());
  }
}

/** Draws a matrix of numbers from -1 to 1 as pixels: `at(row, column)` between the colours of -1, 0 and 1. */
export function drawMatrix(context, box, rows, columns, at, [low, zero, high]) {
  const image = new ImageData(columns, rows);
  const ends = [low, zero, high].map(channels);
  for (let row = 0, pixel = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++, pixel += 4) {
      const value = Math.max(-1, Math.min(1, at(row, column)));
      const end = ends[value < 0 ? 0 : 2];
      for (let i = 0; i < 3; i++)
        image.data[pixel + i] = ends[1][i] + (end[i] - ends[1][i]) * Math.abs(value);
      image.data[pixel + 3] = 255;
    }
  }
  const small = new OffscreenCanvas(columns, rows);
  small.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, box.x, box.y, box.width, box.height);
}

/** Red, green and blue of "#rrggbb". */
function channels(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}
