// One picture with its sliders, its classes, its units and its curve.

import { Asker, pictureAddress, STATIC } from "./api.js";
import { channels, curve, largest, percent, signed } from "./figures.js";
import { Units } from "./units.js";
import { START } from "./state.js";

const SLIDERS = [
  ["size", "Size", 0.01, (value) => `${value.toFixed(2)}×`],
  ["x", "Centre across", 0.01, (value) => percent(value)],
  ["y", "Centre down", 0.01, (value) => percent(value)],
  ["turn", "Turn", 1, (value) => `${value}°`],
  ["blur", "Blur", 0.0025, (value, side) => `${(value * side).toFixed(1)} px`],
  ["light", "Light", 0.01, (value) => percent(value)],
];
const SLOW = 150; // ms after which a request is shown to be under way
const MOST_POINTS = 400;
const LATER = 400; // ms: fields that take longer are asked for once the picture rests
const REST = 250; // ms

export class Pane {
  // `app` has facts, means, state, and what concerns both panes: changed(), notice(), add(), other().
  constructor(app, number) {
    this.app = app;
    this.number = number;
    const content = document.getElementById("pane").content.cloneNode(true);
    this.element = content.querySelector(".pane");
    this.at = {};
    for (const element of this.element.querySelectorAll("[data-at]")) this.at[element.dataset.at] = element;
    this.asker = new Asker(number, (...values) => this.shown(...values), (error) => this.failed(error));
    this.points = new Map();
    this.key = "";
    this.units = new Units(this);
    this.at.details.open = matchMedia("(min-width: 900px)").matches;
    this.buildSliders();
    this.wire();
  }

  get state() {
    return this.app.state.panes[this.number];
  }

  buildSliders() {
    this.sliders = {};
    for (const [name, label, step, text] of SLIDERS.filter(([name]) => this.app.facts.ranges[name])) {
      const [min, max] = this.app.facts.ranges[name];
      const input = Object.assign(document.createElement("input"), { type: "range", min, max, step });
      const output = document.createElement("output");
      const row = document.createElement("div");
      row.className = `slider ${name}`;
      input.setAttribute("aria-label", label);
      input.addEventListener("input", () => this.move({ [name]: Number(input.value) }));
      row.append(Object.assign(document.createElement("span"), { textContent: label }), output, input);
      (name === "size" ? this.at.size : this.at.sliders).append(row);
      this.sliders[name] = { input, output, text };
    }
  }

  wire() {
    const { at, app } = this;
    at.picture.addEventListener("change", () => this.take(at.picture.value));
    at.add.addEventListener("click", () => at.file.click());
    at.file.addEventListener("change", () => {
      app.add(this, [...at.file.files]);
      at.file.value = "";
    });
    at.camera.hidden = STATIC || !navigator.mediaDevices?.getUserMedia;
    at.camera.addEventListener("click", () => app.camera(this));
    at.stage.addEventListener("click", (event) => this.pointed(event));
    at.stage.addEventListener("keydown", (event) => this.pressed(event));
    at.sweep.addEventListener("click", () => (this.sweeping ? (this.sweeping = false) : this.sweep()));
    at.reset.addEventListener("click", () => {
      this.state.choices = {};
      this.move({ ...START });
      this.units.show();
    });
    at.png.addEventListener("click", () => app.savePng(this));
    at.csv.addEventListener("click", () => app.saveCsv(this));
    this.element.addEventListener("pointerdown", () => (app.active = this));
    this.element.addEventListener("focusin", () => (app.active = this));
    this.element.addEventListener("dragover", () => this.element.classList.add("over"));
    this.element.addEventListener("dragleave", (event) => {
      if (!this.element.contains(event.relatedTarget)) this.element.classList.remove("over");
    });
    this.element.addEventListener("drop", (event) => {
      this.element.classList.remove("over");
      app.add(this, [...event.dataTransfer.files]);
    });
  }

  // Another picture.
  take(name) {
    this.state.picture = name;
    this.sweeping = false;
    this.app.changed(this, true);
  }

