"""What a person sees of an episode: plain text, or the text as it grows with every token tinted by its KL."""

from __future__ import annotations

import atexit
import unicodedata
from typing import Any

from lm_gym.stepping import Outcome, Stepper


def ansi(stepper: Stepper, last: Outcome | None) -> str:
    """Prompt, a bar, the completion so far; after the end its finish reason and score."""
    prompt = stepper.prompts[0]
    if prompt is None:
        return "(no episode: call reset())"
    line = f"{prompt.text} | {stepper.lm.decode(stepper.tokens[0])}"
    if last is not None and last.ended[0]:
        line += f"  [{last.reasons[0]}, score {last.scores[0]:+.3f}]"
    return line


def tint(nats: float) -> str:
    """A rich style for a token by its KL, log π − log π_ref in nats: the further from the reference, the warmer.

    Green is a token that the agent likes less than the reference does. Where the agent reports no log-probs, log π is
    taken as 0, which leaves the reference's surprise: the most that the token can cost.
    """
    if nats < -1:
        return "green"
    return "default" if nats < 1 else "yellow" if nats < 3 else "dark_orange" if nats < 6 else "bold red"


LEGEND = ((0.0, "under 1"), (2.0, "1"), (4.0, "3"), (9.0, "6 nats and more"))
"""Values to show the tints of, and what to write in them."""


def printable(text: str) -> str:
    """The text without control characters: a model that writes an escape byte must not steer the terminal."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "·" for c in text)


class Console:
    """Draws the episode in place with rich; a finished one stays where it is."""

    def __init__(self) -> None:
        self.live: Any = None

    def draw(self, stepper: Stepper, last: Outcome | None, nats: list[float]) -> None:
        """Show the episode: ``nats`` holds one number a token so far (see :func:`tint`)."""
        from rich.live import Live

        if self.live is None:
            self.live = Live(auto_refresh=False)
            self.live.start()
            atexit.register(self.close)  # or a program that ends in mid-episode leaves no cursor
        self.live.update(_drawn(stepper, last, nats), refresh=True)
        if last is not None and last.ended[0]:
            self.close()

    def close(self) -> None:
        """Leave what is drawn, and give the cursor back."""
        if self.live is not None:
            self.live.stop()
            self.live = None
            atexit.unregister(self.close)


def _drawn(stepper: Stepper, last: Outcome | None, nats: list[float]) -> Any:
    from rich.text import Text

    prompt = stepper.prompts[0]
    assert prompt is not None
    text, shown = Text().append(printable(prompt.text), style="dim"), ""
    for i, value in enumerate(nats):
        # bytes of an unfinished character decode to a replacement mark, which the next token takes back
        settled = stepper.lm.decode(stepper.tokens[0][: i + 1]).rstrip("\ufffd")
        text.append(printable(settled[len(shown) :]), style=tint(value))
        shown = max(shown, settled, key=len)
    if last is not None and last.ended[0]:
        reported = last.logprobs is not None
        text.append(f"\n{last.reasons[0]}, {len(nats)} tokens, score ", style="bold")
        text.append(f"{last.scores[0]:+.3f}", style="bold green" if last.scores[0] > 0 else "bold red")
        text.append(f", log π/π_ref {sum(nats):+.1f} nats" if reported else f", −log π_ref {sum(nats):.1f} nats")
        text.append("\nKL of a token:" if reported else "\nsurprise of a token:", style="dim")
        for value, label in LEGEND:
            text.append("  ").append(label, style=tint(value))
    return text
