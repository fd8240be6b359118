"""What pyproject.toml cannot say: packages found under two roots (lm_gym/, and two folders installed inside it)."""

from setuptools import find_packages, setup


def mounted(folder: str) -> list[str]:
    """The packages of a top-level folder, under the names that they are installed by."""
    return [f"lm_gym.{folder}"] + [f"lm_gym.{folder}.{name}" for name in find_packages(folder)]


setup(packages=find_packages(include=["lm_gym", "lm_gym.*"]) + mounted("agents") + mounted("reward_models"))
