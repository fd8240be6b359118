// The work: items come in small batches, an answer goes into the outbox, and only what the server confirmed counts.
import { Outbox, newId } from "./outbox.js";
import { RedTeam } from "./redteam.js";
import { View } from "./view.js";
import { bindControls } from "./controls.js";

const AHEAD = 3; // items on the table, so that a lost connection does not stop the work at once
const GUARD = 300; // ms after a new item in which nothing is taken: the second half of a double click is no answer to it
const WORDS = { 1: "slightly", 2: "moderately", 3: "significantly" };

const $ = (id) => document.getElementById(id);
const { mode, scope } = document.body.dataset;
const view = new View();

const state = {
  table: [], // items, the first is on show
  history: [], // what was answered here: {id, item}
  earlier: [], // ids of answers from before this page, newest first
  answered: new Set(), // ids of items with an answer of ours that stands or waits
  progress: null,
  shownAt: 0,
  seen: 0, // ms that the item has been visible
  visibleSince: null,
  said: 0, // answers and undos so far, and undos confirmed: what was asked of the server before is out of date
  loading: false,
  again: false,
  lost: false,
  last: "",
};

const outbox = new Outbox(scope, {
  change: showState,
  confirmed(entry) {
    if (state.progress) {
      const answer = entry.path === "/api/answers";
      state.progress.done += answer ? 1 : -1;
      state.progress.left += answer ? -1 : 1;
    }
    if (entry.path === "/api/undo") state.said += 1;
    if (entry.path === "/api/undo" || state.table.length < AHEAD) load();
  },
  refused(entry, message) {
    const what = entry.path === "/api/undo" ? "An undo" : "An answer";
    notice(`${what} was not taken: ${message}`);
    if (entry.path === "/api/answers") {
      state.history = state.history.filter((done) => done.id !== entry.body.id);
      state.answered.delete(entry.body.item);
    } else {
      state.table = [];
      state.answered = new Set(); // what stands is what the server says
    }
    load();
  },
  signedOut() {
    notice("You are signed out. Open your invitation link again in this browser: what waits here is then sent.");
  },
});

async function load() {
  state.again = true;
  if (state.loading || outbox.stopped) return;
  state.loading = true;
  try {
    while (state.again) {
      state.again = false;
      const said = state.said;
      const response = await fetch(`/api/next?count=${mode === "red-team" ? 0 : AHEAD}`);
      if (response.status === 401) {
        outbox.stopped = true;
        notice("You are signed out. Open your invitation link again in this browser.");
        return;
      }
      if (!response.ok) throw new Error(response.statusText);
      const found = await response.json();
      state.lost = false;
      if (said !== state.said) state.again = true; // something was said meanwhile: this is how it was before
      else take(found);
    }
  } catch {
    state.lost = true;
    setTimeout(load, 2000);
  } finally {
    state.loading = false;
    showState();
  }
}

function take(found) {
  state.earlier = found.last;
  if (!outbox.entries.length) state.progress = found.progress;
  if (mode !== "red-team") lay(found.items);
}

// The server says what lies on the table; what is answered here already, and perhaps not yet there, is left out.
function lay(items) {
  const waiting = new Set(outbox.entries.map((entry) => entry.body.item));
  const fresh = items.filter((item) => !state.answered.has(item.item) && !waiting.has(item.item));
  const current = state.table[0];
  if (current && fresh.length && outbox.entries.length) {
    state.table = [current, ...fresh.filter((item) => item.item !== current.item)];
  } else if (fresh.length || !outbox.entries.length) {
    state.table = fresh;
  }
  turnTo(state.table[0]);
}

function turnTo(item) {
  if (item && view.item && view.item.item === item.item) return;
  state.seen = 0;
  state.visibleSince = document.hidden ? null : performance.now();
  state.shownAt = performance.now();
  $("comment").value = "";
  $("comment-row").hidden = true;
  $("comment-button").setAttribute("aria-expanded", "false");
  if (item) view.show(item);
  else view.hide();
}

function answer(kind, shown, reason) {
  const item = view.item;
  if (!item || outbox.stopped || performance.now() - state.shownAt < GUARD) return;
  state.said += 1;
  const body = { id: newId(), item: item.item, kind, comment: $("comment").value.trim(), seconds: seconds() };
  if (kind === "preference") body.shown = shown;
  if (kind === "flag") body.reason = reason;
  state.history.push({ id: body.id, item });
  state.answered.add(item.item);
  state.table = state.table.filter((other) => other.item !== item.item);
  state.last = said(kind, shown);
  outbox.add("/api/answers", body);
  if (mode === "red-team") redTeam.rated(item);
  else turnTo(state.table[0]);
  showState();
}

