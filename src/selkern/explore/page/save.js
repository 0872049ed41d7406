// What a pane shows as a PNG to keep, and as a CSV to reckon with.

import { branchName, curve, largest, order, percent, signed, svg } from "./figures.js";

const STYLES = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size", "font-family", "font-weight"];

export function download(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const quote = (cell) => (/[",\n\r]/.test(String(cell)) ? `"${String(cell).replaceAll('"', '""')}"` : String(cell));

// A row for each branch of each unit at each size that was seen, and what was done to the picture.
export function csvOf(pane) {
  const { facts } = pane.app, { view, picture, choices } = pane.question, { top } = pane.answer;
  const head = ["picture", "size", "centre_x", "centre_y", "turn", "blur", "light", "unit", "module", "made_to_choose", "branch",
    "window", "selection", "class", "probability"];
  const rows = [...pane.points].sort((a, b) => a[0] - b[0]).flatMap(([size, units]) =>
    facts.units.flatMap((unit, u) => (units[u] ?? []).map((share, branch) => [
      pane.app.nameOf(picture), size, view.x, view.y, view.turn, view.blur, view.light, unit.label, unit.name,
      choices[u] ?? "", branch, unit.extents[branch] ?? "", share,
      ...(size === view.size ? [top[0].class, top[0].p] : ["", ""]),
    ])));
  return [head, ...rows].map((row) => row.map(quote).join(",")).join("\n") + "\n";
}

export async function pngOf(pane) {
  const drawn = poster(pane);
  const [wide, high] = [Number(drawn.getAttribute("width")), Number(drawn.getAttribute("height"))];
  const address = URL.createObjectURL(new Blob([new XMLSerializer().serializeToString(drawn)], { type: "image/svg+xml" }));
  try {
    const image = new Image();
    image.src = address;
    await image.decode();
    const canvas = Object.assign(document.createElement("canvas"), { width: 2 * wide, height: 2 * high });
    canvas.getContext("2d").drawImage(image, 0, 0, 2 * wide, 2 * high);
    return await new Promise((done, fail) => canvas.toBlob((blob) => (blob ? done(blob) : fail(new Error("no PNG"))), "image/png"));
  } finally {
    URL.revokeObjectURL(address);
  }
}

// Everything of a pane in one drawing, whose colours are written into it.
function poster(pane) {
  const theme = getComputedStyle(document.documentElement);
  const colour = (name) => theme.getPropertyValue(`--${name}`).trim();
  const text = (x, y, words, more = {}) => svg("text", { x, y, fill: colour("ink"), "font-size": 14, ...more }, words);
  const { app, answer, question } = pane, { units } = app.facts;
  const wide = 1000, left = 28, side = 400, right = 468, end = wide - 28;
  const figure = svg("g", { "font-family": "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif" });
  figure.append(text(left, 42, app.facts.title, { "font-size": 20, "font-weight": 600 }),
    text(left, 64, app.nameOf(question.picture), { fill: colour("muted") }));
  const place = { x: left, y: 80, width: side, height: side };
  const coarse = app.facts.side <= 128 ? { "image-rendering": "pixelated" } : {};
  figure.append(svg("image", { href: answer.image, ...place, ...coarse }));
  if (answer.field?.map) figure.append(svg("image", { href: pane.at.field.toDataURL(), ...place }));
  const over = inlined(pane.at.over);
  for (const [key, value] of Object.entries(place)) over.setAttribute(key, value);
  figure.append(over);
  const { view } = question;
  const seen = [`size ${view.size}×`, `turn ${view.turn}°`, `blur ${(view.blur * app.facts.side).toFixed(1)} px`, `light ${percent(view.light)}`];
  figure.append(text(left, 506, seen.join(" · "), { fill: colour("muted"), "font-size": 13 }));
  if (answer.field?.map) {
    const said = `field of ${units[question.unit].label}: root mean square radius ${answer.field.radius.toFixed(1)} px of ${app.facts.side}`;
    figure.append(text(left, 526, said, { fill: colour("muted"), "font-size": 13 }));
  }
  let y = 92;
  for (const row of answer.top) {
    figure.append(text(right, y, row.class.slice(0, 26), { "font-weight": y < 100 ? 600 : 400 }),
      svg("rect", { x: right + 190, y: y - 10, width: 200, height: 10, fill: colour("wash") }),
      svg("rect", { x: right + 190, y: y - 10, width: 200 * row.p, height: 10, fill: colour("accent") }),
      text(end, y, percent(row.p, 1) + (answer.own ? ` (${signed(100 * (row.p - row.own))})` : ""), { "text-anchor": "end" }));
    y += 22;
  }
  y += 20;
  units.forEach((unit, u) => {
    const row = answer.units[u];
    if (!row) return;
    let at = right + 120;
    figure.append(text(right, y, unit.label.slice(-14), { "font-size": 12.5 }));
    for (const branch of order(unit)) {
      const part = 230 * row[branch];
      const key = unit.branches < 2 ? 0 : Math.round((order(unit).indexOf(branch) * 4) / (unit.branches - 1));
      figure.append(svg("rect", { x: at, y: y - 11, width: Math.max(part, 0), height: 13, fill: colour(`branch-${key}`) }));
      at += part;
    }
    const word = question.choices[u];
    const made = word === undefined ? "" : { mean: " mean", other: " other" }[word] ?? " forced";
    figure.append(text(end, y, `${branchName(unit, largest(unit))} ${percent(row[largest(unit)])}${made}`, { "text-anchor": "end", "font-size": 12.5 }));
    y += 20;
  });
  if (units.length) {
    const lines = inlined(pane.at.curve.firstChild);
    Object.entries({ x: right, y, width: end - right, height: 270 }).forEach(([key, value]) => lines.setAttribute(key, value));
    figure.append(lines);
    y += 280;
  }
  const high = Math.max(y, 550) + 10;
  return svg("svg", { xmlns: "http://www.w3.org/2000/svg", width: wide, height: high, viewBox: `0 0 ${wide} ${high}` },
    svg("rect", { width: wide, height: high, fill: colour("paper") }), figure);
}

// A copy of a drawing on the page, with what style.css gives it written into its elements.
function inlined(original) {
  const copy = original.cloneNode(true);
  const [from, to] = [[original, ...original.querySelectorAll("*")], [copy, ...copy.querySelectorAll("*")]];
  from.forEach((element, i) => {
    const style = getComputedStyle(element);
    for (const name of STYLES) to[i].setAttribute(name, style.getPropertyValue(name));
    to[i].removeAttribute("class");
  });
  return copy;
}
