"""What every agent for language models shares: making texts, logging, evaluating, saving."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch

from lm_gym import checkpoints, collect, measures
from lm_gym.adam import Adam32
from lm_gym.cached_lm import CachedLM
from lm_gym.decoding import Completion, Engine, GenerationParams, restrict
from lm_gym.mdp import AlignmentMDP
from lm_gym.policy import Policy
from lm_gym.prompts import Prompt, load_prompts
from lm_gym.rewards import reward_model_hash
from lm_gym.rollout import Rollout
from lm_gym.runinfo import run_info
from lm_gym.tracking import Tracker

Self = TypeVar("Self", bound="LMAgent")
STATE_KEYS = ("config", "tokens", "episodes", "updates", "order", "schedule", "engine_rng", "rng", "reference", "extra")
"""What ``state.json`` of a checkpoint must hold."""


@dataclasses.dataclass
class AgentConfig:
    """Fields that every agent has. Lengths are in tokens, KL in nats."""

    batch_size: int = 128
    """Texts an update."""
    learning_rate: float | None = None
    """Adam's step size; None: 3e-4·sqrt(1.5e6/parameters), ten times that for LoRA, .02 for a table."""
    lr_schedule: str = "linear"
    """"linear" (to 0 at the end of ``learn``), "cosine" or "constant"."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    kl_coef: float | None = None
    """β, reward per nat; None: the environment's."""
    critic: str = "shared"
    """"shared" value head, "separate" critic, the folder of a reward model that a critic starts from."""
    lora_rank: int = 0
    """Above 0: train LoRA adapters of this rank; the weights below stay the reference's own tensors."""
    lora_alpha: float | None = None
    """LoRA's scale; None: twice the rank."""
    frozen_layers: int = 0
    """The embeddings and so many lower layers stay frozen, the reference's own tensors."""
    rows: int | None = None
    """Texts that decode at once, the rest refilling finished rows; None: all."""
    seed: int = 0
    """Of every draw the agent makes."""