function undo() {
  if (outbox.stopped) return;
  const done = state.history.pop();
  const id = done ? done.id : state.earlier.shift();
  if (!id) return;
  state.said += 1;
  state.last = "";
  if (done) {
    state.answered.delete(done.item.item);
    state.table = [done.item, ...state.table.filter((item) => item.item !== done.item.item)];
  } else {
    state.table = []; // its text is with the server
  }
  outbox.add("/api/undo", { id: newId(), answer: id });
  turnTo(state.table[0]);
  if (mode === "red-team" && done) redTeam.showAgain(done.item);
  showState();
}

function said(kind, shown) {
  if (kind === "both_bad") return "both are bad";
  if (kind === "skip") return "skipped";
  if (kind === "flag") return "flagged";
  return shown === 0 ? "tie" : `${shown < 0 ? "A" : "B"} ${WORDS[Math.abs(shown)]} better`;
}

function seconds() {
  const running = state.visibleSince === null ? 0 : performance.now() - state.visibleSince;
  return Math.round(state.seen + running) / 1000;
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden && state.visibleSince !== null) {
    state.seen += performance.now() - state.visibleSince;
    state.visibleSince = null;
  } else if (!document.hidden) {
    state.visibleSince = performance.now();
  }
});

addEventListener("beforeunload", (event) => {
  if (outbox.entries.length && !outbox.kept) event.preventDefault();
});

function notice(text) {
  const line = document.createElement("p");
  line.textContent = text;
  const close = document.createElement("button");
  close.className = "close";
  close.textContent = "×";
  close.setAttribute("aria-label", "Close this message");
  close.addEventListener("click", () => line.remove());
  line.append(close);
  $("notices").append(line);
}

function showState() {
  const waiting = outbox.entries.length;
  const cut = outbox.offline || state.lost;
  let text = "";
  if (outbox.stopped) text = waiting ? `signed out, ${waiting} not sent` : "signed out";
  else if (cut) text = waiting ? `no connection: ${waiting} kept here, sent when it is back` : "no connection, trying again";
  else if (waiting) text = "saving…";
  else if (state.last) text = `saved: ${state.last}`;
  $("saved").textContent = text;
  $("saved").className = cut || outbox.stopped ? "cut" : waiting ? "waiting" : "safe";
  $("retry").hidden = !cut;
  $("undo").disabled = outbox.stopped || !(state.history.length || state.earlier.length);
  $("answer").hidden = !view.item;
  document.body.dataset.waiting = waiting;
  const progress = state.progress;
  if (progress) {
    const total = progress.done + Math.max(0, progress.left);
    $("bar").max = Math.max(total, 1);
    $("bar").value = progress.done;
    let line = mode === "red-team" ? `${progress.done} answered` : `${progress.done} of ${total}`;
    const left = progress.seconds_left;
    if (mode !== "red-team" && left !== null && progress.left > 0) line += ` · about ${span(left)} left`;
    $("progress").textContent = line;
    document.body.dataset.done = progress.done;
  }
  const empty = $("empty");
  empty.hidden = Boolean(view.item) || mode === "red-team" || (!progress && !cut);
  if (!empty.hidden) {
    if (cut) empty.textContent = "No connection. The page goes on by itself as soon as it is back; nothing is lost.";
    else if (waiting || state.loading) empty.textContent = "One moment…";
    else empty.textContent = "That was all for now. Thank you! New pairs appear here by themselves.";
  }
}

function span(left) {
  const minutes = Math.round(left / 60);
  if (minutes < 1) return "a minute";
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

const redTeam = mode === "red-team" ? new RedTeam({ view, turnTo, showState, notice }) : null;
bindControls({ answer, undo, view, compose: redTeam ? () => redTeam.focus() : null });
$("retry").addEventListener("click", () => {
  outbox.retry();
  load();
});
setInterval(() => {
  if (mode !== "red-team" && !view.item && !document.hidden && !state.lost && !outbox.entries.length) load();
}, 15000);
outbox.run();
load();
