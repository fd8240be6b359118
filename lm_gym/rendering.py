"""What a person sees of an episode: plain text, or the text as it grows with every token tinted by its KL."""

from __future__ import annotations

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


class Console:
    """Draws the episode in place with rich."""

    def __init__(self) -> None:
        from rich.live import Live

        self.live: Any = Live(auto_refresh=False)
        self.live.start()

    def draw(self, stepper: Stepper, last: Outcome | None, nats: list[float]) -> None:
        """Show the episode: ``nats`` holds one number a token so far (see :func:`tint`)."""
        from rich.text import Text

        prompt = stepper.prompts[0]
        assert prompt is not None
        text, shown = Text(prompt.text, style="dim"), ""
        for i, value in enumerate(nats):
            whole = stepper.lm.decode(stepper.tokens[0][: i + 1])
            # bytes of an unfinished character decode to a replacement mark, which the next token takes back
            settled = whole.rstrip("\ufffd")
            text.append(settled[len(shown) :], style=tint(value))
            shown = max(shown, settled, key=len)
        if last is not None and last.ended[0]:
            text.append(f"\n{last.reasons[0]}, {len(nats)} tokens, score ", style="bold")
            text.append(f"{last.scores[0]:+.3f}", style="bold green" if last.scores[0] > 0 else "bold red")
            text.append(f", KL to the reference {sum(nats):.1f} nats" if last.logprobs is not None else "")
            text.append("\n" + ("KL" if last.logprobs is not None else "surprise") + " of a token:", style="dim")
            for value, label in LEGEND:
                text.append(" ").append(label, style=tint(value))
        self.live.update(text, refresh=True)
        if last is not None and last.ended[0]:
            self.live.stop()
            self.live.start()

    def close(self) -> None:
        self.live.stop()
