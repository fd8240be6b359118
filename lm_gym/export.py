"""Taking a policy home: a plain ``transformers`` folder with tokenizer, generation settings and a model card.

What is in the folder: the weights (LoRA merged, or as an adapter), ``config.json``, ``generation_config.json`` with
every EOS id and the problem's own way of drawing, the tokenizer with its chat template, ``value_head.safetensors`` (the
critic, where there is one), ``lm_gym.json`` (what KL was measured against, for the next training), and ``README.md``.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_gym.adapters import is_adapter, plain_copy
from lm_gym.folders import filled_aside
from lm_gym.runinfo import current_command, package_versions, plain, write_atomically

if TYPE_CHECKING:
    from lm_gym.agent import LMAgent

VALUE_HEAD = "value_head.safetensors"
ORIGIN = "lm_gym.json"
"""The file that says where an exported model came from."""
SAMPLES = 4
NUMBERS = (
    ("reward", "objective/scores"),
    ("KL to the reference, nats a text", "objective/kl"),
    ("length, tokens", "length/mean"),
    ("share of texts that end by themselves", "length/ended_share"),
    ("distinct bigrams", "text/distinct_2"),
)
"""Rows of the card's table: what, metric."""


def save_pretrained(
    agent: LMAgent,
    folder: str | Path,
    *,
    merge: bool = True,
    run: str | Path | None = None,
    push_to_hub: str | None = None,
) -> Path:
    """Write an agent's policy as a folder that ``AutoModelForCausalLM.from_pretrained`` loads.

    Args:
        folder: a new or empty one, or one that this function wrote before.
        merge: LoRA merged into the weights; False: as an adapter, which PEFT and ``transformers`` put on its base.
        run: the run's folder, whose command, hashes, metrics and samples go into the model card; None: those of this
            object, as far as it trained.
        push_to_hub: a repository, ``org/name``, to upload the folder to (made private if it is new); None: nowhere.

    Raises:
        ValueError: the policy is no ``transformers`` model, or the folder holds something else. OSError: a full disk;
            what was there before is whole.
    """
    model = getattr(agent.policy.lm, "model", None)
    if model is None:
        raise ValueError(f"save_pretrained expected a transformers policy, got {type(agent.policy.lm).__name__}")
    adapter = hasattr(model, "merge_and_unload")
    if adapter and not merge and not agent.config.lora_rank:
        raise ValueError(
            "merge=False expected an agent with lora_rank: this one trained the weights below the adapters too, which "
            "an adapter's folder does not hold"
        )
    bases = [str(c.base_model_name_or_path) for c in model.peft_config.values()] if adapter and not merge else []
    if any(map(is_adapter, bases)):
        raise ValueError(
            f"merge=False expected a base that is a whole model, got {bases[0]!r}, an adapter, on which PEFT puts no "
            "second one: export it merged"
        )
    folder = Path(folder)
    with filled_aside(folder) as aside:
        if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / ORIGIN).is_file())):
            raise ValueError(
                f"{folder} holds something that is no exported model: choose another folder, or move it away"
            )
        _write(agent, model, aside, adapter=adapter, merge=merge, run=run)
        for old in folder.glob("*.safetensors*"):  # with the index of several
            old.unlink()  # an adapter beside whole weights would be loaded on top of them
        (folder / "adapter_config.json").unlink(missing_ok=True)
    if push_to_hub is not None:
        _push(folder, push_to_hub)
    return folder


def _write(agent: LMAgent, model: Any, folder: Path, *, adapter: bool, merge: bool, run: str | Path | None) -> None:
    from lm_gym.loading import quiet

    if adapter and merge:
        model = copy.deepcopy(model).merge_and_unload()
    generation = generation_config(agent)
    if adapter and not merge:
        generation.save_pretrained(folder)
    else:
        if getattr(model, "_hf_peft_config_loaded", False):
            model = plain_copy(model)
        model = model if adapter else copy.copy(model)
        model.generation_config = generation
    with quiet():
        model.save_pretrained(folder)
    agent.policy.lm.tokenizer.save_pretrained(folder)
    _save_values(agent, folder / VALUE_HEAD)
    facts = about(agent, run)
    write_atomically(folder / ORIGIN, json.dumps(facts["origin"], indent=1, ensure_ascii=False) + "\n")
    write_atomically(folder / "README.md", card(facts, adapter=adapter and not merge))