  // Other values of the view; the other pane follows where both move together.
  move(values, bySweep = false) {
    if (!bySweep) this.sweeping = false;
    if (values.size) values.size = this.app.snapped(values.size);
    Object.assign(this.state.view, values);
    this.app.moved(this, values);
    this.app.changed(this);
  }

  ask(now = false, rests = false) {
    const { picture, view, choices, unit } = this.state;
    if (!picture) return;
    clearTimeout(this.resting);
    const field = unit !== null && (rests || !(this.fieldTime > LATER));
    const other = Object.values(choices).includes("other") ? this.app.other(this) : null;
    const donor = other ? { donor: other.picture, donor_view: other.view } : {};
    const question = { picture, view: { ...view }, choices: { ...choices }, unit, field, ...donor };
    const { size, ...rest } = question.view;
    const key = JSON.stringify([picture, rest, choices, donor]);
    if (key !== this.key) this.points.clear();
    this.key = key;
    this.slow ??= setTimeout(() => this.setBusy(this.asker.busy), SLOW);
    this.asked = performance.now();
    this.asker.ask(question, now);
  }

  setBusy(busy) {
    clearTimeout(this.slow);
    this.slow = null;
    this.element.classList.toggle("is-busy", busy);
    this.element.setAttribute("aria-busy", String(busy));
  }

  // Sliders, names and selects as the state has them.
  showState() {
    const { at, app, state } = this;
    for (const [name, { input, output, text }] of Object.entries(this.sliders)) {
      input.value = state.view[name];
      output.textContent = text(state.view[name], app.facts.side);
      input.setAttribute("aria-valuetext", output.textContent);
    }
    at.picture.value = state.picture ?? "";
    for (const thumb of at.strip.children) {
      const is = thumb.dataset.name === state.picture;
      if (is && thumb.getAttribute("aria-pressed") !== "true") reveal(at.strip, thumb);
      thumb.setAttribute("aria-pressed", String(is));
    }
    this.element.querySelector(".pane-name").textContent = app.state.two ? "AB"[this.number] : "";
    this.element.setAttribute("aria-label", `picture ${app.state.two ? "AB"[this.number] : ""}`);
    this.units.show();
  }

  // The choice of pictures: the run's, and those that were added.
  listPictures(groups) {
    this.at.picture.replaceChildren();
    this.at.strip.replaceChildren();
    for (const [label, pictures] of groups) {
      const group = Object.assign(document.createElement("optgroup"), { label });
      for (const { name, text, short } of pictures) {
        group.append(new Option(text, name));
        const thumb = Object.assign(document.createElement("button"), { type: "button", tabIndex: -1, title: text });
        thumb.dataset.name = name;
        const image = Object.assign(document.createElement("img"), { loading: "lazy", alt: short, src: pictureAddress(name) });
        image.className = this.app.facts.side <= 96 ? "coarse" : "";
        thumb.append(image);
        thumb.addEventListener("click", () => this.take(name));
        this.at.strip.append(thumb);
      }
      if (pictures.length) this.at.picture.append(group);
    }
    this.showState();
  }

  shown(answer, question, last) {
    if (last) {
      this.setBusy(false);
      if (question.field) this.fieldTime = performance.now() - this.asked;
      else if (question.unit !== null && !this.sweeping) this.resting = setTimeout(() => this.ask(false, true), REST);
    }
    this.answer = answer;
    this.question = question;
    const { at, app } = this;
    at.image.src = answer.image;
    at.image.classList.toggle("coarse", app.facts.side <= 128);
    at.image.alt = `${app.nameOf(question.picture)} as the network sees it`;
    this.points.set(question.view.size, answer.units);
    if (this.points.size > MOST_POINTS) this.points.delete(this.points.keys().next().value);
    this.showClasses();
    this.showOver();
    this.showCurve();
    this.units.showAnswer(answer);
    this.next?.();
  }

  failed(error) {
    this.setBusy(false);
    this.sweeping = false;
    this.next?.();
    this.app.notice(error.message);
    if ([404, 422].includes(error.status) && this.state.picture !== this.app.first(this.number)) {
      this.state.picture = this.app.first(this.number);
      this.app.changed(this);
    }
  }

