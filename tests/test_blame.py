"""Blame: planted faults stop training, the dump names the token, and a replay shows the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from ppo_runs import environment, ppo, problem

from lm_gym import blame, kl, replay
from lm_gym.agents import DPO, PPO
from lm_gym.cli import main
from lm_gym.guard import Guard

SMALL = {"batch_size": 16, "minibatch_size": 8, "epochs": 2}


def faulty(plant: Any, **config: Any) -> PPO:
    """An agent whose third rollout is changed before the update."""
    agent = ppo(environment(problem()), **{**SMALL, **config})
    update = agent.update

    def changed(rollout: Any) -> dict[str, float]:
        if agent.updates == 2:
            plant(agent, rollout)
        return update(rollout)

    agent.update = changed  # type: ignore[method-assign]
    return agent


def stop(agent: Any, out: Path) -> tuple[blame.Suspect, Path, dict[str, Any]]:
    """The error, the dump's folder and what it says of the token."""
    with pytest.raises(blame.Suspect) as found:
        agent.learn(10_000, out=out, save_every=1)
    folder = out / "blame" / "update-3"
    assert f"lm-gym replay {folder}" in str(found.value)
    assert {p.suffix for p in folder.iterdir()} == {".json", ".safetensors"}
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["step-1", "step-2"], "the last one is whole"
    return found.value, folder, replay.read(folder)[1]["token"]


def test_a_log_prob_that_does_not_match(tmp_path: Path) -> None:
    planted: dict[str, Any] = {}

    def plant(agent: Any, rollout: Any) -> None:
        planted.update(token=int(rollout.tokens[3, 0]), text=rollout.texts[3], true=float(rollout.logprobs[3, 0]))
        rollout.logprobs[3, 0] -= 0.5

    agent = faulty(plant, minibatch_size=16)
    error, folder, token = stop(agent, tmp_path)
    assert "the log-prob of decoding expected within 0.01 of that of teacher forcing" in error.reason and error.ours
    assert (token["token"], token["text"], token["place"]) == (planted["token"], planted["text"], 0)
    assert token["logprob_drawn"] == pytest.approx(planted["true"] - 0.5)
    assert token["logprob_now"] == pytest.approx(planted["true"], abs=1e-4)
    assert token["mask"][0] == 1 and sum(token["mask"]) == len(token["tokens"])
    assert "after update 2" in token["drawn_with"] and "8 optimizer steps" not in token["drawn_with"]
    for word in (repr(planted["text"]), f"Token 0 ({planted['token']}", str(token["logprob_now"])):
        assert word in str(error)
    again = replay.replay(folder, ppo(environment(problem()), **SMALL))
    assert again.same, "the same weights, the same batch: the same numbers to the bit"
    at = int(((again.texts == token["row"]) & (again.places == 0)).nonzero())
    assert float(again.logprobs[at]) == token["logprob_now"] and float(again.drawn[at]) == token["logprob_drawn"]
    assert float(again.ref_logprobs[at]) == pytest.approx(token["ref_logprob"], abs=1e-4)
    assert (again.kls >= -1e-6).all()


def test_an_exploding_ratio_and_a_nan(tmp_path: Path) -> None:
    def explode(agent: Any, rollout: Any) -> None:
        rollout.logprobs[rollout.response_mask] -= 25.0

    error, folder, token = stop(faulty(explode, ratio_tolerance=1e9), tmp_path / "ratio")
    assert "ratio to the policy that drew it expected below e^20" in error.reason and not error.ours
    assert token["logprob_now"] - token["logprob_drawn"] > 20

    def nan(agent: Any, rollout: Any) -> None:
        with torch.no_grad():
            next(agent.policy.lm.parameters()).fill_(torch.nan)

    error, folder, token = stop(faulty(nan), tmp_path / "nan")
    assert token["logprob_now"] == "nan" and token["logprob_drawn"] < 0
    again = replay.replay(folder, ppo(environment(problem()), **SMALL))
    assert again.same and bool(again.logprobs.isnan().all())


