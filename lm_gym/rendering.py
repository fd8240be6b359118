"""What a person sees of an episode: plain text, or the text as it grows with every token tinted by its surprise."""

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


def tint(ref_logprob: float) -> str:
    """A rich style for a token by what the reference thought of it: the rarer, the warmer.

    −log π_ref in nats is the most that the token can cost in KL, paid if the policy was sure of it.
    """
    nats = -ref_logprob
    return "default" if nats < 1 else "yellow" if nats < 3 else "dark_orange" if nats < 6 else "bold red"


class Console:
    """Draws the episode in place with rich."""

    def __init__(self) -> None:
        from rich.live import Live

        self.live: Any = Live(auto_refresh=False)
        self.live.start()

    def draw(self, stepper: Stepper, last: Outcome | None, ref_logprobs: list[float]) -> None:
        from rich.text import Text

        prompt = stepper.prompts[0]
        assert prompt is not None
        text, shown = Text(prompt.text, style="dim"), ""
        for i, ref_logprob in enumerate(ref_logprobs):
            whole = stepper.lm.decode(stepper.tokens[0][: i + 1])
            text.append(whole[len(shown) :], style=tint(ref_logprob))
            shown = whole
        if last is not None and last.ended[0]:
            text.append(f"\n{last.reasons[0]}  score {last.scores[0]:+.3f}", style="bold")
        self.live.update(text, refresh=True)
        if last is not None and last.ended[0]:
            self.live.stop()
            self.live.start()

    def close(self) -> None:
        self.live.stop()