  showClasses() {
    const { top, own } = this.answer;
    const truth = this.app.facts.pictures.find((each) => each.name === this.question.picture)?.class;
    const rows = top.map((row) => {
      const item = document.createElement("li");
      const name = Object.assign(document.createElement("span"), { className: "name", textContent: row.class });
      if (row.class === truth) name.append(Object.assign(document.createElement("small"), { textContent: "its class" }));
      const bar = Object.assign(document.createElement("span"), { className: "share" });
      const full = document.createElement("i");
      full.style.width = `${100 * row.p}%`;
      bar.append(full);
      const value = Object.assign(document.createElement("span"), { className: "value", textContent: percent(row.p, 1) });
      item.append(name, bar, value);
      if (own) {
        const mark = document.createElement("b");
        mark.style.left = `${100 * row.own}%`;
        bar.append(mark);
        const change = 100 * (row.p - row.own);
        const sign = Math.abs(change) < 0.05 ? "" : change < 0 ? "down" : "up";
        item.append(Object.assign(document.createElement("span"), { className: `change ${sign}`, textContent: signed(change) }));
      }
      return item;
    });
    this.at.classes.replaceChildren(...rows);
    this.at.classes.classList.toggle("changed", Boolean(own));
    clearTimeout(this.saying);
    this.saying = setTimeout(() => (this.at.says.textContent = this.sentence()), 400);
    this.at.says.classList.toggle("unseen", !own); // what the list shows is said once
  }

  sentence() {
    const { top, own } = this.answer;
    const before = top.reduce((best, row) => (row.own > best.own ? row : best));
    const now = `${top[0].class}, ${percent(top[0].p, 1)}`;
    if (!own) return now;
    const same = before.class === top[0].class ? "the same class" : `another class`;
    return `${now}. Left to their gates: ${before.class}, ${percent(before.own, 1)}: ${same}.`;
  }

  // The field of the chosen unit, and the point that is enlarged about.
  showOver() {
    const { at, app } = this;
    const side = app.facts.side, view = this.question.view, field = this.answer.field;
    const place = (name) => {
      const wide = 1 / view.size;
      if (view.size < 1) return 0.5;
      const low = Math.min(Math.max((1 - wide) / 2 + view[name] - 0.5, 0), 1 - wide);
      return (view[name] - low) / wide;
    };
    const [x, y] = turned(place("x"), place("y"), view.turn).map((value) => value * side);
    const arm = side / 40, thin = side / 220;
    at.over.setAttribute("viewBox", `0 0 ${side} ${side}`);
    const parts = STATIC ? [] : [shape("path", { d: `M${x - arm} ${y}h${2 * arm}M${x} ${y - arm}v${2 * arm}`, class: "cross" }, thin)];
    at.field.width = at.field.height = field?.cells || 1;
    if (field?.map) {
      paint(at.field, field.map, field.cells);
      const values = { cx: field.x, cy: field.y, r: field.radius };
      parts.push(shape("circle", { ...values, class: "ring under" }, 3 * thin), shape("circle", { ...values, class: "ring" }, thin));
    }
    at.over.replaceChildren(...parts);
    const unit = app.facts.units[this.question.unit];
    at.hint.textContent = !unit
      ? `${STATIC ? "" : "Click where to enlarge. "}Choose a unit to see what it sees.`
      : !this.question.field
        ? `${unit.label}: what it sees is computed once the picture rests.`
      : field?.map
        ? `${unit.label}: the pixels that move the centre of its map; root mean square radius ${field.radius.toFixed(1)} px of ${side}.`
        : `${unit.label}: no pixel moves the centre of its map.`;
  }