def generation_config(agent: LMAgent) -> Any:
    """``GenerationConfig`` that draws as the agent does: every EOS id, the problem's lengths and temperature."""
    from transformers import GenerationConfig

    lm, mdp = agent.policy.lm, agent.mdp
    options: dict[str, Any] = {"bos_token_id": getattr(lm.tokenizer, "bos_token_id", None), "pad_token_id": lm.pad_id}
    if mdp.min_new_tokens:
        options["min_new_tokens"] = mdp.min_new_tokens
    return GenerationConfig(
        eos_token_id=list(lm.eos_ids),
        do_sample=True,
        temperature=mdp.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=mdp.max_new_tokens,
        **options,
    )


def _save_values(agent: LMAgent, path: Path) -> None:
    """The value head or the whole critic, under the names that they have in the policy."""
    from safetensors.torch import save_file

    parts = {"value_head": agent.policy.value_head, "critic": agent.policy.critic}
    tensors = {
        f"{part}.{key}": value.detach().cpu().contiguous().clone()
        for part, module in parts.items()
        if module is not None
        for key, value in module.state_dict().items()
    }
    if tensors:
        save_file(tensors, str(path))


def about(agent: LMAgent, run: str | Path | None) -> dict[str, Any]:
    """What a model card says: where the model came from, numbers, samples. From a run's folder where there is one."""
    from lm_gym.rewards import reward_model_hash, reward_model_name
    from lm_gym.run_files import read_jsonl

    mdp = agent.mdp
    last, samples, command, top_k = agent.last, [], current_command(), mdp.top_k
    reward = reward_model_name(mdp.reward_model)
    hashes: Mapping[str, Any] = {
        "reference": mdp.reference.fingerprint(),
        "reward_model": reward_model_hash(mdp.reward_model),
    }
    metrics: Mapping[str, Any] = {} if last is None else last.metrics
    samples = [] if last is None else last.samples
    if run is not None:
        from lm_gym.run_folder import CONFIG, config_of
        from lm_gym.runinfo import read_config

        config = read_config(config_of(Path(run)) or Path(run) / CONFIG)
        info = config.get("run") or {}
        command, hashes = info.get("command", command), {**hashes, **(info.get("hashes") or {})}
        reward = config.get("reward_model", reward)
        top_k = config.get("top_k")
        metrics = _newest(read_jsonl(Path(run) / "metrics.jsonl"), agent.updates)
        path = Path(run) / "samples.jsonl"
        rows = [r for r in read_jsonl(path) if r.get("step", 0) <= agent.updates] if path.exists() else []
        samples = rows[-SAMPLES:]
    origin = {
        "agent": agent.name,
        "config": plain(agent.config),
        "reference": mdp.reference.name,
        "reference_hash": hashes["reference"],
        "reward_model": str(plain(reward)),
        "reward_model_hash": hashes["reward_model"],
        "kl_coef": agent.kl_coef,
        "temperature": mdp.temperature,
        "max_new_tokens": mdp.max_new_tokens,
        "min_new_tokens": mdp.min_new_tokens,
        "stop": list(mdp.stop),
        "top_k": top_k,
        "updates": agent.updates,
        "tokens": agent.tokens,
        "command": command,
        "versions": package_versions(),
    }
    return {"origin": origin, "metrics": metrics, "samples": samples[:SAMPLES]}


def _newest(rows: Sequence[Mapping[str, Any]], step: int) -> dict[str, Any]:
    """The newest value of every metric up to an update: some are measured in a part of the updates only."""
    found: dict[str, Any] = {}
    for row in rows:
        if row["step"] <= step:
            found |= row
    return found


