// Places in the text to which one can go back: a recurrent state cannot be run backwards.

const RECENT = 16;
const MOST_OLDER = 32;

/** Keeps the last points, and older ones ever further apart: its size is bounded. */
export class Points {
  #start;
  #older = [];
  #spacing = RECENT;
  #recent = [];

  /** @param start the point before the text; a point has the `length` of the text before it. */
  constructor(start) {
    this.#start = start;
  }

  add(point) {
    this.#recent.push(point);
    if (this.#recent.length <= RECENT) return;
    const oldest = this.#recent.shift();
    const last = this.#older.at(-1) ?? this.#start;
    if (oldest.length - last.length < this.#spacing) return;
    this.#older.push(oldest);
    if (this.#older.length <= MOST_OLDER) return;
    this.#older = this.#older.filter((_, index) => index % 2);
    this.#spacing *= 2;
  }

  /** Goes back to the last point of at most this length, and forgets those after it. */
  backTo(length) {
    const isBefore = (point) => point.length <= length;
    this.#recent = this.#recent.filter(isBefore);
    if (this.#recent.length === 0) this.#older = this.#older.filter(isBefore);
    return this.#recent.at(-1) ?? this.#older.at(-1) ?? this.#start;
  }
}