  showCurve() {
    this.at["curve-part"].hidden = !this.app.facts.units.length;
    const { units } = this.app.facts;
    const wide = Math.min(640, Math.max(280, this.at.curve.clientWidth)); // so that its words keep their size
    const figure = curve(units, [...this.points], this.question.view.size, this.state.unit, wide);
    figure.setAttribute("role", "img");
    const { size } = this.question.view;
    const said = units.map((unit, u) => this.answer.units[u] && `${unit.label} ${percent(this.answer.units[u][largest(unit)])}`);
    figure.setAttribute("aria-label", `Share of the largest kernel at size ${size}: ${said.filter(Boolean).join(", ")}`);
    this.at.curve.replaceChildren(figure);
  }

  channelFigure(sorted) {
    return channels(this.app.facts.units[this.question.unit], this.answer.channels, sorted);
  }

  pointed(event) {
    if (STATIC) return;
    const box = this.at.stage.getBoundingClientRect();
    const { view } = this.state;
    const shown = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    const [px, py] = turned(...shown, -view.turn);
    const back = (name, at) => {
      if (view.size <= 1) return 0.5 + (at - 0.5) / view.size;
      const wide = 1 / view.size;
      return Math.min(Math.max((1 - wide) / 2 + view[name] - 0.5, 0), 1 - wide) + at * wide;
    };
    const clamp = (value) => Math.round(100 * Math.min(1, Math.max(0, value))) / 100;
    this.move({ x: clamp(back("x", px)), y: clamp(back("y", py)) });
  }

  pressed(event) {
    const steps = { ArrowLeft: ["x", -1], ArrowRight: ["x", 1], ArrowUp: ["y", -1], ArrowDown: ["y", 1] };
    const factors = { "+": 1.05, "=": 1.05, "-": 1 / 1.05 };
    const { view } = this.state;
    if (steps[event.key] && !STATIC) {
      const [name, sign] = steps[event.key];
      this.move({ [name]: Math.min(1, Math.max(0, Math.round(100 * view[name] + 2 * sign) / 100)) });
    } else if (factors[event.key]) {
      const [low, high] = this.app.facts.ranges.size;
      this.move({ size: Math.min(high, Math.max(low, Math.round(100 * view.size * factors[event.key]) / 100)) });
    } else return;
    event.preventDefault();
  }

  // Every size from the smallest to the largest, then back.
  async sweep() {
    const before = this.state.view.size;
    const [low, high] = this.app.facts.ranges.size;
    this.sweeping = true;
    this.at.sweep.textContent = "Stop";
    const even = Array.from({ length: 25 }, (_, i) => Math.round(100 * low * (high / low) ** (i / 24)) / 100);
    for (const size of this.app.facts.sizes ?? even) {
      if (!this.sweeping) break;
      const answered = new Promise((done) => (this.next = done));
      this.move({ size }, true);
      await answered;
    }
    this.next = null;
    if (this.sweeping) this.move({ size: before });
    this.sweeping = false;
    this.at.sweep.textContent = "Sweep sizes";
  }
}

function turned(x, y, degrees) {
  const angle = (degrees * Math.PI) / 180, [dx, dy] = [x - 0.5, y - 0.5];
  return [0.5 + dx * Math.cos(angle) - dy * Math.sin(angle), 0.5 + dx * Math.sin(angle) + dy * Math.cos(angle)];
}

function shape(name, values, wide) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(values)) element.setAttribute(key, value);
  element.setAttribute("stroke-width", wide);
  return element;
}

// Bright where the field is strong; elsewhere the picture is dimmed, so that it shows on any.
function paint(canvas, map, cells) {
  const values = Uint8Array.from(atob(map), (letter) => letter.charCodeAt(0));
  const pixels = new ImageData(cells, cells);
  values.forEach((value, i) => {
    const share = Math.min(1, (1.2 * value) / 255);
    pixels.data.set([255 * Math.sqrt(share), 120 * share, 0, 110 + 70 * share], 4 * i);
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

function reveal(strip, thumb) {
  const left = thumb.offsetLeft - strip.offsetLeft;
  if (left < strip.scrollLeft || left + thumb.offsetWidth > strip.scrollLeft + strip.clientWidth) {
    strip.scrollLeft = left - strip.clientWidth / 2;
  }
}
