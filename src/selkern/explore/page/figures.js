// The figures, drawn as SVG elements; colours come from classes of style.css.

const SPACE = "http://www.w3.org/2000/svg";

export function svg(name, values = {}, ...children) {
  const element = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(values)) if (value !== null) element.setAttribute(key, String(value));
  element.append(...children);
  return element;
}

export const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;
export const signed = (points, digits = 1) =>
  `${points < 0 ? "−" : "+"}${Math.abs(points).toFixed(digits)}`;

// Branches from the smallest window to the largest: their order, and the place of each in it.
export function order(unit) {
  const numbers = [...Array(unit.branches).keys()];
  return unit.extents.length ? numbers.sort((a, b) => unit.extents[a] - unit.extents[b]) : numbers;
}
export const largest = (unit) => order(unit).at(-1);
export const branchName = (unit, branch) =>
  unit.extents.length ? `${unit.extents[branch]}×${unit.extents[branch]}` : `branch ${branch + 1}`;
const colourOf = (place, count) => `branch-${count < 2 ? 0 : Math.round((place * 4) / (count - 1))}`;
export const branchClass = (unit, branch) => colourOf(order(unit).indexOf(branch), unit.branches);

// One unit as a bar: a part for each branch, a mark at the mean of many pictures, a frame of the gate's own choice.
export function bar(unit, row, mean, own) {
  const figure = svg("svg", { viewBox: "0 0 100 12", preserveAspectRatio: "none", class: "bar" });
  let at = 0;
  for (const branch of order(unit)) {
    const wide = 100 * row[branch];
    figure.append(svg("rect", { x: at, y: 0, width: Math.max(wide, 0), height: 12, class: branchClass(unit, branch) }));
    at += wide;
  }
  const edge = (values) => 100 * (1 - values[largest(unit)]);
  if (own) figure.append(svg("rect", { x: edge(own) - 0.4, y: 0, width: 0.8, height: 12, class: "mark-own" }));
  if (mean) figure.append(svg("rect", { x: edge(mean) - 0.35, y: 3, width: 0.7, height: 6, class: "mark-mean" }));
  return figure;
}

// The selection of the largest kernel of every channel: (M, C) values as bars side by side.
export function channels(unit, values, sorted) {
  const shown = [...values[largest(unit)]];
  if (sorted) shown.sort((a, b) => a - b);
  const high = 60, count = shown.length;
  const path = shown.map((value, i) => `M${i} ${high}V${(high * (1 - value)).toFixed(2)}h1V${high}z`).join("");
  return svg("svg", { viewBox: `0 0 ${count} ${high}`, preserveAspectRatio: "none", class: "channels" },
    svg("rect", { x: 0, y: 0, width: count, height: high, class: branchClass(unit, order(unit)[0]) }),
    svg("path", { d: path, class: branchClass(unit, largest(unit)) }),
    svg("line", { x1: 0, x2: count, y1: high / 2, y2: high / 2, class: "half" }));
}

// From the first unit to the last; lighter where the page is dark.
const ON_LIGHT = [[88, 52, 140], [49, 98, 160], [18, 130, 138], [40, 150, 80], [150, 150, 20]];
const ON_DARK = [[178, 132, 240], [110, 160, 240], [60, 190, 200], [90, 210, 130], [215, 220, 90]];
export function depthColour(number, count) {
  const STOPS = matchMedia("(prefers-color-scheme: dark)").matches ? ON_DARK : ON_LIGHT;
  const at = count < 2 ? 0 : (number / (count - 1)) * (STOPS.length - 1);
  const low = STOPS[Math.floor(at)], high = STOPS[Math.ceil(at)], share = at % 1;
  return `rgb(${low.map((value, i) => Math.round(value + (high[i] - value) * share)).join(" ")})`;
}

