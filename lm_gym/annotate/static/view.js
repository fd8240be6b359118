// An item on the page: turns of the conversation, the two texts, scrolled together.

const policy = window.trustedTypes
  ? window.trustedTypes.createPolicy("lm-gym", { createHTML: (html) => html })
  : { createHTML: (html) => html };

const SPEAKERS = { user: "Person", assistant: "Model", system: "Instructions" };

export class View {
  constructor() {
    this.root = document.getElementById("item");
    this.prompt = document.getElementById("prompt");
    this.sides = [document.getElementById("first"), document.getElementById("second")];
    this.raw = false;
    this.item = null;
    const [first, second] = this.sides;
    first.addEventListener("scroll", () => this.#follow(first, second), { passive: true });
    second.addEventListener("scroll", () => this.#follow(second, first), { passive: true });
  }

  show(item) {
    this.item = item;
    this.root.hidden = false; // first: what is not laid out cannot be scrolled
    this.#fill(this.prompt, item.prompt);
    this.#fill(this.sides[0], item.first);
    this.#fill(this.sides[1], item.second);
    for (const part of [this.prompt, ...this.sides]) part.scrollTop = 0;
    // A conversation is judged by its end; where that is, is known once the buttons below have their place.
    if (item.prompt.length > 1) requestAnimationFrame(() => (this.prompt.scrollTop = this.prompt.scrollHeight));
    this.root.dataset.item = item.item;
  }

  // Still there to be read, but no longer to be answered.
  retire() {
    this.item = null;
    delete this.root.dataset.item;
  }

  hide() {
    this.item = null;
    this.root.hidden = true;
    delete this.root.dataset.item;
  }

  toggleRaw() {
    this.raw = !this.raw;
    if (this.item) this.show(this.item);
    return this.raw;
  }

  scroll(screens) {
    // One side is enough: the other follows, and where only one can scroll it is that one.
    const [first, second] = this.sides;
    const longer = first.scrollHeight - first.clientHeight >= second.scrollHeight - second.clientHeight ? first : second;
    longer.scrollBy({ top: screens * longer.clientHeight });
  }

  #fill(where, turns) {
    where.replaceChildren(
      ...turns.map((turn) => {
        const block = document.createElement("div");
        block.className = `turn ${turn.role}`;
        if (turn.role) {
          const speaker = document.createElement("div");
          speaker.className = "speaker";
          speaker.textContent = SPEAKERS[turn.role] || turn.role;
          block.append(speaker);
        }
        const text = document.createElement("div");
        text.className = "said";
        text.dir = "auto";
        if (!turn.text.trim()) {
          text.classList.add("nothing");
          text.textContent = turn.text ? "(white space only)" : "(nothing)";
        } else if (this.raw) {
          text.classList.add("raw");
          text.textContent = turn.text;
        } else {
          text.innerHTML = policy.createHTML(turn.html); // made and cleaned by the server: lm_gym/annotate/markdown.py
        }
        block.append(text);
        return block;
      }),
    );
  }

  #follow(leader, other) {
    if (this.led === leader) {
      this.led = null; // this scroll was our own doing
      return;
    }
    const range = leader.scrollHeight - leader.clientHeight;
    const target = range > 0 ? (leader.scrollTop / range) * (other.scrollHeight - other.clientHeight) : 0;
    if (Math.abs(other.scrollTop - target) < 1) return;
    this.led = other;
    other.scrollTop = target;
  }
}
