// What the page tells its reader in one line, and what a browser needs.

/** What to do about a folder that cannot be used. */
export const AGAIN = "export the model again with mamba-export";

/** A problem that its message explains to whoever sees the page. */
export class PageError extends Error {}

// A module of one function: i8x16.popcnt(i8x16.splat(0)), instructions of WebAssembly SIMD.
const SIMD_MODULE = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15,
  253, 98, 11,
]);

/** Throws PageError where WebAssembly, or its SIMD, is absent. ONNX Runtime is compiled for it. */
export function checkBrowser(webAssembly = globalThis.WebAssembly) {
  if (!webAssembly?.validate(SIMD_MODULE)) {
    throw new PageError(
      "This browser has no WebAssembly SIMD, which ONNX Runtime needs: " +
        "take Chrome or Edge 91, Firefox 89, Safari 16.4, or a newer one.",
    );
  }
}

/** One line of any error. */
export function oneLine(error) {
  const text =
    error instanceof PageError
      ? error.message
      : `ONNX Runtime or this page failed: ${error?.message ?? error}`;
  return text.replace(/\s+/g, " ").slice(0, 300);
}
