"""Agents made for language models: one file an algorithm."""

if __name__ != "lm_gym.agents":
    raise ImportError(
        f"agents/ was imported as {__name__!r}, but it is installed inside the package: import lm_gym.agents "
        "(after `pip install -e .` in a checkout). A top-level package `agents` is somebody else's."
    )
