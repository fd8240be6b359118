"""Judges to plug in: one file a kind of reward model."""

if __name__ != "lm_gym.reward_models":
    raise ImportError(
        f"reward_models/ was imported as {__name__!r}, but it is installed inside the package: import "
        "lm_gym.reward_models (after `pip install -e .` in a checkout)."
    )
