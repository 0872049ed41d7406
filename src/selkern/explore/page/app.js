// The page: two panes, what they share, and what comes in from outside.

import * as api from "./api.js";
import { Pane } from "./pane.js";
import { csvOf, download, pngOf } from "./save.js";
import { fromHash, NAMES, toHash } from "./state.js";

const MOST_BYTES = 32 * 2 ** 20; // of a picture; the server refuses more
const MOST_FILES = 40; // that are taken at once
const byId = (id) => document.getElementById(id);

class App {
  async start() {
    this.facts = await api.facts();
    this.means = { n: 0, of: 0, done: false, units: [] };
    this.uploads = [...this.facts.added];
    this.takeHash();
    byId("title").textContent = this.facts.title;
    document.title = `${this.facts.title} · selkern explore`;
    const { classes, units, side, images, split } = this.facts;
    const parts = [`${units.length} selective-kernel units`, `${classes} classes`, `${side} × ${side} px`];
    if (images) parts.push(`${images.toLocaleString("en")} ${split} pictures`);
    byId("lead").textContent = parts.join(" · ");
    for (const note of this.facts.notes) this.notice(note, "note");
    byId("waiting").remove();
    this.panes = NAMES.map((_, number) => new Pane(this, number));
    this.active = this.panes[0];
    byId("panes").append(...this.panes.map((pane) => pane.element));
    this.listPictures();
    this.wire();
    this.showTwo();
    this.panes.forEach((pane) => this.isShown(pane) && pane.ask());
    this.followMeans();
  }

