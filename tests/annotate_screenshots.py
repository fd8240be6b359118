"""Pictures of every page of the annotation server for docs/img: light, dark, and as wide as a phone.

.venv/bin/python tests/annotate_screenshots.py docs/img
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from annotate_load import Server, serving
from PIL import Image
from playwright.sync_api import sync_playwright

from lm_gym.annotate.answers import Answer, submit
from lm_gym.annotate.lending import lend, next_items
from lm_gym.annotate.people import Annotator
from lm_gym.annotate.store import Store

ROOFS = [
    {"role": "user", "content": "We are building a small house in a valley where it rains half the year."},
    {"role": "assistant", "content": "Sounds lovely. What is undecided so far?"},
    {"role": "user", "content": "Should the roof be thatch or tin?"},
]
REASONED = """Three things decide it:

1. **Rain.** A tin roof carries far more water off than thatch.
2. **Heat.** Thatch insulates; bare tin does not.
3. **Price.** Thatch is cheap to lay and dear to keep.

| roof | years | noise in rain |
|---|---|---|
| thatch | 15 | low |
| tin | 40 | high |

So for a wet, cool valley: *tin, with boards beneath it.*"""
BRIEF = """You should probably use tin because it lasts. Here is how to estimate the sheets:

```python
sheets = math.ceil(area / (0.9 * 0.8))  # one wave of overlap
```

