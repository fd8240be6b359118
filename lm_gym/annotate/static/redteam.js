// Red-team mode: write, let the model answer twice, rate, go on with one of the answers or start afresh.
import { newId } from "./outbox.js";

const $ = (id) => document.getElementById(id);

export class RedTeam {
  constructor({ view, turnTo, showState, notice }) {
    Object.assign(this, { view, turnTo, showState, notice });
    this.from = null; // {item, side}: the answer to go on with
    this.draft = null; // what was sent last: an unchanged text goes out under the same id again
    this.text = $("compose-text");
    $("compose-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.text.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.send();
      if (event.key === "Escape") this.text.blur();
    });
    $("compose-fresh").addEventListener("click", () => this.afresh());
    this.text.focus();
  }

  focus() {
    if (!$("compose").hidden) this.text.focus();
  }

  async send() {
    const text = this.text.value.trim();
    if (!text || $("compose-send").disabled) return;
    const ask = { text, item: this.from ? this.from.item : null, side: this.from ? this.from.side : null };
    const same = this.draft && JSON.stringify(this.draft.ask) === JSON.stringify(ask);
    if (!same) this.draft = { id: newId(), ask };
    $("compose-send").disabled = true;
    $("compose-state").textContent = "The model is writing…";
    try {
      const response = await fetch("/api/red-team", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ id: this.draft.id, ...ask }),
      });
      const found = await response.json();
      if (!response.ok) throw new Error(found.error);
      $("compose-state").textContent = "";
      $("compose").hidden = true;
      this.turnTo(found.item);
    } catch (error) {
      $("compose-state").textContent =
        error instanceof TypeError ? "No connection: your text is still here, send it again." : error.message;
    } finally {
      $("compose-send").disabled = false;
      this.showState();
    }
  }

  // After the rating: what was said stays in sight, and the next message may go on with one of the answers.
  rated(item) {
    this.view.retire();
    this.text.value = "";
    this.draft = null;
    $("compose").hidden = false;
    this.#offer(item);
    this.text.focus();
  }

  showAgain(item) {
    $("compose").hidden = true;
    this.turnTo(item);
  }

  afresh() {
    this.view.hide();
    this.#reset();
    this.text.focus();
  }

  #reset() {
    this.from = null;
    $("compose-fresh").hidden = true;
    $("compose-state").textContent = "";
    for (const old of document.querySelectorAll(".continue")) old.remove();
  }

  #offer(item) {
    this.#reset();
    $("compose-fresh").hidden = false;
    const row = document.createElement("div");
    row.className = "row continue";
    for (const [side, name] of [["first", "A"], ["second", "B"]]) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = `Go on with ${name}`;
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("click", () => {
        this.from = { item: item.item, side };
        for (const other of row.children) other.setAttribute("aria-pressed", String(other === button));
        $("compose-state").textContent = `Your next message follows answer ${name}.`;
        this.text.focus();
      });
      row.append(button);
    }
    $("compose-form").before(row);
  }
}
