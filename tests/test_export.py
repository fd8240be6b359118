"""Taking a policy home: plain transformers give its greedy tokens, in a process that knows nothing of LM Gym."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from ppo_runs import count_a, environment, ppo, problem
from safetensors.torch import load_file
from small_models import small_lm, small_mdp

from lm_gym import export, tiny
from lm_gym.agents import PPO
from lm_gym.cli import main
from lm_gym.env import LMAlignEnv
from lm_gym.loading import load_model
from lm_gym.run_files import read_jsonl

SMALL = {"batch_size": 16, "minibatch_size": 8, "epochs": 2, "learning_rate": 1e-2}

PLAIN = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
folder, prompts = sys.argv[1], json.loads(sys.argv[2])
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
out = []
for prompt in prompts:
    ids = tokenizer(prompt, return_tensors="pt")
    made = model.generate(**ids, do_sample=False)[0, ids["input_ids"].shape[1]:].tolist()
    out.append(made)
assert "lm_gym" not in sys.modules
print(json.dumps(out))
"""


def in_a_fresh_process(folder: Path, prompts: list[str]) -> list[list[int]]:
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(folder), json.dumps(prompts)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found: list[list[int]] = json.loads(done.stdout)
    return found


def test_lm_gym_export_gives_plain_transformers_the_same_greedy_tokens_on_50_prompts(tmp_path: Path) -> None:
    """A run of the command line on `tiny`: its lengths and EOS ids come with the folder, no argument names them."""
    run, out = tmp_path / "run", tmp_path / "model"
    flags = "--total-tokens 700 --batch-size 16 --minibatch-size 8 --max-new-tokens 12 --eval-texts 0 --threads 1"
    assert main(["train", "ppo", "--out", str(run), *flags.split(), "--learning-rate", "1e-3"]) == 0
    assert main(["export", "--run", str(run), "--out", str(out)]) == 0
    prompts = [row["prompt"] for row in tiny.prompts("reviews", "test")][:50]
    agent = PPO.load(run, gym.make("LMAlign-v0", max_new_tokens=12))
    expected = [c.tokens for c in agent.complete(prompts, greedy=True)]
    assert in_a_fresh_process(out, prompts) == expected
    untrained = PPO(gym.make("LMAlign-v0", max_new_tokens=12)).complete(prompts, greedy=True)
    assert [c.tokens for c in untrained] != expected, "training moved them"
    _check_card(run, out)
    _check_going_on(run, out)


def _check_card(run: Path, out: Path) -> None:
    card, last = (out / "README.md").read_text(), read_jsonl(run / "metrics.jsonl")[-1]
    about = json.loads((out / "lm_gym.json").read_text())
    for word in ("`vader`", "`tiny`", about["reward_model_hash"], about["reference_hash"], "lm-gym", "## Limits"):
        assert word in card
    assert f"| KL to the reference, nats a text | {last['objective/kl']:.4g} |" in card
    assert f"| length, tokens | {last['length/mean']:.4g} |" in card
    sample = read_jsonl(run / "samples.jsonl")[-1]
    assert sample["prompt"] in card and sample["completion"].strip().splitlines()[0] in card
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == list(small_eos()) and generation["max_new_tokens"] == 12
    assert set(load_file(str(out / "value_head.safetensors"))) == {"value_head.weight", "value_head.bias"}
    assert main(["export", "--run", str(run), "--out", str(out)]) == 0, "again, over its own"
    assert main(["export", "--run", str(run), "--out", str(run)]) == 2, "and over nothing else"
    assert main(["export", "--run", str(run), "--out", str(out), "--adapter"]) == 2


def small_eos() -> tuple[int, ...]:
    from lm_gym.loading import load_model

    return load_model("tiny").eos_ids