def test_a_gradient_that_is_not_finite_never_reaches_the_weights() -> None:
    agent = faulty(lambda agent, rollout: rollout.rewards.mul_(1e38), whiten_advantages=False)
    with pytest.raises(blame.Suspect, match="update 3 stopped"):
        agent.learn(10_000)
    assert all(bool(torch.isfinite(p).all()) for p in agent.policy.lm.parameters())
    dpo = DPO(gym.make("LMAlignExact-v0"), batch_size=8)
    dpo.learn(100)
    with torch.no_grad():
        dpo.policy.lm.logits[0, 0] = torch.nan
    before = {k: p.detach().clone() for k, p in dpo.policy.named_parameters()}
    with pytest.raises(
        blame.Suspect, match="the log-prob of a text expected finite, got nan, of '.*' after the prompt"
    ):
        dpo.learn(100)
    assert all(torch.equal(p.isnan(), before[k].isnan()) for k, p in dpo.policy.named_parameters())


def test_what_a_rollout_must_not_hold(tmp_path: Path) -> None:
    agent = ppo(environment(problem()), **SMALL)
    rollout, _ = agent.collect()
    for name, number, ours in (("logprobs", torch.nan, False), ("logprobs", 0.1, True), ("rewards", torch.inf, False)):
        part = rollout.select(torch.arange(len(rollout)))
        getattr(part, name)[5, 0] = number
        with pytest.raises(blame.Suspect, match=f"{name} expected finite.*, got") as found:
            blame.check_rollout(part)
        assert found.value.part is not None and found.value.part.texts == [rollout.texts[5]]
        assert (found.value.place, found.value.ours) == (0, ours or number == torch.inf)
    blame.check_rollout(rollout)


def test_a_negative_exact_kl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = ppo(environment(problem()), **SMALL)
    agent.learn(200)
    exact = kl.exact_and_entropy
    monkeypatch.setattr(kl, "exact_and_entropy", lambda p, q: (exact(p, q)[0] - 0.5, exact(p, q)[1]))
    with pytest.raises(blame.Suspect, match="the exact KL of a state expected at least 0, got -0") as found:
        agent.learn(10_000, out=tmp_path)
    assert found.value.ours
    (folder,) = (tmp_path / "blame").iterdir()
    assert {"hidden", "ref_hidden"} <= set(replay.read(folder)[0]["batch"]), "what the KL was computed from"


def test_a_guard_goes_on_after_an_accident_and_not_after_a_contradiction(tmp_path: Path) -> None:
    def explode(agent: Any, rollout: Any) -> None:
        if not agent.watch.rollbacks:
            rollout.logprobs[rollout.response_mask] -= 25.0

    agent = faulty(explode, ratio_tolerance=1e9)
    agent.learn(600, guard=Guard(n=8), out=tmp_path)
    assert agent.watch is not None and agent.watch.rollbacks == 1
    assert (tmp_path / "blame" / "update-3" / "state.json").is_file(), "the dump is there all the same"

    def mismatch(agent: Any, rollout: Any) -> None:
        rollout.logprobs[:, 0] -= 0.5

    with pytest.raises(blame.Suspect, match="teacher forcing"):
        faulty(mismatch).learn(600, guard=Guard(n=8))


def test_lm_gym_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a run of the command line: the table has what was recorded beside what comes out now."""
    out = tmp_path / "run"
    flags = (
        "--total-tokens 60 --batch-size 4 --minibatch-size 4 --epochs 1 --max-new-tokens 6 --eval-texts 0 --threads 1"
    )
    assert main(["train", "ppo", "--out", str(out), *flags.split()]) == 0
    import lm_gym.cli.sample as sample

    agent = sample.load_run(out)
    rollout, _ = agent.collect()
    error = blame.Suspect("planted", rollout, 1, 2, rollout.logprobs[rollout.response_mask])
    folder = blame.dump(agent, error, out)
    capsys.readouterr()
    assert main(["replay", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "planted" in text and ("bit for bit" in text or "the log-probs differ" in text)
    assert f"{float(rollout.logprobs[1, 2]):.6f}" in text
    assert main(["replay", str(out / "checkpoints")]) == 2
    state = json.loads((folder / "state.json").read_text())
    assert state["replay"] == f"lm-gym replay {folder}"