  wire() {
    byId("two").addEventListener("change", (event) => {
      this.state.two = event.target.checked;
      this.showTwo();
      this.panes[1].ask();
      this.changed(this.panes[0]);
    });
    byId("both").addEventListener("change", (event) => {
      this.state.both = event.target.checked;
      if (this.state.both) this.panes[0].move({ ...this.state.panes[0].view });
      this.remember();
    });
    byId("link").addEventListener("click", () => this.copyLink());
    for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault());
    window.addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (files.length) this.add(this.active, files);
    });
    window.addEventListener("hashchange", () => {
      if (location.hash === this.hash) return;
      this.takeHash();
      this.listPictures();
      this.showTwo();
      this.panes.forEach((pane) => this.isShown(pane) && pane.ask(true));
    });
  }

  // The state that the address names; a picture that was added in another tab is known to the server alone.
  takeHash() {
    this.state = fromHash(location.hash, this.facts, (number) => this.first(number));
    for (const { picture, view } of this.state.panes) {
      view.size = this.snapped(view.size);
      const known = [...this.facts.pictures, ...this.uploads].some((each) => each.name === picture);
      if (picture && !known) this.uploads.push({ name: picture, text: picture[0] === "u" ? "added before" : `image ${picture.slice(1)}` });
    }
  }

  // The nearest of the sizes that there are answers for.
  snapped(size) {
    const { sizes } = this.facts;
    return sizes ? sizes.reduce((best, each) => (Math.abs(each - size) < Math.abs(best - size) ? each : best)) : size;
  }

  first(number) {
    const all = [...this.facts.added, ...this.facts.pictures, ...this.uploads];
    return all[number % Math.max(all.length, 1)]?.name ?? null;
  }

  isShown(pane) {
    return pane.number === 0 || this.state.two;
  }

  other(pane) {
    return this.state.panes[1 - pane.number];
  }

  needTwo() {
    if (this.state.two) return;
    this.state.two = true;
    this.showTwo();
    this.panes[1].ask();
  }

  showTwo() {
    byId("two").checked = this.state.two;
    byId("both").checked = this.state.both;
    byId("both-label").hidden = !this.state.two;
    byId("panes").classList.toggle("two", this.state.two);
    this.panes[1].element.hidden = !this.state.two;
    this.panes.forEach((pane) => pane.showState());
    this.remember();
  }

  // The state of a pane is another: show it, ask, and let the other pane ask that has its selections from here.
  changed(pane, now = false) {
    pane.showState();
    this.remember();
    pane.ask(now);
    const reader = this.panes[1 - pane.number];
    if (this.isShown(reader) && Object.values(reader.state.choices).includes("other")) reader.ask();
  }

  // What is moved in one pane is moved in both, where that is asked for.
  moved(pane, values) {
    const follower = this.panes[1 - pane.number];
    if (!this.state.two || !this.state.both) return;
    Object.assign(follower.state.view, values);
    follower.showState();
    follower.ask();
  }

  // The address follows the state, a few times a second at most.
  remember() {
    clearTimeout(this.remembering);
    this.remembering = setTimeout(() => {
      this.hash = toHash(this.state);
      history.replaceState(null, "", this.hash);
    }, 250);
  }

  async copyLink() {
    this.hash = toHash(this.state);
    history.replaceState(null, "", this.hash);
    try {
      await navigator.clipboard.writeText(location.href);
      this.notice("The link is copied.", "note", 3000);
    } catch {
      this.notice(`The link is this page's address: ${location.href}`, "note");
    }
    const uploaded = this.panes.some((pane) => this.isShown(pane) && pane.state.picture?.startsWith("u"));
    if (uploaded) this.notice("A picture of yours is kept until the server ends: until then the link shows it.", "note");
  }

  nameOf(name) {
    return this.names.get(name) ?? "a picture";
  }

  listPictures() {
    const ofRun = this.facts.pictures.map(({ name, class: label, file }) => {
      return { name, text: `${label} · ${file}`, short: label };
    });
    const added = this.uploads.map(({ name, text }) => ({ name, text, short: text }));
    this.names = new Map([...ofRun, ...added].map(({ name, text }) => [name, text]));
    const groups = [["yours", added], [`${this.facts.split || "the run's"} pictures`, ofRun]];
    this.panes.forEach((pane) => pane.listPictures(groups));
    document.body.classList.toggle("no-pictures", !this.names.size);
  }

  // Files that were dropped, pasted, chosen or taken: the first that can be read is shown.
  async add(pane, files) {
    if (api.STATIC) {
      this.notice("This page shows pictures that were chosen before: selkern explore shows yours.", "note");
      return;
    }
    if (files.length > MOST_FILES) this.notice(`${files.length} files: the first ${MOST_FILES} are taken.`, "note");
    let shown = false;
    pane.setBusy(true);
    for (const file of files.slice(0, MOST_FILES)) {
      try {
        if (file.size > MOST_BYTES) throw new Error(`more than ${MOST_BYTES / 2 ** 20} MiB`);
        const { name } = await api.upload(file);
        if (!this.uploads.some((each) => each.name === name)) this.uploads.push({ name, text: file.name || "pasted" });
        if (!shown) pane.state.picture = name;
        shown = true;
      } catch (error) {
        this.notice(`${file.name || "The picture"}: ${error.message}`);
      }
    }
    pane.setBusy(false);
    this.listPictures();
    if (!shown) return;
    for (const each of this.panes) each.state.picture ??= this.first(each.number);
    this.changed(pane, true);
  }

  async camera(pane) {
    const dialog = byId("camera-dialog"), video = byId("camera-video");
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: true });
    } catch (error) {
      this.notice(`No camera: ${error.message}`);
      return;
    }
    video.srcObject = stream;
    dialog.showModal();
    const end = () => {
      stream.getTracks().forEach((track) => track.stop());
      video.srcObject = null;
    };
    dialog.addEventListener("close", end, { once: true });
    byId("camera-close").onclick = () => dialog.close();
    byId("camera-take").onclick = () => {
      const canvas = Object.assign(document.createElement("canvas"), { width: video.videoWidth, height: video.videoHeight });
      canvas.getContext("2d").drawImage(video, 0, 0);
      dialog.close();
      canvas.toBlob((blob) => this.add(pane, [new File([blob], "camera", { type: "image/png" })]), "image/png");
    };
  }

  // The mean over the run's pictures grows while nobody asks.
  async followMeans() {
    try {
      this.means = await api.means();
    } catch {
      return;
    }
    for (const pane of this.panes) {
      pane.units.show();
      if (pane.answer) pane.units.showAnswer(pane.answer);
    }
    if (!this.means.done && this.waits-- > 0) setTimeout(() => this.followMeans(), 1500);
  }

  waits = 400;

  notice(text, kind = "error", gone = 0) {
    const shown = [...byId("notices").children].find((each) => each.dataset.text === text);
    shown?.remove();
    const element = document.createElement("div");
    element.className = `notice ${kind}`;
    element.dataset.text = text;
    const close = Object.assign(document.createElement("button"), { type: "button", textContent: "×" });
    close.setAttribute("aria-label", "Close this notice");
    close.addEventListener("click", () => element.remove());
    element.append(Object.assign(document.createElement("p"), { textContent: text }), close);
    byId("notices").append(element);
    while (byId("notices").children.length > 6) byId("notices").firstChild.remove();
    if (gone) setTimeout(() => element.remove(), gone);
  }

  async savePng(pane) {
    if (!pane.answer) return;
    try {
      download(await pngOf(pane), `${this.fileName(pane)}.png`);
    } catch (error) {
      this.notice(`The picture could not be saved: ${error.message}`);
    }
  }

  saveCsv(pane) {
    if (pane.answer) download(new Blob([csvOf(pane)], { type: "text/csv" }), `${this.fileName(pane)}.csv`);
  }

  fileName(pane) {
    return `${this.facts.title}-${pane.question.picture}`.replace(/[^\w.-]+/g, "_");
  }
}

const app = new App();
app.start().catch((error) => {
  byId("waiting")?.remove();
  app.notice(`The page could not be built: ${error.message}`);
});