// Lines of the share of the largest kernel against size, a line for each unit; `points` is [[size, rows], ...].
export function curve(units, points, now, chosen, wide, high = 250) {
  const left = 40, right = 72, top = 10, bottom = 34;
  const sorted = [...points].sort((a, b) => a[0] - b[0]);
  const shares = (rows) => units.map((unit, u) => (rows[u] ? rows[u][largest(unit)] : null));
  const all = sorted.flatMap(([, rows]) => shares(rows)).filter((value) => value !== null);
  let low = Math.min(...all, 0.5), up = Math.max(...all, 0.5);
  if (up - low < 0.1) [low, up] = [(low + up) / 2 - 0.05, (low + up) / 2 + 0.05];
  const pad = 0.08 * (up - low);
  [low, up] = [Math.max(0, low - pad), Math.min(1, up + pad)];
  const x = (size) => left + ((wide - left - right) * Math.log(size / 0.5)) / Math.log(6);
  const y = (share) => top + (high - top - bottom) * (1 - (share - low) / (up - low));
  const figure = svg("svg", { viewBox: `0 0 ${wide} ${high}`, class: "lines" });
  const step = up - low > 0.5 ? 0.2 : up - low > 0.2 ? 0.1 : 0.05;
  for (let share = Math.ceil(low / step) * step; share <= up + 1e-9; share += step) {
    figure.append(svg("line", { x1: left, x2: wide - right, y1: y(share), y2: y(share), class: "grid" }),
      svg("text", { x: left - 6, y: y(share) + 4, "text-anchor": "end" }, percent(share)));
  }
  for (const size of [0.5, 0.75, 1, 1.5, 2, 3]) {
    figure.append(svg("line", { x1: x(size), x2: x(size), y1: high - bottom, y2: high - bottom + 4, class: "tick" }),
      svg("text", { x: x(size), y: high - bottom + 16, "text-anchor": "middle" }, `${size}×`));
  }
  figure.append(svg("text", { x: (left + wide - right) / 2, y: high - 3, "text-anchor": "middle" }, "size of the picture"),
    svg("line", { x1: x(now), x2: x(now), y1: top, y2: high - bottom, class: "now" }));
  drawLines(figure, { units, sorted, shares, x, y, now, chosen, top, floor: high - bottom });
  return figure;
}

function drawLines(figure, { units, sorted, shares, x, y, now, chosen, top, floor }) {
  const ends = [];
  units.forEach((unit, u) => {
    const place = sorted.map(([size, rows]) => [x(size), shares(rows)[u]]).filter(([, share]) => share !== null);
    if (!place.length) return;
    const colour = depthColour(u, units.length), name = u === chosen ? "line chosen" : "line";
    const d = place.map(([px, share], i) => `${i ? "L" : "M"}${px.toFixed(1)} ${y(share).toFixed(1)}`).join("");
    const line = svg("g", { class: name }, svg("title", {}, unit.label), svg("path", { d, stroke: colour, fill: "none" }));
    const here = sorted.findIndex(([size]) => size === now);
    if (here >= 0) line.append(svg("circle", { cx: x(now), cy: y(shares(sorted[here][1])[u]), r: 3, fill: colour }));
    figure.append(line);
    if (units.length <= 18 || u === chosen) ends.push([y(place.at(-1)[1]), unit.label, colour, u === chosen, place.at(-1)]);
  });
  ends.sort((a, b) => a[0] - b[0]);
  for (let i = 0, free = top; i < ends.length; i++) free = (ends[i][0] = Math.max(ends[i][0], free)) + 11;
  for (let i = ends.length - 1, free = floor + 6; i >= 0; i--) free = (ends[i][0] = Math.min(ends[i][0], free)) - 11;
  for (const [at, label, colour, strong, [px, share]] of ends) {
    const shown = label.length > 9 ? `…${label.slice(-8)}` : label;
    figure.append(svg("path", { d: `M${px + 4} ${y(share)}L${px + 12} ${at}h4`, stroke: colour, fill: "none", class: "leader" }),
      svg("text", { x: px + 19, y: at + 3.5, class: strong ? "end chosen" : "end" }, shown));
  }
}
