"""Files from strangers: mutated checkpoints, models in pickles, prompt files of any bytes. Nothing wrong in silence."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_models import letter_reward, small_lm, small_mdp

from lm_gym import checkpoints
from lm_gym.agents import PPO
from lm_gym.env import LMAlignEnv
from lm_gym.loading import Unloadable, load_model
from lm_gym.mdp import AlignmentMDP
from lm_gym.prompts import load_prompts

BOUNDED = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

# ---- checkpoints --------------------------------------------------------------------------------------------------


def reseal(at: Path) -> None:
    """New hashes over whatever is there, as somebody would write them who means harm."""
    state = json.loads((at / "state.json").read_text())
    state.pop(checkpoints.INTEGRITY, None)
    files = {p.name: checkpoints._file_digest(p) for p in sorted(at.glob("*.safetensors"))}
    digest = checkpoints._digest(state) if "NaN" not in json.dumps(state) else ""
    state[checkpoints.INTEGRITY] = {"files": files, "state": digest}
    (at / "state.json").write_text(json.dumps(state, indent=1))


def mutate_bytes(at: Path, draw: random.Random) -> str:
    path = draw.choice(sorted(p for p in at.iterdir() if p.stat().st_size))
    data = bytearray(path.read_bytes())
    kind = draw.choice(["flip", "cut", "grow", "zero"])
    if kind == "flip":
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        data = data[: draw.randrange(len(data))]
    elif kind == "grow":
        data += bytes([draw.randrange(256)])
    else:
        data = bytearray(len(data))
    path.write_bytes(bytes(data))
    return f"{kind} {path.name}"


def mutate_tensors(at: Path, draw: random.Random) -> str:
    path = at / f"{draw.choice(['policy', 'optimizer'])}.safetensors"
    tensors = load_file(str(path))
    name = draw.choice(sorted(tensors))
    kind = draw.choice(["drop", "add", "dtype", "shape", "nan", "inf", "rename", "file"])
    if kind == "drop":
        del tensors[name]
    elif kind == "add":
        tensors["more"] = torch.ones(2)
    elif kind == "dtype":
        tensors[name] = tensors[name].double()
    elif kind == "shape":
        tensors[name] = tensors[name].flatten().repeat(2)
    elif kind in ("nan", "inf"):
        tensors[name] = torch.full_like(tensors[name], float(kind))
    elif kind == "rename":
        tensors["other"] = tensors.pop(name)
    else:
        save_file(tensors, str(at / "stranger.safetensors"))
    save_file(tensors, str(path))
    reseal(at)
    return f"{kind} {name} of {path.name}"


def mutate_state(at: Path, draw: random.Random) -> str:
    state = json.loads((at / "state.json").read_text())
    key = draw.choice(sorted(set(state) - {checkpoints.INTEGRITY, "reference"}))
    kind = draw.choice(["drop", "add", "type", "number"])
    if kind == "drop":
        del state[key]
    elif kind == "add":
        state["more"] = 1
    elif kind == "number":
        key = draw.choice(["tokens", "kl_coef", "schedule", "step_size_factor"])
        state[key] = float("nan")
    else:
        state[key] = draw.choice([True, -1, [["x"]], "__import__('os').abort()"])
        if key == "agent":
            state[key] = "stranger"
        if key == "prompts":  # any text is the hash of other prompts
            state[key] = 3
    (at / "state.json").write_text(json.dumps(state))
    reseal(at)
    return f"{kind} {key} of state.json"


def test_of_200_mutated_checkpoints_none_is_loaded(tmp_path: Path) -> None:
    """A third of them damaged in any byte, two thirds changed on purpose, with the hashes made anew."""
    agent = PPO(gym.make("LMAlignExact-v0"), batch_size=16, minibatch_size=8)
    whole = agent.learn(50, out=tmp_path / "run") and checkpoints.latest(tmp_path / "run")
    env, draw = gym.make("LMAlignExact-v0"), random.Random(0)
    PPO.load(whole, env)
    shutil.copytree(whole, tmp_path / "resealed")
    reseal(tmp_path / "resealed")
    PPO.load(tmp_path / "resealed", env)  # so that what follows is refused for what was changed
    loaded, unclear, kinds = [], [], set()
    for i in range(200):
        at = tmp_path / "mutated"
        shutil.copytree(whole, at)
        what = (mutate_bytes, mutate_tensors, mutate_state)[i % 3](at, draw)
        kinds.add(what.split()[0])
        try:
            PPO.load(at, env)
            loaded.append(what)
        except ValueError as error:
            if not any(name in str(error) for name in ("mutated", "checkpoint", "state", "field", "order")):
                unclear.append(str(error))
        shutil.rmtree(at)
    assert loaded == unclear == [] and len(kinds) >= 12


def test_damage_is_told_by_the_files_name(tmp_path: Path) -> None:
    agent = PPO(gym.make("LMAlignExact-v0"), batch_size=16, minibatch_size=8)
    at = agent.save(tmp_path / "at")
    data = bytearray((at / "optimizer.safetensors").read_bytes())
    data[-1] ^= 1
    (at / "optimizer.safetensors").write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"optimizer\.safetensors is damaged: its SHA-256"):
        PPO.load(at, gym.make("LMAlignExact-v0"))
    at = agent.save(tmp_path / "at")
    (at / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"holds \['notes.txt'\], which were not saved with it"):
        PPO.load(at, gym.make("LMAlignExact-v0"))
    at = agent.save(tmp_path / "other")
    (at / "state.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"state\.json is damaged"):
        PPO.load(at, gym.make("LMAlignExact-v0"))


# ---- models -------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    lm = small_lm()
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


class Bomb:
    """What a pickle can do: it leaves a file where it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_weights_in_a_pickle_are_never_opened(model: Path, tmp_path: Path) -> None:
    load_model(str(model))
    (model / "model.safetensors").unlink()
    torch.save({"w": Bomb(tmp_path / "exploded")}, model / "pytorch_model.bin")
    with pytest.raises(
        Unloadable, match=r"pytorch_model\.bin, a pickle, which can run code.*convert it to safetensors"
    ):
        load_model(str(model))
    with pytest.raises(ValueError, match="a pickle"):
        PPO(LMAlignEnv(mdp=small_mdp()), critic=str(model))
    from lm_gym.rewards import load_reward_model

    with pytest.raises(ValueError, match="a pickle"):
        load_reward_model(f"hf:{model}")([""])
    assert not (tmp_path / "exploded").exists()


