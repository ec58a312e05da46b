/** How many threads WebAssembly uses. */

const MOST = 8;

/**
 * One thread unless the page is cross-origin isolated; then half of the processors that the browser counts, since two of them often are
 * one core, and threads that wait for a busy core slow down all the others. `wish` is another number, from `?threads=`.
 */
export function threads(isolated, processors, wish = null) {
  if (!isolated) return 1;
  const wanted = Number(wish) || Math.ceil((processors || 1) / 2);
  return Math.min(MOST, Math.max(1, Math.floor(wanted)));
}
