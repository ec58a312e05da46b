/** Icons, drawn as inline SVG on a 24-unit grid. */

const PATHS = {
  sparkle: ["M12 3l1.9 5.1L19 10l-5.1 1.9L12 17l-1.9-5.1L5 10l5.1-1.9z", "M19 16v4M17 18h4"],
  stop: ["M6.5 6.5h11v11h-11z|fill"],
  close: ["M6 6l12 12M18 6L6 18"],
  up: ["M12 19V5M6 11l6-6 6 6"],
  down: ["M12 5v14M6 13l6 6 6-6"],
  now: ["M6 5l8 7-8 7zM18 5v14"],
  swap: ["M7 4L3 8l4 4M3 8h14M17 12l4 4-4 4M21 16H7"],
  dice: [
    "M5 4h14a1 1 0 0 1 1 1v14a1 1 0 0 1-1 1H5a1 1 0 0 1-1-1V5a1 1 0 0 1 1-1z",
    "M8.5 8.5h.01M15.5 8.5h.01M12 12h.01M8.5 15.5h.01M15.5 15.5h.01",
  ],
  lock: ["M6 11h12v9H6z", "M8.5 11V8a3.5 3.5 0 0 1 7 0v3"],
  unlock: ["M6 11h12v9H6z", "M8.5 11V8a3.5 3.5 0 0 1 6.7-1.4"],
  undo: ["M9 7L4 12l5 5", "M4 12h10a6 6 0 0 1 6 6v1"],
  redo: ["M15 7l5 5-5 5", "M20 12H10a6 6 0 0 0-6 6v1"],
  reset: ["M4 12a8 8 0 1 0 2.6-5.9", "M4 4v4.5h4.5"],
  image: ["M4 5h16v14H4z", "M4 16l5-5 4 4 2.5-2.5L20 17", "M15.5 9h.01"],
  brush: ["M20 4c-5 2-9.5 5.5-11.5 9.5l2 2C14.5 13.5 18 9 20 4z", "M8 14c-2.5 0-3.5 1.5-3.5 3.5 0 1-.5 2-1.5 2.5 4 .5 7-.5 7-3.5"],
  eraser: ["M8 19l-4.5-4.5a1.5 1.5 0 0 1 0-2L12 4l8 8-7 7z", "M8 8l8 8M8 19h12"],
  invert: ["M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18z", "M12 3v18a9 9 0 0 0 0-18z|fill"],
  trash: ["M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13", "M10 11v5M14 11v5"],
  download: ["M12 4v11M7 10.5l5 5 5-5M4 20h16"],
  compare: ["M12 3v18", "M9 6H4v12h5", "M15 6h5v12h-5"],
  grid: ["M4 4h6.5v6.5H4zM13.5 4H20v6.5h-6.5zM4 13.5h6.5V20H4zM13.5 13.5H20V20h-6.5z"],
  info: ["M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18z", "M12 11v5.5M12 7.7h.01"],
  read: ["M6 3h8.5L19 7.5V21H6z", "M14 3v5h5", "M9.5 13h6M9.5 16.5h4"],
  settings: ["M4 7h9M17 7h3M4 17h3M11 17h9", "M15 5a2 2 0 1 0 0 4 2 2 0 0 0 0-4zM9 15a2 2 0 1 0 0 4 2 2 0 0 0 0-4z"],
  keyboard: ["M3 6h18v12H3z", "M7 10h.01M11 10h.01M15 10h.01M8 14h8"],
  search: ["M11 5a6 6 0 1 0 0 12 6 6 0 0 0 0-12z", "M15.5 15.5L20 20"],
  seed: ["M12 21v-8", "M12 13c0-4 3-7 8-7 0 5-3 7-8 7z", "M12 16c0-3-2.5-5.5-7-5.5 0 4 2.5 5.5 7 5.5z"],
  copy: ["M9 9h11v11H9z", "M15 9V4H4v11h5"],
  variations: ["M12 4l8 4.5-8 4.5-8-4.5z", "M4 12.5l8 4.5 8-4.5M4 16.5L12 21l8-4.5"],
  upscale: ["M4 13h7v7H4z", "M4 9V4h16v16h-5", "M12 12l4.5-4.5M12.5 7.5h4v4"],
  enlarge: ["M14 4h6v6M20 4l-7 7M10 20H4v-6M4 20l7-7"],
  shrink: ["M20 10h-6V4M14 10l7-7M4 14h6v6M10 14l-7 7"],
  plus: ["M12 5v14M5 12h14"],
  minus: ["M5 12h14"],
  check: ["M5 12.5l4.5 4.5L19 7.5"],
  chevron: ["M9 6l6 6-6 6"],
  warning: ["M12 4L2.5 20h19z", "M12 10v4.5M12 17.3h.01"],
  bolt: ["M13 3L5 14h6l-1 7 8-11h-6z"],
  keep: ["M6 4h12v16l-6-4.5L6 20z"],
  fit: ["M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5"],
  drag: ["M9 6h.01M15 6h.01M9 12h.01M15 12h.01M9 18h.01M15 18h.01"],
  forever: ["M12 12c-2-2.7-3.6-4-5.5-4a4 4 0 0 0 0 8c1.9 0 3.5-1.3 5.5-4s3.6-4 5.5-4a4 4 0 0 1 0 8c-1.9 0-3.5-1.3-5.5-4z"],
  retry: ["M20 12a8 8 0 1 1-2.6-5.9", "M20 4v4.5h-4.5"],
};
const NS = "http://www.w3.org/2000/svg";

export function icon(name) {
  const svg = document.createElementNS(NS, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("focusable", "false");
  for (const entry of PATHS[name]) {
    const [d, filled] = entry.split("|");
    const path = document.createElementNS(NS, "path");
    path.setAttribute("d", d);
    if (filled) path.setAttribute("class", "filled");
    svg.append(path);
  }
  return svg;
}

/** The mark: a finished disc and a disc that is still noise. */
export function logo() {
  const svg = document.createElementNS(NS, "svg");
  svg.setAttribute("viewBox", "0 0 40 24");
  svg.setAttribute("class", "logo");
  svg.setAttribute("aria-hidden", "true");
  for (const [cx, kind] of [
    [13, "disc"],
    [27, "noise"],
  ]) {
    const circle = document.createElementNS(NS, "circle");
    circle.setAttribute("cx", cx);
    circle.setAttribute("cy", 12);
    circle.setAttribute("r", kind === "disc" ? 10 : 9);
    circle.setAttribute("class", kind);
    svg.append(circle);
  }
  return svg;
}
