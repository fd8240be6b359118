// Buttons and keys. A key does what its button does, and nothing while a text is being written.

const $ = (id) => document.getElementById(id);

export function bindControls({ answer, undo, view, compose }) {
  const flag = $("flag");
  const help = $("help");
  const guidelines = $("guidelines");
  const comment = $("comment");
  const open = () => flag.open || help.open;

  for (const button of document.querySelectorAll("[data-value]")) {
    button.addEventListener("click", () => answer("preference", Number(button.dataset.value)));
  }
  for (const button of document.querySelectorAll("[data-kind]")) {
    button.addEventListener("click", () => answer(button.dataset.kind));
  }
  $("undo").addEventListener("click", undo);
  $("flag-button").addEventListener("click", openFlag);
  $("comment-button").addEventListener("click", toggleComment);
  $("raw-button").addEventListener("click", toggleRaw);
  $("help-button").addEventListener("click", () => help.showModal());
  for (const chip of document.querySelectorAll("[data-reason]")) {
    chip.addEventListener("click", () => {
      $("flag-reason").value = chip.textContent;
      $("flag-send").focus();
    });
  }
  flag.querySelector("[data-close]").addEventListener("click", () => flag.close());
  $("flag-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const reason = $("flag-reason").value.trim();
    if (!reason) return;
    flag.close();
    answer("flag", null, reason);
  });
  comment.addEventListener("keydown", (event) => {
    if (event.key === "Escape") comment.blur();
  });
  if (guidelines) {
    $("guidelines-button").addEventListener("click", toggleGuidelines);
    $("guidelines-close").addEventListener("click", toggleGuidelines);
    // The first visit begins with the guidelines.
    if (matchMedia("(min-width: 1100px)").matches && !seen()) toggleGuidelines();
  }

  const keys = {
    b: () => answer("both_bad"),
    s: () => answer("skip"),
    f: openFlag,
    c: toggleComment,
    u: undo,
    g: guidelines ? toggleGuidelines : null,
    r: toggleRaw,
    j: () => view.scroll(0.5),
    k: () => view.scroll(-0.5),
    n: compose,
    "?": () => help.showModal(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || open()) return;
    if (event.target.closest("input, textarea")) return;
    const digit = "1234567".indexOf(event.key);
    const action = digit >= 0 ? () => answer("preference", digit - 3) : keys[event.key.toLowerCase()];
    if (!action) return;
    event.preventDefault();
    action();
  });

  function openFlag() {
    if (!view.item) return;
    $("flag-reason").value = "";
    flag.showModal();
    $("flag-reason").focus();
  }

  function toggleComment() {
    const row = $("comment-row");
    row.hidden = !row.hidden && !comment.value && document.activeElement !== comment;
    $("comment-button").setAttribute("aria-expanded", String(!row.hidden));
    if (!row.hidden) comment.focus();
  }

  function toggleRaw() {
    $("raw-button").setAttribute("aria-pressed", String(view.toggleRaw()));
  }

  function toggleGuidelines() {
    guidelines.hidden = !guidelines.hidden;
    $("guidelines-button").setAttribute("aria-expanded", String(!guidelines.hidden));
    if (guidelines.hidden) $("guidelines-button").focus({ preventScroll: true });
  }

  function seen() {
    try {
      const before = localStorage.getItem("lm-gym.guidelines");
      localStorage.setItem("lm-gym.guidelines", "seen");
      return before;
    } catch {
      return null;
    }
  }
}
