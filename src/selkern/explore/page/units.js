// The rows of a pane's units: what each chooses, what it is made to choose, and the channels behind it.

import { bar, branchClass, branchName, largest, order, percent, signed } from "./figures.js";

const MIXED = "mixed";
const stageOf = (unit) => /^SK_(\d+)_/.exec(unit.label)?.[1] ?? "";

const make = (name, values = {}, ...children) => {
  const element = Object.assign(document.createElement(name), values);
  element.append(...children);
  return element;
};

export class Units {
  constructor(pane) {
    this.pane = pane;
    this.facts = pane.app.facts.units;
    const { at } = pane;
    at["units-part"].hidden = !this.facts.length;
    if (!this.facts.length) return;
    const stages = new Map();
    this.facts.forEach((unit, u) => stages.set(stageOf(unit), [...(stages.get(stageOf(unit)) ?? []), u]));
    this.groups = [];
    this.rows = [];
    const all = this.facts.map((_, u) => u);
    at.units.append(this.group("All units", all));
    for (const [stage, members] of stages) {
      if (stages.size > 1 && stage) at.units.append(this.group(`Stage ${stage}`, members));
      at.units.append(make("ul", { className: "rows" }, ...members.map((u) => this.row(u))));
    }
    this.legend();
  }

  legend() {
    const names = new Map();
    for (const unit of this.facts) for (const b of order(unit)) names.set(branchName(unit, b), branchClass(unit, b));
    const keys = [...names].slice(0, 8).map(([name, style]) => make("span", {}, make("i", { className: `key ${style}` }), name));
    this.meanKey = make("span", {}, make("i", { className: "key mean" }), make("span", { className: "mean-text" }));
    this.ownKey = make("span", {}, make("i", { className: "key own" }), "left to its gate");
    this.pane.at.legend.replaceChildren(...keys, this.meanKey, this.ownKey);
  }

  // A select for several units at once.
  group(label, members) {
    const units = members.map((u) => this.facts[u]);
    const same = units.every((unit) => String(unit.extents) === String(units[0].extents) && unit.extents.length);
    const [small, large] = same
      ? [order(units[0])[0], largest(units[0])].map((b) => `${branchName(units[0], b)} alone`)
      : ["smallest window", "largest window"];
    const select = make("select", { className: "live" }, new Option("as chosen", ""), new Option(small, "small"), new Option(large, "large"),
      new Option("the mean", "mean"), new Option("the other's", "other"));
    const mixed = new Option("mixed", MIXED);
    mixed.hidden = mixed.disabled = true;
    select.append(mixed);
    select.setAttribute("aria-label", `${label}: what they choose`);
    select.addEventListener("change", () => this.choose(members, select.value));
    this.groups.push({ select, members });
    return make("div", { className: `group${label === "All units" ? " live" : ""}` }, make("h4", { textContent: label }), select);
  }

  row(u) {
    const unit = this.facts[u];
    const name = make("button", { type: "button", className: "unit-name", textContent: unit.label, title: unit.name });
    const place = make("span", { className: "place" });
    const value = make("span", { className: "value" });
    const options = order(unit).map((b) => new Option(`${branchName(unit, b)} alone`, String(b)));
    const select = make("select", { className: "live" }, new Option("as chosen", ""), ...options, new Option("the mean", "mean"),
      new Option("the other's", "other"));
    select.setAttribute("aria-label", `${unit.label}: what it chooses`);
    select.addEventListener("change", () => this.choose([u], select.value));
    const more = make("div", { className: "more", hidden: true, id: `more-${this.pane.number}-${u}` });
    name.setAttribute("aria-expanded", "false");
    name.setAttribute("aria-controls", more.id);
    name.addEventListener("click", () => {
      this.pane.state.unit = this.pane.state.unit === u ? null : u;
      this.pane.app.changed(this.pane);
    });
    this.rows[u] = { name, place, value, select, more };
    return make("li", {}, make("div", { className: "line-of-unit" }, name, place, value, select), more);
  }