def test_an_adapter_in_a_pickle_is_refused_beside_safe_weights(model: Path) -> None:
    (model / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(Unloadable, match=r"adapter_model\.bin, a pickle"):
        load_model(str(model))


def test_code_of_a_model_is_never_run(model: Path, tmp_path: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: ...\nclass M: ...\n")
    with pytest.raises(ValueError, match="could not load"):
        load_model(str(model))
    assert not (tmp_path / "ran").exists()


def test_a_damaged_model_is_told_by_what_is_wrong(model: Path) -> None:
    path = model / "model.safetensors"
    data, tensors = path.read_bytes(), load_file(str(path))
    path.write_bytes(data[:-10])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_model(str(model))
    kept = dict(list(tensors.items())[1:])
    save_file(kept, str(path), metadata={"format": "pt"})
    with pytest.raises(Unloadable, match="lack 1 weights that its config.json asks for"):
        load_model(str(model))
    save_file(
        {k: v if v.dim() == 1 else v[:1].clone() for k, v in tensors.items()}, str(path), metadata={"format": "pt"}
    )
    with pytest.raises(ValueError, match="config.json"):
        load_model(str(model))
    path.write_bytes(data)
    (model / "tokenizer.json").write_text('{"broken": ')
    with pytest.raises(ValueError, match="no tokenizer found at"):
        load_model(str(model))


def test_a_device_that_is_not_there() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="sees no CUDA device here; use device='cpu'"):
            load_model("tiny", device="cuda")


# ---- prompts and arguments ----------------------------------------------------------------------------------------

LM = small_lm(alphabet=None)


def outcome(call: Any) -> tuple[Any, str | None]:
    """What a call returns, or the message of the error that a user would get."""
    try:
        return call(), None
    except (ValueError, TypeError) as error:
        return None, str(error)


@BOUNDED
@given(data=st.binary(max_size=200), suffix=st.sampled_from(["txt", "jsonl", "json", "csv"]))
def test_any_bytes_are_prompts_or_an_error(data: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"p.{suffix}"
    path.write_bytes(data)
    prompts, error = outcome(lambda: load_prompts(path, LM.tokenizer, max_tokens=50))
    if error is not None:
        assert "p." + suffix in error or "columns" in error
        return
    text = data.decode("utf-8-sig")
    assert prompts and all(1 <= len(p.token_ids) <= 50 for p in prompts)
    if suffix == "txt":
        assert [p.text for p in prompts] == [x.removesuffix("\r") for x in text.split("\n") if x.strip()]


ROWS = st.one_of(st.text(max_size=30), st.none(), st.integers(), st.lists(st.integers(), max_size=2))


@BOUNDED
@given(rows=st.lists(st.fixed_dictionaries({}, optional={"prompt": ROWS, "grade": ROWS}), min_size=1, max_size=6))
def test_broken_rows_are_named(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """A file is read as it stands, or the error names a row that is broken; none is left out."""
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    broken = [i for i, row in enumerate(rows) if not isinstance(row.get("prompt"), str) or not row["prompt"].strip()]
    prompts, error = outcome(lambda: load_prompts(path, LM.tokenizer))
    if error is not None:
        surrogates = any(not _encodable(row.get("prompt")) for row in rows)
        assert surrogates or any(f"line {i + 1}," in error for i in broken)
        return
    assert not broken and [p.text for p in prompts] == [row["prompt"] for row in rows]


def _encodable(text: Any) -> bool:
    return not isinstance(text, str) or text.encode("utf-8", "ignore").decode() == text


ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "max_new_tokens": st.one_of(st.integers(-2, 140), st.floats(), st.none(), st.booleans()),
        "min_new_tokens": st.one_of(st.integers(-2, 12), st.text(max_size=2)),
        "kl_coef": st.one_of(st.floats(), st.none(), st.text(max_size=2)),
        "temperature": st.floats(),
        "missing_eos_penalty": st.floats(-1, 2),
        "stop": st.one_of(st.text(max_size=3), st.lists(st.text(max_size=2), max_size=2), st.integers()),
        "max_prompt_tokens": st.one_of(st.none(), st.integers(-1, 200)),
        "prompts": st.one_of(st.lists(st.text(max_size=8), max_size=3), st.integers()),
    },
)


@BOUNDED
@given(arguments=ARGUMENTS)
def test_arguments_make_an_environment_or_an_error(arguments: dict[str, Any]) -> None:
    """Whatever is accepted makes episodes of the promised length with finite rewards."""
    given_ = {"prompts": ["abc", "ha"], "max_new_tokens": 4, **arguments}
    env, error = outcome(lambda: LMAlignEnv(mdp=AlignmentMDP(model=LM, reward_model=letter_reward, **given_)))
    if error is not None:
        assert len(error) > 20
        return
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    for step in range(1, min(8, env.mdp.max_new_tokens) + 1):
        obs, reward, ended, _, info = env.step(5 + step)
        assert abs(float(reward)) < float("inf") and env.observation_space.contains(obs)
        if ended:
            assert step == env.mdp.max_new_tokens or info["finish_reason"] == "stop"
            break


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("<eos>", "has no tokens"),
        ("a" * 200, "has 200 tokens"),
        ("", "is empty"),
        ("\n\t ", "is empty"),
    ],
)
def test_prompts_that_cannot_start_an_episode(prompt: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"1 of 2 prompts cannot be used: row 1 {message}"):
        AlignmentMDP(model=LM, prompts=["abc", prompt], reward_model=letter_reward, max_new_tokens=8)


