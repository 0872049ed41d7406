// What the page shows, as plain values, and as the part of its address behind "#".

export const START = Object.freeze({ size: 1, x: 0.5, y: 0.5, turn: 0, blur: 0, light: 1 });
const DIGITS = { size: 3, x: 4, y: 4, turn: 1, blur: 4, light: 3 };
export const NAMES = ["a", "b"];

export const newPane = (picture) => ({ picture, view: { ...START }, choices: {}, unit: null, channels: "place" });

export function toHash(state) {
  const parts = new URLSearchParams();
  for (const [number, pane] of state.panes.entries()) {
    const name = NAMES[number];
    if (pane.picture) parts.set(`${name}.picture`, pane.picture);
    for (const [key, value] of Object.entries(pane.view)) {
      if (value !== START[key]) parts.set(`${name}.${key}`, String(Number(value.toFixed(DIGITS[key]))));
    }
    const choices = Object.entries(pane.choices).map(([unit, word]) => `${unit}:${word}`);
    if (choices.length) parts.set(`${name}.units`, choices.join(","));
    if (pane.unit !== null) parts.set(`${name}.unit`, String(pane.unit));
  }
  if (state.two) parts.set("two", "1");
  if (state.both) parts.set("both", "1");
  return "#" + parts.toString().replaceAll("%3A", ":").replaceAll("%2C", ",");
}

// Of an address that anybody may have written: what is out of range or unknown is left out.
export function fromHash(hash, facts, first) {
  const parts = new URLSearchParams(hash.replace(/^#/, ""));
  const panes = NAMES.map((name, number) => {
    const pane = newPane(first(number));
    const picture = parts.get(`${name}.picture`);
    if (picture && /^[ru][0-9a-f]{1,20}$/.test(picture)) pane.picture = picture;
    for (const [key, [low, high]] of Object.entries(facts.ranges)) {
      const given = parts.get(`${name}.${key}`);
      if (given !== null && given !== "" && Number.isFinite(Number(given))) {
        pane.view[key] = Math.min(high, Math.max(low, Number(given)));
      }
    }
    for (const entry of (parts.get(`${name}.units`) ?? "").split(",")) {
      const [unit, word] = entry.split(":");
      const known = facts.units[Number(unit)];
      if (unit && known && (word === "mean" || word === "other" || Number(word) < known.branches)) {
        pane.choices[Number(unit)] = word;
      }
    }
    const unit = parts.get(`${name}.unit`);
    if (unit !== null && facts.units[Number(unit)]) pane.unit = Number(unit);
    return pane;
  });
  return { panes, two: parts.get("two") === "1", both: parts.get("both") === "1" };
}