class LMAgent:
    """An agent for :class:`~lm_gym.env.LMAlignEnv` and its vector environment. Verbs as in Stable-Baselines3.

    Args:
        env: ``gym.make("LMAlign-v0")``, ``gym.make_vec(...)``, or one of them in wrappers.
        config: fields of the algorithm's config dataclass; an unknown one is refused.
    """

    config_class: ClassVar[type[AgentConfig]] = AgentConfig
    name: ClassVar[str] = "agent"

    def __init__(self, env: Any, **config: Any) -> None:
        self.config = self._make_config(config)
        self.env = env
        self.base, self.wrappers = collect.unwrap(env)
        self.mdp: AlignmentMDP = self.base.mdp
        if self.wrappers:
            collect.warn_of_wrappers(self.wrappers)
        c = self.config
        self.kl_coef = self.mdp.kl_coef if c.kl_coef is None else float(c.kl_coef)
        with torch.random.fork_rng(devices=[]):  # LoRA's start is random: seeded, and the caller's stream untouched
            torch.manual_seed(c.seed)
            self.policy = Policy(
                self.mdp,
                critic=c.critic,
                lora_rank=c.lora_rank,
                lora_alpha=c.lora_alpha,
                frozen_layers=c.frozen_layers,
            )
        self.params = self.policy.trainable()
        self.base_lr = self.policy.learning_rate if c.learning_rate is None else c.learning_rate
        self.optimizer = Adam32(self.params, lr=self.base_lr)
        self.engine = Engine(
            self.policy.lm,
            guide=self.mdp.reference,
            value_head=self.policy.value if self.policy.value_head is not None else None,
            keep_hidden=True,
            seed=c.seed,
        )
        self.generator = torch.Generator().manual_seed(c.seed + 1)  # shuffles prompts and minibatches
        self.tokens, self.episodes, self.updates = 0, 0, 0
        self._order: list[int] = []
        self._reset_seed: int | None = c.seed
        self._actor: CachedLM | None = None
        self._schedule = (0, 1)

    def _make_config(self, given: Mapping[str, Any]) -> AgentConfig:
        known = {f.name for f in dataclasses.fields(self.config_class)}
        for key in given:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
                raise ValueError(f"{type(self).__name__} has no field {key!r}; {hint}")
        config = self.config_class(**given)
        if config.batch_size < 1:
            raise ValueError(f"batch_size expected at least 1 text, got {config.batch_size}")
        if config.lr_schedule not in ("linear", "cosine", "constant"):
            raise ValueError(f"lr_schedule expected 'linear', 'cosine' or 'constant', got {config.lr_schedule!r}")
        return config

    # ---- what an algorithm defines -------------------------------------------------------------------------------

    def update(self, rollout: Rollout) -> dict[str, float]:
        """One update on a rollout; returns metrics."""
        raise NotImplementedError

    @property
    def reward_kl_mode(self) -> str:
        """What the rewards of a rollout pay for KL: "reported" (exact), "reference" (its half) or "none"."""
        return "reported"

    # ---- making texts --------------------------------------------------------------------------------------------

    def next_prompts(self, n: int) -> list[Prompt]:
        """The next n prompts: every prompt once in a shuffled order, then in another."""
        while len(self._order) < n:
            self._order += torch.randperm(len(self.mdp.prompts), generator=self.generator).tolist()
        now, self._order = self._order[:n], self._order[n:]
        return [self.mdp.prompts[i] for i in now]

    def collect(self) -> tuple[Rollout, dict[str, float]]:
        """Texts for one update, with rewards as the environment pays them, and what can be measured on them."""
        started = time.perf_counter()
        if self.wrappers:
            stepped = collect.step_texts(
                self.env,
                self.policy,
                self.config.batch_size,
                kl_mode=self.reward_kl_mode,
                kl_coef=self.kl_coef,
                generator=self.generator,
                seed=self._reset_seed,
            )
            self._reset_seed = None
            completions, scored = stepped.completions, stepped.scored
            decoded = time.perf_counter()
            _, scored.ref_hidden = self.mdp.reference_pass(
                [c.prompt_ids for c in completions], [c.tokens for c in completions], hidden=True
            )
        else:
            prompts = self.next_prompts(self.config.batch_size)
            completions = collect.batched_texts(self.mdp, self.engine, prompts, rows=self.config.rows)
            decoded = time.perf_counter()
            scored = self.mdp.score(
                completions, kl_mode=self.reward_kl_mode, kl_coef=self.kl_coef, hidden=True, trainer_state=self.state
            )
        rollout = Rollout.from_completions(
            completions, scored, pad_id=self.policy.lm.pad_id, min_new_tokens=self.mdp.min_new_tokens
        )
        metrics = self.describe(rollout)
        metrics |= {f"reward/{k}": v for k, v in scored.metrics.items()}
        metrics |= {"perf/decode_seconds": decoded - started, "perf/score_seconds": time.perf_counter() - decoded}
        return rollout, metrics

    @property
    def state(self) -> dict[str, Any]:
        """What reward models get as ``trainer_state``."""
        return {"global_step": self.updates, "num_input_tokens_seen": self.tokens, "epoch": self.progress}

    def describe(self, rollout: Rollout) -> dict[str, float]:
        """Metrics of a rollout that this policy made: :func:`lm_gym.measures.describe`."""
        return measures.describe(rollout, self.policy.lm, self.mdp)

    # ---- training ------------------------------------------------------------------------------------------------

    @property
    def progress(self) -> float:
        """Share of the running ``learn`` that is done, 0 to 1."""
        start, total = self._schedule
        return min(1.0, (self.tokens - start) / total)

    def current_lr(self) -> float:
        left = {
            "constant": 1.0,
            "linear": 1.0 - self.progress,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * self.progress)),
        }[self.config.lr_schedule]
        return self.base_lr * left

    def learn(
        self: Self,
        total_tokens: int,
        *,
        out: str | Path | None = None,
        trackers: Sequence[str] = ("csv", "jsonl"),
        progress: bool = False,
        save_every: int | None = None,
        resume: bool = False,
        run_config: Mapping[str, Any] | None = None,
        callback: Callable[[Any, dict[str, float]], bool | None] | None = None,
    ) -> Self:
        """Train on ``total_tokens`` more response tokens (the update that passes them is the last).

        Args:
            out: the run's folder: config, metrics, samples, checkpoints; None: nothing is written.
            trackers: see :class:`lm_gym.tracking.Tracker`. progress: draw progress on the terminal.
            save_every: updates between checkpoints; None: one at the end.
            resume: go on in the schedule of a loaded checkpoint: ``total_tokens`` counts from where that one began.
            run_config: what ``config.yaml`` holds beside the agent's fields.
            callback: called after every update with the agent and its metrics; returning False stops the training.
        """
        if isinstance(total_tokens, bool) or total_tokens < 1:
            raise ValueError(f"total_tokens expected at least 1, got {total_tokens!r}")
        self._schedule = (self._schedule[0] if resume else self.tokens, int(total_tokens))
        config = dict(run_config or {}) | {"agent": {"name": self.name, **dataclasses.asdict(self.config)}}
        config.setdefault("run", self.run_info() if out is not None else {})
        tracker = Tracker(
            out,
            config=config,
            trackers=tuple(t for t in trackers if out is not None or t not in ("csv", "jsonl")),
            total=sum(self._schedule),
            quiet=not progress,
            resume=self.updates > 0,
        )
        with tracker:
            if out is not None and self.updates > 0:
                tracker.truncate_to(self.updates)  # an agent that was loaded goes on where its checkpoint is
            while self.progress < 1.0:
                metrics, rollout = self._one_update()
                tracker.log(metrics, step=self.updates, tokens=self.tokens)
                tracker.samples(measures.samples(rollout, self.mdp), self.updates)
                if out is not None and save_every and self.updates % save_every == 0:
                    self.save(Path(out) / "checkpoints" / f"step-{self.updates}")
                if callback is not None and callback(self, metrics) is False:
                    break
        if out is not None:
            self.save(Path(out) / "checkpoints" / f"step-{self.updates}")
        return self

    def run_info(self) -> dict[str, Any]:
        """Seed, versions, git revision, command, and the hashes of reference and reward model, for ``config.yaml``."""
        hashes = {
            "reference": self.mdp.reference.fingerprint(),
            "reward_model": reward_model_hash(self.mdp.reward_model),
        }
        return run_info(seed=self.config.seed, hashes=hashes)

    def _one_update(self) -> tuple[dict[str, float], Rollout]:
        started = time.perf_counter()
        lr = self.current_lr()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        metrics: dict[str, float] = {"kl_coef": self.kl_coef, "lr": lr}
        rollout, described = self.collect()
        metrics |= described
        before = time.perf_counter()
        metrics |= self.update(rollout)
        self.updates += 1
        self.engine.update_weights(self.policy.lm, self.updates)
        self.tokens += int(rollout.lengths.sum())
        self.episodes += len(rollout)
        now = time.perf_counter()
        metrics |= {
            "episode": self.episodes,
            "perf/update_seconds": now - before,
            "perf/tokens_per_second": int(rollout.lengths.sum()) / (now - started),
        }
        for key, value in metrics.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"{key} became {value} in update {self.updates}; the last checkpoint is as it was. "
                    "Lower learning_rate, or look at the samples of the updates before"
                )
        return metrics, rollout

    # ---- acting --------------------------------------------------------------------------------------------------

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, None]:
        """(action, None) for ``tokens`` observations, single or batched; Stable-Baselines3's signature."""
        if self._actor is None:
            self._actor = CachedLM(self.policy.lm, temperature=self.mdp.temperature, seed=self.config.seed)
        stepper, mask, ids = self.base.stepper, None, None
        if self.mdp.top_k is not None or self.mdp.min_new_tokens:  # what may be chosen depends on the text so far
            if not np.array_equal(np.atleast_2d(observation["input_ids"]), stepper.input_ids):
                raise ValueError(
                    "predict expected the current observation of the agent's own environment, got another one: top_k "
                    "and min_new_tokens restrict the choice by its state; load the agent on the environment to step"
                )
            mask, ids = stepper.action_masks(), stepper.choice_ids()
        single = np.asarray(observation["input_ids"]).ndim == 1
        actions, _, _ = self._actor.act(observation, action_mask=mask, action_tokens=ids, deterministic=deterministic)
        return (int(actions) if single else actions), None

    def complete(
        self, prompts: Any, *, greedy: bool = False, max_new_tokens: int | None = None, seed: int = 0
    ) -> list[Completion]:
        """A completion for each prompt (texts, records, or any prompt source), with log-probs; for :meth:`score`."""
        records = self._records(prompts)
        engine = Engine(self.policy.lm, guide=self.mdp.reference, keep_hidden=True, seed=seed)
        params: GenerationParams = dataclasses.replace(self.mdp.generation_params, greedy=greedy, rows=256)
        if max_new_tokens is not None:
            params = dataclasses.replace(params, max_new_tokens=max_new_tokens)
        completions = engine.generate([p.token_ids for p in records], params)
        for completion, record in zip(completions, records, strict=True):
            completion.prompt = record
        return completions

    def _records(self, prompts: Any) -> list[Prompt]:
        if isinstance(prompts, (list, tuple)) and prompts and all(isinstance(p, Prompt) for p in prompts):
            return list(prompts)
        if isinstance(prompts, str) and not prompts.startswith("tiny:") and not Path(prompts).exists():
            prompts = [prompts]
        room = self.mdp.reference.max_positions - self.mdp.max_new_tokens
        return load_prompts(prompts, self.mdp.reference.tokenizer, max_tokens=room)

    def generate(
        self, prompts: Any, *, greedy: bool = False, max_new_tokens: int | None = None, seed: int = 0
    ) -> list[str]:
        """The completions' texts for some prompts (a text, a list of them, or any prompt source)."""
        completions = self.complete(prompts, greedy=greedy, max_new_tokens=max_new_tokens, seed=seed)
        return [self.mdp.reference.decode(c.tokens) for c in completions]

    def evaluate(self, prompts: Any = None, *, n: int = 256, seed: int = 12345) -> dict[str, float]:
        """What the policy is worth now, on ``n`` fresh texts of a generator of their own.

        Args:
            prompts: a prompt source; None: the environment's. They are gone through in order, as often as needed.

        Returns:
            the metrics of :meth:`describe`, ``objective/scores_sem`` (standard error), ``objective/j`` = E[R] − β·KL.
        """
        records = self.mdp.prompts if prompts is None else self._records(prompts)
        if prompts is None:  # spread over all of them
            order = np.random.default_rng(seed).permutation(len(records))
            records = [records[i] for i in order]
        records = [records[i % len(records)] for i in range(n)]
        completions = self.complete(records, seed=seed)
        scored = self.mdp.score(completions, kl_coef=self.kl_coef, hidden=True, trainer_state=self.state)
        rollout = Rollout.from_completions(
            completions, scored, pad_id=self.policy.lm.pad_id, min_new_tokens=self.mdp.min_new_tokens
        )
        metrics = self.describe(rollout)
        metrics["objective/scores_sem"] = float(scored.scores.std(unbiased=True) / math.sqrt(n)) if n > 1 else 0.0
        metrics["objective/j"] = metrics["objective/scores"] - self.kl_coef * metrics["objective/kl"]
        return metrics

    def exact_policy(self, language: Any) -> np.ndarray:
        """(S, V) probabilities in every state of an exact language: what :func:`lm_gym.exact.evaluate` takes."""
        lm, n_states = self.policy.lm, language.table().n_states
        if lm.hidden_size != n_states:
            raise ValueError(
                f"exact_policy expected an agent on this language ({n_states} states), got {lm.hidden_size}"
            )
        with torch.no_grad():
            eye = torch.eye(n_states)
            allowed = None
            if self.mdp.top_k:
                from lm_gym.decoding import top_k_ids

                allowed = top_k_ids(self.mdp.reference.head(eye), self.mdp.top_k, lm.eos_ids)
            logits = restrict(lm.head(eye) / self.mdp.temperature, allowed=allowed)
            return torch.softmax(logits.double(), -1).numpy()

    # ---- keeping -------------------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Any]:
        """What an algorithm adds to ``state.json``."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`extra_state` gave."""

    def save(self, folder: str | Path) -> Path:
        """Write a checkpoint: what is trained, the optimizer, every random state, counters. No pickle."""
        state = {
            "agent": self.name,
            "config": dataclasses.asdict(self.config),
            "tokens": self.tokens,
            "episodes": self.episodes,
            "updates": self.updates,
            "order": self._order,
            "kl_coef": self.kl_coef,
            "schedule": list(self._schedule),
            "engine_rng": checkpoints.generator_state(self.engine.generator),
            "rng": checkpoints.generator_state(self.generator),
            "reference": self.mdp.reference.fingerprint(),
            "extra": self.extra_state(),
        }
        tensors: dict[str, dict[str, torch.Tensor]] = {
            "policy": self.optimizer.values(),
            "optimizer": checkpoints.optimizer_tensors(self.optimizer, list(self.params)),
            **self.extra_tensors(),
        }
        return checkpoints.save(folder, tensors, state)

    def extra_tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """Groups of tensors that an algorithm adds to its checkpoint."""
        return {}

    def load_extra_tensors(self, groups: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Take back what :meth:`extra_tensors` gave."""

    @classmethod
    def load(cls: type[Self], folder: str | Path, env: Any, **overrides: Any) -> Self:
        """An agent from a checkpoint, or from a run's folder (its newest checkpoint), on ``env``.

        Raises:
            ValueError: if it is damaged, of another agent, or was trained against another reference.
        """
        groups, state = checkpoints.load(checkpoints.latest(folder))
        if state.get("agent") != cls.name:
            raise ValueError(
                f"{cls.__name__}.load expected a checkpoint of {cls.name!r}, got one of {state.get('agent')!r}"
            )
        missing = [key for key in STATE_KEYS if key not in state]
        missing += [f"{name}.safetensors" for name in ("policy", "optimizer") if name not in groups]
        if missing:
            raise ValueError(f"checkpoint {folder} is damaged: {missing} are missing")
        agent = cls(env, **{**state["config"], **overrides})
        if state["reference"] != agent.mdp.reference.fingerprint():
            warnings.warn(
                "the environment's reference is not the one this checkpoint was trained against: KL is measured from "
                "another place",
                stacklevel=2,
            )
        saved = groups["policy"]
        if set(saved) != set(agent.params):
            odd = sorted(set(saved) ^ set(agent.params))[:3]
            raise ValueError(f"checkpoint {folder} does not fit this agent's parameters: {odd} are on one side only")
        for key, p in agent.params.items():
            if p.shape != saved[key].shape:
                raise ValueError(f"checkpoint {folder}: {key} expected {tuple(p.shape)}, got {tuple(saved[key].shape)}")
        agent.optimizer.set_values(saved)
        checkpoints.set_optimizer_tensors(agent.optimizer, list(agent.params), groups["optimizer"])
        agent.tokens, agent.episodes, agent.updates = state["tokens"], state["episodes"], state["updates"]
        agent._order = list(state["order"])
        agent._schedule = (state["schedule"][0], state["schedule"][1])
        checkpoints.set_generator_state(agent.engine.generator, state["engine_rng"])
        checkpoints.set_generator_state(agent.generator, state["rng"])
        agent.load_extra_state(state["extra"])
        agent.load_extra_tensors(groups)
        agent.engine.update_weights(agent.policy.lm, agent.updates)
        return agent

    def save_pretrained(self, folder: str | Path, *, merge: bool = True) -> Path:
        """Write the policy as a plain ``transformers`` folder with its tokenizer; LoRA merged, or as an adapter."""
        model = getattr(self.policy.lm, "model", None)
        if model is None:
            raise ValueError(f"save_pretrained expected a transformers policy, got {type(self.policy.lm).__name__}")
        if merge and hasattr(model, "merge_and_unload"):
            model = copy.deepcopy(model).merge_and_unload()
        folder = Path(folder)
        model.save_pretrained(folder)
        self.policy.lm.tokenizer.save_pretrained(folder)
        return folder
