"""lm-gym doctor: what it says of a good installation and of a broken one."""

from __future__ import annotations

from typing import Any

import pytest

from lm_gym.cli import doctor, main


def test_doctor_finds_this_installation_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "nothing is broken" in text
    assert "ok      tiny " in text
    assert "ok      torch " in text


def test_doctor_says_what_to_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import importlib.metadata

    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "datasets":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.9" if name == "gymnasium" else real(name)

    def check_sick() -> Any:
        raise RuntimeError("the check\nitself")

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_packages, check_sick))
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "-> pip install 'datasets>=3.0'" in text
    assert "-> pip install -U 'gymnasium>=1.1'" in text
    assert "BROKEN  sick               RuntimeError: the check itself" in text
    assert "3 broken" in text