def card(facts: Mapping[str, Any], *, adapter: bool) -> str:
    """README.md in the form of the hub's model cards."""
    o, metrics = facts["origin"], facts["metrics"]
    table = [f"| {what} | {metrics[key]:.4g} |" for what, key in NUMBERS if math.isfinite(metrics.get(key, math.nan))]
    numbers = ["| last update of training | |", "|---|---|", *table] if table else ["Not trained: no update was made."]
    samples: list[str] = []
    for row in facts["samples"]:
        score = f" (score {row['score']:.3g})" if isinstance(row.get("score"), float) else ""
        samples += [*_quoted(f"{row['prompt']} ▸ {row['completion']}{score}"), ""]
    limits = [
        f"- Trained for texts of at most {o['max_new_tokens']} tokens, on prompts like those of its training.",
        "- A reward model is a proxy: what scores high is not thereby good, true or safe. Nothing else was checked.",
        "- The KL is measured against the reference above. Trained again from here, it starts again from zero, unless "
        'the reference is named: `gym.make("LMAlign-v0", model="<this folder>", reference="<the reference>")`.',
    ]
    if o["top_k"] is not None:
        limits.append(
            f"- While training, only the reference's {o['top_k']} likeliest tokens could be chosen; here all can."
        )
    if o["agent"] == "nlpo":
        limits.append("- While training, a lagged copy's mask restricted the choice; here nothing does.")
    if o["agent"] == "best-of-n":
        limits.append("- Best-of-n trains nothing: these are the weights of the model it chose among.")
    if o["stop"]:
        limits.append(f"- Texts ended at the strings {o['stop']}; pass them as `stop_strings` to `generate`.")
    load = "AutoModelForCausalLM.from_pretrained" + (" (with PEFT installed, on its base)" if adapter else "")
    return "\n".join(
        [
            "---",
            "library_name: peft" if adapter else "library_name: transformers",
            "pipeline_tag: text-generation",
            f"tags: [lm-gym, reinforcement-learning, {o['agent']}]",
            "---",
            "",
            f"# A language model aligned with LM Gym ({o['agent']})",
            "",
            f"Loads by `{load}`. `generate()` draws as in training: temperature {o['temperature']:g}, at most "
            f"{o['max_new_tokens']} new tokens.",
            "",
            "| | |",
            "|---|---|",
            f"| reward | `{o['reward_model']}` |",
            f"| its hash | `{o['reward_model_hash']}` |",
            f"| reference | `{o['reference']}` |",
            f"| its hash | `{o['reference_hash']}` |",
            f"| KL coefficient | {o['kl_coef']:g} |",
            f"| trained on | {o['tokens']} tokens, {o['updates']} updates |",
            "",
            *numbers,
            "",
            "```",
            o["command"],
            "```",
            "",
            "## Samples",
            "",
            *(samples or ["None were kept.", ""]),
            "## Limits",
            "",
            *limits,
            "",
        ]
    )


def _quoted(text: str) -> list[str]:
    return [f"> {line}" for line in text.splitlines()]


def origin(model: Any) -> dict[str, Any] | None:
    """What an exported folder says of itself; None where ``model`` is none."""
    if not isinstance(model, (str, Path)) or not (Path(model) / ORIGIN).is_file():
        return None
    try:
        found = json.loads((Path(model) / ORIGIN).read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as e:
        raise ValueError(f"{Path(model) / ORIGIN} is damaged: {e}") from e
    if not isinstance(found, dict):
        raise ValueError(f"{Path(model) / ORIGIN} is damaged: expected an object, got a {type(found).__name__}")
    return found


def warn_of_origin(model: Any) -> None:
    """Says that a policy which was aligned before is now its own reference."""
    found = origin(model)
    if found is not None:
        warnings.warn(
            f"model {str(model)!r} was aligned before, against {found.get('reference')!r}: without reference= it is "
            "its own reference, and the KL starts again from zero",
            stacklevel=4,
        )


def _push(folder: Path, repository: str) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repository, private=True, exist_ok=True)
    api.upload_folder(repo_id=repository, folder_path=str(folder))
