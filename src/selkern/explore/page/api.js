// The server's answers, and who waits for them: one request at a time for each pane, the newest first.

export class Failure extends Error {
  constructor(error, status) {
    super([error.what, error.where, error.fix].filter(Boolean).join(" · "));
    this.status = status;
  }
}

async function answer(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure({ what: "The server does not answer", fix: "is selkern explore still running?" }, 0);
  }
  let values = null;
  try {
    values = await response.json();
  } catch {
    values = { error: { what: (await response.text().catch(() => "")) || `status ${response.status}` } };
  }
  if (!response.ok) throw new Failure(values.error ?? { what: `status ${response.status}` }, response.status);
  return values;
}

// A page without a server has its answers in files, for the pictures and sizes that were chosen when it was made.
export const STATIC = document.documentElement.dataset.static !== undefined;

export const facts = () => answer(STATIC ? "data/session.json" : "api/session");
export const means = () => answer(STATIC ? "data/means.json" : "api/means");
export const upload = (blob) =>
  answer("api/upload", { method: "POST", body: blob, headers: { "Content-Type": "application/octet-stream" } });
export const pictureAddress = (name) =>
  STATIC ? `data/${encodeURIComponent(name)}/picture.png` : `api/picture/${encodeURIComponent(name)}`;

async function look(question, signal) {
  if (!STATIC) {
    const headers = { "Content-Type": "application/json" };
    return answer("api/look", { method: "POST", body: JSON.stringify(question), headers, signal });
  }
  const { picture, view, unit } = question;
  const { channels, fields, ...values } = await answer(`data/${picture}/${view.size.toFixed(2)}.json`, { signal });
  return unit === null ? values : { ...values, channels: channels[unit], field: fields[unit] };
}

// Asks about the latest state only: what comes while a request is under way replaces what waits.
export class Asker {
  constructor(name, shown, failed) {
    this.name = `${crypto.getRandomValues(new Uint32Array(2)).join("")}.${name}`;
    this.shown = shown;
    this.failed = failed;
    this.number = 0;
    this.waiting = null;
    this.abort = null;
    this.tries = 0;
  }

  get busy() {
    return this.abort !== null;
  }

  // `now` drops the request under way instead of waiting for its answer.
  ask(question, now = false) {
    this.waiting = question;
    if (now) this.abort?.abort();
    if (!this.busy) this.run();
  }

  async run() {
    while (this.waiting !== null) {
      const question = this.waiting;
      this.waiting = null;
      this.abort = new AbortController();
      try {
        const values = await look({ ...question, asker: this.name, number: ++this.number }, this.abort.signal);
        this.tries = 0;
        this.shown(values, question, this.waiting === null);
      } catch (error) {
        if (error.status === 503 && this.waiting === null && this.tries++ < 5) {
          await new Promise((done) => setTimeout(done, 200 * this.tries));
          this.waiting ??= question;
        } else if (error.name !== "AbortError" && error.status !== 409) {
          this.failed(error, question);
        }
      }
    }
    this.abort = null;
  }
}