  // `word`: "", a branch's number, "small", "large", "mean" or "other".
  choose(members, word) {
    const { pane } = this;
    for (const u of members) {
      const unit = this.facts[u];
      const branch = { small: order(unit)[0], large: largest(unit) }[word];
      if (word === "") delete pane.state.choices[u];
      else pane.state.choices[u] = String(branch ?? word);
    }
    if (word === "other") pane.app.needTwo();
    pane.app.changed(pane);
  }

  // Selects and opened rows as the state has them.
  show() {
    if (!this.facts.length) return;
    const { state, app } = this.pane;
    const known = app.means.n > 0, possible = app.means.of > 0;
    this.rows.forEach(({ name, select, more }, u) => {
      select.value = state.choices[u] ?? "";
      select.classList.toggle("set", select.value !== "");
      const open = state.unit === u;
      name.setAttribute("aria-expanded", String(open));
      more.hidden = !open;
      allow(select, "mean", possible);
    });
    for (const { select, members } of this.groups) {
      const words = members.map((u) => {
        const word = state.choices[u] ?? "", unit = this.facts[u];
        return { [order(unit)[0]]: "small", [largest(unit)]: "large" }[word] ?? word;
      });
      const first = words.every((word) => word === words[0]) ? words[0] : MIXED;
      select.value = first;
      if (select.selectedIndex < 0) select.value = MIXED;
      select.classList.toggle("set", select.value !== "");
      allow(select, "mean", possible);
    }
    this.meanKey.hidden = !known;
    const which = app.means.n < app.means.of ? `${app.means.n} of ${app.means.of}` : app.means.n;
    this.meanKey.querySelector(".mean-text").textContent = `mean of ${which} pictures`;
    this.ownKey.hidden = !Object.keys(state.choices).length;
  }

  showAnswer(answer) {
    const { pane } = this;
    this.facts.forEach((unit, u) => {
      const { place, value, more } = this.rows[u], row = answer.units[u];
      if (!row) {
        place.textContent = "took no part";
        return;
      }
      const own = answer.own?.[u], mean = pane.app.means.units[u], share = row[largest(unit)];
      const figure = bar(unit, row, mean, own);
      const parts = order(unit).map((b) => `${branchName(unit, b)} ${percent(row[b])}`);
      if (mean) parts.push(`mean of ${branchName(unit, largest(unit))} ${percent(mean[largest(unit)])}`);
      if (own) parts.push(`left to its gate ${percent(own[largest(unit)])}`);
      figure.setAttribute("role", "img");
      figure.setAttribute("aria-label", `${unit.label}: ${parts.join(", ")}`);
      place.replaceChildren(figure);
      const change = own ? 100 * (share - own[largest(unit)]) : 0;
      value.textContent = percent(share);
      value.title = own ? `${signed(change)} points against its gate` : "";
      if (pane.question.unit === u && answer.channels) this.showChannels(unit, more);
    });
  }

  showChannels(unit, more) {
    const { pane } = this;
    const box = make("input", { type: "checkbox", checked: pane.state.channels === "sorted" });
    const figure = make("figure", {});
    const draw = () => {
      const drawn = pane.channelFigure(box.checked);
      drawn.setAttribute("role", "img");
      drawn.setAttribute("aria-label", `${pane.answer.channels[0].length} channels of ${unit.label}`);
      figure.replaceChildren(drawn);
    };
    box.addEventListener("change", () => {
      pane.state.channels = box.checked ? "sorted" : "place";
      draw();
    });
    draw();
    const count = pane.answer.channels[0].length;
    const caption = make("figcaption", {}, `${branchName(unit, largest(unit))} in each of ${count} channels `,
      make("label", {}, box, " sorted"));
    if (more.contains(document.activeElement)) { // keep the focus of whoever sorts
      more.querySelector("figure").replaceWith(figure);
      return;
    }
    more.replaceChildren(caption, figure);
  }
}

function allow(select, word, allowed) {
  const option = [...select.options].find((each) => each.value === word);
  if (option) option.disabled = !allowed;
}