def test_special_tokens_in_a_prompt_are_what_the_tokenizer_says() -> None:
    """The documented rule: their own ids, kept inside a prompt, taken off behind it; padding is told by the mask."""
    ids = [p.token_ids for p in load_prompts(["a<eos>b<eos>", "<bos>a", "<pad>", "a<pad>"], LM.tokenizer)]
    a, b = LM.tokenizer("ab")["input_ids"]
    assert ids == [(a, 2, b), (1, a), (0,), (a, 0)]
    env = LMAlignEnv(mdp=AlignmentMDP(model=LM, prompts=["a<eos>b", "<pad>"], reward_model=letter_reward))
    for i, n in enumerate((3, 1)):
        obs, _ = env.reset(options={"prompt_id": i})
        assert obs["attention_mask"].sum() == n
        assert not env.step(a)[2], "an EOS of the prompt ends nothing"


def test_a_line_of_ten_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "abc"}) + "\n" + json.dumps({"prompt": "ab " * 3_500_000}) + "\n")
    with pytest.raises(
        ValueError, match=r"1 of 2 prompts cannot be used: p.jsonl, line 2, has far more than 100 tokens"
    ) as found:
        load_prompts(path, LM.tokenizer, max_tokens=100)
    assert len(str(found.value)) < 500