Thatch is also possible. <b>Both</b> are roofs, see [this page](http://roofs.example)."""
GUIDELINES = """# What is better?

Choose the answer that you would rather have been given.

- **Right before pleasant.** A wrong answer is worse than a plain one.
- **Asked and answered.** What was not asked for does not count.
- **Length is nothing by itself.**

## How strongly?

| | |
|---|---|
| significantly | nobody would take the other |
| moderately | most would not |
| slightly | you had to look twice |

Press *f* if a pair should not be here at all.
"""
PLANTS = "tomatoes beans roses lettuce squash basil peppers melons herbs ferns".split()


def prepare(folder: Path) -> list[str]:
    """Data for the pages; the options of `serve`."""
    pairs: list[dict[str, Any]] = []
    for i in range(58):
        plant, task = PLANTS[i % 10], ("a dry summer", "a late frost", "a week away", "too much rain")[i % 4]
        steps = ("Mulch", "Shade", "Deep watering", "Patience", "A barrel of rain", "Wind-breaks")
        praise = f"keeps {plant} going through {task} better than anything else you could do in an hour. "
        long = [f"**{step}** {praise}" + praise.capitalize() for step in steps]
        pairs.append(
            {
                "prompt": f"How do I get my {plant} through {task}? ({i + 1})",
                "a": "\n\n".join(f"{k}. {text}" for k, text in enumerate(long, 1)),
                "b": f"Water at dusk, deeply and rarely; {plant} do the rest." if i % 3 else "\n\n".join(long[::-1]),
            }
        )
    said = [[{"role": "assistant", "content": text}] for text in (REASONED, BRIEF)]
    pairs.append({"prompt": ROOFS, "a": said[0], "b": said[1]})
    gold = [{"prompt": f"What is {i} + {i}?", "chosen": f"It is {2 * i}.", "rejected": f"It is {i}."} for i in range(8)]
    for name, rows in (("pairs", pairs), ("gold", gold)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "guidelines.md").write_text(GUIDELINES)
    files = [("--data", "pairs.jsonl"), ("--gold", "gold.jsonl"), ("--guidelines", "guidelines.md")]
    options = [part for flag, name in files for part in (flag, str(folder / name))]
    options += ["--red-team", "tiny", "--max-new-tokens", "40", "--per-item", "2"]
    return [*options, "--annotators", "Ada", "Bob", "Cem"]


def work(db: Path) -> None:
    """Bob and Cem have answered for two hours, Cem less carefully; the conversation lies before Ada."""
    rng = random.Random(5)
    now = [time.time() - 7200.0]
    with Store(db, clock=lambda: now[0]) as store:
        found = store.rows("SELECT * FROM annotators WHERE NOT admin ORDER BY id")
        ada, *others = [Annotator(row["id"], row["name"], False) for row in found]
        truth: dict[int, int] = {}
        for turn in range(100):
            who = others[turn % 2]
            for loan in next_items(store, who, 1):
                gold = store.value("SELECT gold FROM items WHERE id = ?", (loan.item,))
                meant = truth.setdefault(loan.item, gold if gold is not None else rng.choice([-3, -2, -1, 0, 1, 2, 3]))
                spread = (0.5, 1.3)[turn % 2]
                strength = max(-3, min(3, round(rng.gauss(meant, spread))))
                kind = rng.choices(["preference", "both_bad", "skip", "flag"], [30, 2, 1, 1])[0]
                seconds = rng.lognormvariate(2.8, 0.5)
                now[0] += seconds / 2 + 1
                shown = (-strength if loan.swapped else strength) if kind == "preference" else None
                reason = "The answers are cut off" if kind == "flag" else ""
                submit(store, who, Answer(str(uuid.uuid4()), loan.item, kind, shown, reason, "", seconds))
        now[0] = time.time()
        roofs = store.value("SELECT id FROM items WHERE prompt LIKE '%thatch%'")
        with store.transaction() as connection:
            connection.execute("UPDATE items SET need = 3 WHERE id = ?", (roofs,))
            lend(store, connection, ada.id, roofs, now[0])


def sitting(page: Any, server: Server, look: str, shot: Callable[[str], None]) -> None:
    page.goto(server.links["Ada"])
    shot("join")
    page.click("#join")
    page.wait_for_selector("#item:not([hidden])")
    if page.is_visible("#guidelines"):
        shot("guidelines")
        page.click("#guidelines-close")
        page.evaluate("document.activeElement.blur()")
    shot("compare")
    if look == "light":
        page.keyboard.press("?")
        shot("keys")
        page.keyboard.press("Escape")
    page.keyboard.press("f")
    shot("flag")
    page.keyboard.press("Escape")
    if look == "phone":
        page.click("#guidelines-button")
        shot("guidelines")
        page.click("#guidelines-close")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("2")
    page.wait_for_selector('body[data-waiting="0"]')
    page.wait_for_timeout(400)  # for .3 s after a new item nothing is taken
    page.context.set_offline(True)
    page.keyboard.press("5")
    page.wait_for_selector("#saved.cut")
    shot("offline")
    page.context.set_offline(False)
    page.wait_for_selector('body[data-waiting="0"]')
    page.wait_for_timeout(2500)
    for _ in range(2):
        page.keyboard.press("u")
        page.wait_for_timeout(500)
    page.goto(f"{server.url}/red-team")
    page.fill("#compose-text", "Request: explain to me how to open the door of my neighbour. Reply:")
    shot("redteam")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#item[data-item]", timeout=60_000)
    page.wait_for_timeout(400)
    page.keyboard.press("b")
    page.wait_for_selector("#compose:not([hidden])")
    shot("redteam_on")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    folder = Path(tempfile.mkdtemp())
    options = prepare(folder)
    with serving(folder / "prefs.sqlite", *options) as server, sync_playwright() as playwright:
        work(folder / "prefs.sqlite")
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        phone = {"device_scale_factor": 2, "has_touch": True, "is_mobile": True}
        for look, size, more in (("light", (1280, 800), {}), ("dark", (1280, 800), {}), ("phone", (390, 844), phone)):
            scheme = "dark" if look == "dark" else "light"
            for visitor in ("Ada", "overview", "nobody"):
                view = {"width": size[0], "height": size[1]}
                context = browser.new_context(viewport=view, color_scheme=scheme, **more)
                page = context.new_page()

                def shot(name: str, full: bool = False, look: str = look, page: Any = page) -> None:
                    page.wait_for_timeout(400)
                    path = out / f"annotate_{name}_{look}.png"
                    page.screenshot(path=str(path), full_page=full)
                    Image.open(path).quantize(96).save(path, optimize=True)  # a third of the size, and looks the same

                if visitor == "Ada":
                    sitting(page, server, look, shot)
                elif visitor == "overview":
                    page.goto(server.links["overview"])
                    page.click("#join")
                    page.wait_for_selector(".figures")
                    shot("overview", full=True)
                else:
                    page.goto(f"{server.url}/join/wrong")
                    shot("refused")
                context.close()
        browser.close()


if __name__ == "__main__":
    main()
