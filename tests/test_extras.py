"""What errors tell users to install works where LM Gym came from."""

from pathlib import Path

import pytest

from lm_gym import extras

ROOT = Path(__file__).parents[1]


def test_a_checkout_installs_its_own_extra() -> None:
    assert extras.install_command("track") == f"pip install -e '.[track]' (in {ROOT})"


def test_elsewhere_the_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(extras, "CHECKOUT", tmp_path)
    assert extras.install_command("peft") == "pip install 'peft>=0.17'"
    assert set(extras.install_command("track").split()[2:]) == {
        "'tensorboard>=2.17'",
        "'trackio>=0.2'",
        "'wandb>=0.18'",
    }


def test_no_hint_and_no_page_names_the_bare_package() -> None:
    """It is on no index: whoever follows such a line installs what somebody else put there."""
    files = [
        f for where in ("lm_gym", "agents", "reward_models", "docs", "examples") for f in (ROOT / where).rglob("*")
    ]
    texts = [f for f in [*files, ROOT / "README.md"] if f.suffix in (".py", ".md", ".html")]
    assert len(texts) > 100
    assert [str(f) for f in texts if "pip install 'lm-gym" in f.read_text(encoding="utf-8")] == []
