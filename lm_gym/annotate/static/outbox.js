// What a person said waits here until the server has confirmed it: in memory, and in localStorage in case the page is
// closed. Everything is sent in order, one at a time, again and again under the same id until there is an answer.

const SLOWEST = 8000;

export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

export class Outbox {
  // on: {change(), confirmed(entry, result), refused(entry, message), signedOut()}
  constructor(scope, on) {
    this.prefix = `lm-gym.outbox.${scope}.`;
    this.on = on;
    this.entries = this.#kept();
    this.offline = false;
    this.stopped = false;
    this.kept = true; // whether localStorage took the last entry
    this.delay = 250;
    this.running = false;
    this.wake = null;
    addEventListener("online", () => this.retry());
    document.addEventListener("visibilitychange", () => document.hidden || this.retry());
  }

  add(path, body, note) {
    const entry = { path, body, note, at: `${Date.now()}`.padStart(15, "0") + `.${body.id}` };
    this.entries.push(entry);
    try {
      localStorage.setItem(this.prefix + entry.at, JSON.stringify(entry));
      this.kept = true;
    } catch {
      this.kept = false; // full or forbidden: memory still has it, and leaving the page asks first
    }
    this.on.change();
    this.run();
  }

  retry() {
    this.delay = 250;
    if (this.wake) this.wake();
    this.run();
  }

  async run() {
    if (this.running || this.stopped) return;
    this.running = true;
    while (this.entries.length && !this.stopped) {
      const entry = this.entries[0];
      const outcome = await this.#send(entry);
      if (outcome.again) {
        this.offline = true;
        this.on.change();
        await this.#pause();
        continue;
      }
      this.offline = false;
      this.delay = 250;
      if (outcome.signedOut) {
        this.stopped = true;
        this.on.signedOut();
        break;
      }
      this.entries.shift();
      try {
        localStorage.removeItem(this.prefix + entry.at);
      } catch {
        // It was never kept; sending it once more would change nothing anyway.
      }
      if (outcome.error) this.on.refused(entry, outcome.error);
      else this.on.confirmed(entry, outcome.result);
      this.on.change();
    }
    this.running = false;
  }

  async #send(entry) {
    const aborter = new AbortController();
    const timer = setTimeout(() => aborter.abort(), 15000);
    try {
      const response = await fetch(entry.path, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(entry.body),
        signal: aborter.signal,
      });
      const result = await response.json();
      if (response.status === 401) return { signedOut: true };
      if (response.status === 400 || response.status === 409) return { error: result.error };
      // Anything else is no answer of ours about this entry (a fault, a proxy, another server): it stays.
      return response.ok ? { result } : { again: true };
    } catch {
      return { again: true }; // no connection, or half an answer: it may have arrived, and the id makes that harmless
    } finally {
      clearTimeout(timer);
    }
  }

  #pause() {
    return new Promise((resolve) => {
      const timer = setTimeout(done, this.delay);
      this.delay = Math.min(this.delay * 2, SLOWEST);
      const self = this;
      function done() {
        clearTimeout(timer);
        self.wake = null;
        resolve();
      }
      this.wake = done;
    });
  }

  // Each entry has a key of its own, so that two tabs do not overwrite each other; what an earlier page left is sent.
  #kept() {
    const found = [];
    try {
      for (let i = 0; i < localStorage.length; i++) {
        const key = localStorage.key(i);
        if (key.startsWith(this.prefix)) found.push(JSON.parse(localStorage.getItem(key)));
      }
    } catch {
      return [];
    }
    return found.sort((one, other) => (one.at < other.at ? -1 : 1));
  }
}