def _check_going_on(run: Path, out: Path) -> None:
    """PPO.load(run).learn goes on; an exported model is a start whose KL is 0, unless the reference is named."""
    agent = PPO.load(run, env=gym.make("LMAlign-v0", max_new_tokens=12))
    before = agent.updates
    assert agent.learn(100).updates > before
    with pytest.warns(UserWarning, match=r"was aligned before, against 'tiny'.*the KL starts again from zero"):
        again = gym.make("LMAlign-v0", model=str(out), max_new_tokens=12)
    assert PPO(again).evaluate(n=16)["objective/kl"] == pytest.approx(0, abs=1e-4)
    named = PPO(gym.make("LMAlign-v0", model=str(out), reference="tiny", max_new_tokens=12))
    assert named.evaluate(n=16)["objective/kl"] > 0.01


@pytest.mark.parametrize("merge", [True, False])
def test_lora_merged_or_as_an_adapter(merge: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = small_lm()
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    mdp = problem_of(tmp_path / "base")
    agent = PPO(LMAlignEnv(mdp=mdp), lora_rank=4, **SMALL)
    agent.learn(300)
    out = agent.save_pretrained(tmp_path / "out", merge=merge)
    assert (out / "adapter_model.safetensors").exists() != merge and (out / "model.safetensors").exists() == merge
    model = AutoModelForCausalLM.from_pretrained(out)
    for prompt, c in zip(("abc", "head"), agent.complete(["abc", "head"], greedy=True), strict=True):
        ids = base.tokenizer(prompt, return_tensors="pt")
        made = model.generate(**ids, do_sample=False, max_new_tokens=8, eos_token_id=2, pad_token_id=0)
        assert made[0, ids["input_ids"].shape[1] :].tolist() == c.tokens
    again = agent.save_pretrained(out, merge=not merge)
    assert (again / "model.safetensors").exists() != merge, "nothing of the other form stays"


def test_an_adapters_folder_is_a_model_whose_training_is_exported_whole(tmp_path: Path) -> None:
    """Its base under it, the adapter merged: saved as ``transformers`` would, the adapter alone would be left."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    base, folder = small_lm(seed=3), tmp_path / "adapter"
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(plain, lora).eval()
    wrapped.save_pretrained(folder)
    ids = torch.tensor([[3, 4, 5]])
    live = AutoModelForCausalLM.from_pretrained(folder)  # transformers' own way: layers of adapters in the model
    for mdp in (problem_of(folder), small_mdp(load_model(live, tokenizer=base.tokenizer), reward_model=count_a)):
        with torch.no_grad():
            torch.testing.assert_close(mdp.reference.model(ids).logits, wrapped(ids).logits, atol=1e-4, rtol=0)
        agent = PPO(LMAlignEnv(mdp=mdp), **SMALL)
        agent.learn(300)
        model = AutoModelForCausalLM.from_pretrained(agent.save_pretrained(tmp_path / "out"))
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, agent.policy.lm.model(ids).logits, atol=1e-4, rtol=0)
        shutil.rmtree(tmp_path / "out")
    agent = PPO(LMAlignEnv(mdp=small_mdp(load_model(wrapped, tokenizer=base.tokenizer))), **SMALL)
    with pytest.raises(ValueError, match="this one trained the weights below the adapters too"):
        agent.save_pretrained(tmp_path / "out", merge=False)
    agent = PPO(LMAlignEnv(mdp=problem_of(folder)), lora_rank=2, **SMALL)
    with pytest.raises(ValueError, match="expected a base that is a whole model, got '.*adapter', an adapter"):
        agent.save_pretrained(tmp_path / "out", merge=False)
    config = json.loads((folder / "adapter_config.json").read_text())
    for named, message in (
        (None, "names no base|has no base_model_name_or_path"),
        (str(folder), "is an adapter or has one"),
        (str(tmp_path / "nowhere"), "model's base: could not load '.*nowhere', there is no such"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": named}))
        with pytest.raises(ValueError, match=message):
            load_model(folder)


def problem_of(folder: Path) -> Any:
    from ppo_runs import count_a

    from lm_gym.mdp import AlignmentMDP

    return AlignmentMDP(model=str(folder), prompts=["abc", "head"], reward_model=count_a, max_new_tokens=8)


def test_a_run_whose_vocabulary_lacks_most_letters_is_sampled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The problem is made again with a prompt that nobody reads, which such a tokenizer must not be asked to write."""
    base = small_lm()
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "p.jsonl").write_text('{"prompt": "abc"}\n')
    made = ["--model", str(tmp_path / "base"), "--prompts", str(tmp_path / "p.jsonl"), "--max-new-tokens", "4"]
    sizes = ["--total-tokens", "16", "--batch-size", "8", "--minibatch-size", "8", "--eval-texts", "8"]
    run = str(tmp_path / "run")
    assert main(["train", "rloo", *made, "--reward", "length?target=3", *sizes, "--out", run]) == 0
    assert main(["sample", "--model", run, "--prompt", "abc"]) == 0, capsys.readouterr().err


def test_several_eos_ids_a_chat_template_and_a_critic_travel(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    lm = small_lm()
    lm.model.generation_config.eos_token_id = [2, 7]
    lm.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    from lm_gym.models import TransformersLM

    mdp = small_mdp(TransformersLM(lm.model, lm.tokenizer, "llama"), temperature=0.7, min_new_tokens=2, stop="zz")
    agent = PPO(LMAlignEnv(mdp=mdp), critic="separate", **SMALL)
    out = agent.save_pretrained(tmp_path / "out")
    made = GenerationConfig.from_pretrained(out)
    assert made.eos_token_id == [2, 7] and made.pad_token_id == 0
    assert (made.do_sample, made.temperature, made.top_k, made.top_p) == (True, 0.7, 0, 1.0)
    assert (made.min_new_tokens, made.max_new_tokens) == (2, 8)
    assert AutoTokenizer.from_pretrained(out).chat_template == lm.tokenizer.chat_template
    assert {k.split(".")[0] for k in load_file(str(out / "value_head.safetensors"))} == {"critic"}
    card = (out / "README.md").read_text()
    assert "Not trained: no update was made." in card and "`stop_strings`" in card


def test_push_to_hub_is_asked_for_and_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    calls: list[tuple[str, dict[str, Any]]] = []

    class Api:
        def create_repo(self, name: str, **options: Any) -> None:
            calls.append((name, options))

        def upload_folder(self, **options: Any) -> None:
            calls.append(("upload", options))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    agent = ppo(environment(problem()))
    agent.save_pretrained(tmp_path / "out")
    assert calls == []
    agent.save_pretrained(tmp_path / "out", push_to_hub="me/mine")
    upload = {"repo_id": "me/mine", "folder_path": str(tmp_path / "out")}
    assert calls == [("me/mine", {"private": True, "exist_ok": True}), ("upload", upload)]


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a transformers policy, got TableLM"):
        PPO(gym.make("LMAlignExact-v0")).save_pretrained(tmp_path / "out")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something that is no exported model"):
        ppo(environment(problem())).save_pretrained(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_full_disk_leaves_the_export_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def full(_agent: Any, path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    agent, out = ppo(environment(problem())), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(export, "_save_values", full)  # behind the weights, which have been written by then
        with pytest.raises(OSError, match="No space left"):
            agent.save_pretrained(out)
        assert list(tmp_path.iterdir()) == []  # nothing that the next export would refuse
    agent.save_pretrained(out)
    (out / "notes.txt").write_text("mine")
    (out / "adapter_model.safetensors").write_bytes(b"of an earlier export")
    before = contents()
    agent.learn(30)
    with monkeypatch.context() as patch:
        patch.setattr(export, "_save_values", full)
        with pytest.raises(OSError, match="No space left"):
            agent.save_pretrained(out)
    assert contents() == before and list(tmp_path.iterdir()) == [out]
    agent.save_pretrained(out)
    after = contents()
    assert after["model.safetensors"] != before["model.safetensors"] and after["notes.txt"] == b"mine"
    assert "adapter_model.safetensors" not in after
