"""What every agent for language models shares: making texts, logging, evaluating, saving."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import torch

from lm_gym import agent_state, agent_texts, blame, checkpoints, collect, measures, run_folder
from lm_gym.adam import Adam32, refuse_float16
from lm_gym.agent_config import AgentConfig, make_config, plain_config, whole
from lm_gym.autocast import check_autocast
from lm_gym.cached_lm import CachedLM
from lm_gym.cycle import Cycle
from lm_gym.decoding import Completion, GenerationParams
from lm_gym.engines import make_engine
from lm_gym.evaluation import Drawn, measure
from lm_gym.guard import Guard, Watch
from lm_gym.host_memory import keep_freed_memory
from lm_gym.kl_control import KLControl
from lm_gym.mdp import AlignmentMDP
from lm_gym.policy import Policy
from lm_gym.policy_gradient import PolicyGradientConfig
from lm_gym.prompts import Prompt
from lm_gym.rewards import prepare_reward_model, reward_state, update_reward_model
from lm_gym.rollout import Rollout
from lm_gym.runinfo import KEEP_CHECKPOINTS, run_info
from lm_gym.tracking import Tracker
from lm_gym.trainer_state import TrainerState, trainer_state

if TYPE_CHECKING:
    from lm_gym.example_source import ExampleSource

Self = TypeVar("Self", bound="LMAgent")


@dataclasses.dataclass
class Update:
    """What one update did: metrics, how many response tokens and texts it used, and texts for ``samples.jsonl``."""

    metrics: dict[str, float]
    tokens: int
    texts: int
    samples: list[dict[str, Any]]


class LMAgent:
    """An agent for :class:`~lm_gym.env.LMAlignEnv` and its vector environment. Verbs as in Stable-Baselines3.

    Args:
        env: ``gym.make("LMAlign-v0")``, ``gym.make_vec(...)``, or one of them in wrappers.
        config: fields of the algorithm's config dataclass; an unknown one is refused.
    """

    config_class: ClassVar[type[AgentConfig]] = AgentConfig
    name: ClassVar[str] = "agent"
    trains: ClassVar[bool] = True
    """Whether there are weights to move; otherwise the policy is the model that policies start from."""
    step_scale: ClassVar[float] = 1.0
    """How many times the model's own step size is the default: above 1 where few optimizer steps follow a rollout."""
    extra_groups: ClassVar[tuple[str, ...]] = ()
    """The groups that :meth:`extra_tensors` may have."""

    named: str | None = None
    """What the command line loads this agent by where that is not ``name``: ``py:my_agents.py:MyAgent``."""

    def __init__(self, env: Any, **config: Any) -> None:
        self.config = make_config(self.config_class, config, type(self).__name__)
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
                critic=getattr(c, "critic", "none"),
                lora_rank=c.lora_rank,
                lora_alpha=c.lora_alpha,
                frozen_layers=c.frozen_layers,
                frozen_head=c.frozen_head,
                frozen=not self.trains,
            )
        if self.trains:
            refuse_float16(self.policy, type(self).__name__)
        self.params = self.policy.trainable()
        self.base_lr = self.policy.learning_rate * self.step_scale if c.learning_rate is None else c.learning_rate
        self.optimizer = Adam32(self.params, lr=self.base_lr)
        self.engine = make_engine(self)
        self.generator = torch.Generator().manual_seed(c.seed + 1)  # shuffles prompts and minibatches
        self.tokens, self.episodes, self.updates = 0, 0, 0
        self.prompt_order = Cycle(len(self.mdp.prompts), self.generator)
        self._reset_seed: int | None = c.seed
        self._actor: CachedLM | None = None
        self._schedule = (0, 1)
        self.score_scale: tuple[float, float] | None = None
        self.step_size_factor = 1.0
        """What the schedule's step size is multiplied with: halved where the guard takes the policy back."""
        self.last: Update | None = None
        """The newest update."""
        self.example_source: ExampleSource | None = None
        """Of agents that learn from examples, where these come from."""
        self.data_rows: dict[str, dict[str, int]] = {}
        """Of the data that the agent was given, how many rows there were, and were left out or cut."""
        self.watch: Watch | None = None
        self.saved_guard: tuple[dict[str, Any], agent_state.Groups] | None = None
        self.unknown_wrappers: list[str] = []
        self.other_prompts = self.other_judge = False
        self.run_mark: run_folder.Mark | None = None
        """The folder of the run that this agent goes on with, as it found or left it."""
        self.kl_control = KLControl(self, c) if isinstance(c, PolicyGradientConfig) else None
        if isinstance(c, PolicyGradientConfig):
            check_autocast(c.autocast, self.policy.lm)

    def __repr__(self) -> str:
        changed = [
            f"{f.name}={getattr(self.config, f.name)!r}"
            for f in dataclasses.fields(self.config)
            if getattr(self.config, f.name) != f.default
        ]
        fields = "".join(f", {part:.60}" for part in changed)
        done = f"{self.tokens} tokens in {self.updates} updates"
        return f"{type(self).__name__}({self.mdp.reference.name!r}{fields}: {done})"

    # ---- what an algorithm defines -------------------------------------------------------------------------------

    def update(self, rollout: Rollout) -> dict[str, float]:
        """One update on a rollout; returns metrics."""
        raise NotImplementedError

    @property
    def generation_params(self) -> GenerationParams:
        """How the policy decodes: as the problem says."""
        return self.mdp.generation_params

    # ---- making texts --------------------------------------------------------------------------------------------

    def next_prompts(self, n: int) -> list[Prompt]:
        """The next n prompts: every prompt once in a shuffled order, then in another."""
        return [self.mdp.prompts[i] for i in self.prompt_order.take(n)]

    def prompts_for_update(self) -> list[Prompt]:
        """``batch_size`` prompts, each ``group_size`` times in a row where the algorithm compares texts of a prompt."""
        group = getattr(self.config, "group_size", None) or 1
        return [p for p in self.next_prompts(self.config.batch_size // group) for _ in range(group)]

    def collect(self) -> tuple[Rollout, dict[str, float]]:
        """Texts for one update, with rewards as the environment pays them, and what can be measured on them."""
        return agent_texts.rollout_for_update(self)

    @property
    def state(self) -> TrainerState:
        """What reward models get as ``trainer_state``."""
        return trainer_state(self)

    def describe(self, rollout: Rollout) -> dict[str, float]:
        """Metrics of a rollout that this policy made: :func:`lm_gym.measures.describe`."""
        return measures.describe(rollout)

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
        return self.base_lr * left * self.step_size_factor

    def learn(
        self: Self,
        total_tokens: int,
        *,
        out: str | Path | None = None,
        trackers: Sequence[str] = ("csv", "jsonl"),
        progress: bool = False,
        save_every: int | None = None,
        keep_checkpoints: int | None = KEEP_CHECKPOINTS,
        resume: bool = False,
        guard: Guard | None = None,
        run_config: Mapping[str, Any] | None = None,
        callback: Callable[[Any, dict[str, float]], bool | None] | None = None,
    ) -> Self:
        """Train on ``total_tokens`` more response tokens (the update that passes them is the last).

        Args:
            out: the run's folder: config, metrics, samples, checkpoints; None: nothing is written. One that holds a run
                is gone on with if it is this agent's own (it was loaded from there, or wrote it), else refused.
            trackers: see :class:`lm_gym.tracking.Tracker`. progress: draw progress on the terminal.
            save_every: updates between checkpoints; None: one at the end.
            keep_checkpoints: how many of them stay, the newest; None: all.
            resume: go on in the schedule of a loaded checkpoint: ``total_tokens`` counts from where that one began. An
                agent without updates, whose run was stopped before its first checkpoint, begins again.
            guard: when to evaluate the policy and take it back, :class:`lm_gym.guard.Guard`; None: never.
            run_config: what ``config.yaml`` holds beside the agent's fields.
            callback: called after every update with the agent and its metrics; returning False stops the training.
        """
        total_tokens = whole("total_tokens", total_tokens)
        for name, value in (("save_every", save_every), ("keep_checkpoints", keep_checkpoints)):
            if value is not None:
                whole(name, value)
        if resume:
            agent_state.check_resume(self, guard is not None)
        with contextlib.ExitStack() as stack:
            if out is not None:
                out = stack.enter_context(run_folder.taken(self, Path(out), resume))
            keep_freed_memory()
            judge = self.mdp.reward_model
            lasting = callable(getattr(judge, "fingerprint", None)) and not callable(getattr(judge, "update", None))
            if out is not None or not lasting:
                _ = self.mdp.reward_hash  # as it is before it is used: its attributes may change
            if self.updates == 0:
                prepare_reward_model(self.mdp.reward_model, self.mdp)
            if out is not None:
                reward_state(self.mdp.reward_model)  # one that a checkpoint cannot hold is refused before the training
            self._schedule = (self._schedule[0] if resume else self.tokens, total_tokens)
            config = dict(run_config or {}) | {"agent": {"name": self.named or self.name, **plain_config(self.config)}}
            config.setdefault("run", self.run_info() if out is not None else {})
            tracker = Tracker(
                out,
                config=config,
                trackers=tuple(t for t in trackers if out is not None or t not in ("csv", "jsonl")),
                total=sum(self._schedule),
                quiet=not progress,
                resume=resume or self.updates > 0,
            )
            with tracker:
                if out is not None and (resume or self.updates > 0):
                    tracker.truncate_to(self.updates)  # an agent that was loaded goes on where its checkpoint is
                    checkpoints.rewind(out, self.updates)
                self.watch = None if guard is None else Watch(self, guard, self.saved_guard if resume else None)
                self.saved_guard = saved = None
                while self.progress < 1.0:
                    try:
                        done = self._advance()
                    except blame.Suspect as error:
                        tracker.note(blame.answer(self, error, out))
                        continue
                    metrics = done.metrics
                    if self.watch is not None:
                        metrics |= self.watch.after_update(note=tracker.note)
                    self._log(tracker, done, out)
                    if out is not None and save_every and self.updates % save_every == 0:
                        saved = self._keep(out, keep_checkpoints)
                    if callback is not None and callback(self, metrics) is False:
                        break
            if out is not None and saved != self.updates:
                self._keep(out, keep_checkpoints)
        return self

    def _log(self, tracker: Tracker, done: Update, out: Path | None) -> None:
        """Write down what an update did. Where that is refused, the update is kept all the same."""
        try:
            tracker.log(done.metrics, step=self.updates, tokens=self.tokens)
            tracker.samples(done.samples, self.updates)
        except Exception:  # a metric's name, a tracker without its server, a disk full of rows: we may have room
            if out is not None:
                with contextlib.suppress(OSError):  # the first error says what is wrong
                    self._keep(out, None)
            raise

    def _keep(self, out: Path, keep: int | None) -> int:
        """A checkpoint in a run's folder, and old ones out of it; its number."""
        self.save(out / "checkpoints" / f"step-{self.updates}")
        checkpoints.prune(out, keep)
        return self.updates

    def run_info(self) -> dict[str, Any]:
        """Seed, versions, git revision, command, and the hashes of reference and reward model, for ``config.yaml``."""
        hashes = {
            "reference": self.mdp.reference.fingerprint(),
            "reward_model": self.mdp.reward_hash,
        }
        return run_info(seed=self.config.seed, hashes=hashes) | ({"data": self.data_rows} if self.data_rows else {})

    def one_update(self) -> Update:
        """Texts and one update on them. An algorithm that trains on given data has its own."""
        rollout, metrics = self.collect()
        before = time.perf_counter()
        metrics |= self.update(rollout)
        metrics["perf/update_seconds"] = time.perf_counter() - before
        return Update(metrics, int(rollout.lengths.sum()), len(rollout), measures.samples(rollout, self.mdp))

    def _advance(self) -> Update:
        started = time.perf_counter()
        lr = self.current_lr()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        logged = {"kl_coef": self.kl_coef, "lr": lr}
        done = self.one_update()
        for key, value in done.metrics.items():
            if not math.isfinite(value):
                raise blame.Suspect(f"{key} expected finite, got {value}")
        update_reward_model(self.mdp.reward_model, done.metrics)
        self.updates += 1
        self.engine.update_weights(self.policy.lm, self.updates)
        self.tokens += done.tokens
        self.episodes += done.texts
        rate = done.tokens / (time.perf_counter() - started)
        done.metrics = logged | done.metrics | {"episode": self.episodes, "perf/tokens_per_second": rate}
        self.last = done
        return done

    # ---- acting --------------------------------------------------------------------------------------------------

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, None]:
        """(action, None) for ``tokens`` observations, single or batched; Stable-Baselines3's signature."""
        return agent_texts.predict(self, observation, deterministic), None

    def complete(
        self, prompts: Any, *, greedy: bool = False, max_new_tokens: int | None = None, seed: int = 0
    ) -> list[Completion]:
        """A completion for each prompt (texts, records, or any prompt source), with log-probs; for :meth:`score`."""
        return agent_texts.complete(self, prompts, greedy=greedy, max_new_tokens=max_new_tokens, seed=seed)

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
        n = whole("n", n)
        records = self.mdp.prompts if prompts is None else agent_texts.records_of(self.mdp, prompts)
        if prompts is None:  # spread over all of them
            order = np.random.default_rng(seed).permutation(len(records))
            records = [records[i] for i in order]
        return self.evaluate_on([records[i % len(records)] for i in range(n)], seed).metrics

    def evaluate_on(self, prompts: Sequence[Prompt], seed: int) -> Drawn:
        """One text for each prompt, scored and measured; the same draws in every call with one seed."""
        completions = self.complete(prompts, seed=seed)
        return measure(self.mdp, self.policy.lm, completions, kl_coef=self.kl_coef, trainer_state=self.state)

    def exact_policy(self, language: Any) -> np.ndarray:
        """(S, V) probabilities in every state of an exact language: what :func:`lm_gym.exact.evaluate` takes."""
        return agent_texts.exact_policy(self, language)

    # ---- keeping -------------------------------------------------------------------------------------------------

    def copies(self) -> dict[str, dict[str, torch.Tensor]]:
        """Weights of the models that follow the policy: kept in checkpoints, and taken back with it by a guard."""
        control = self.kl_control
        return {} if control is None or control.ema is None else {"ema": control.ema_values()}

    def copies_were_set(self) -> None:
        """What is to be done after :meth:`copies` were written to."""
        if self.kl_control is not None:
            self.kl_control.round_ema()

    def extra_state(self) -> dict[str, Any]:
        """What an algorithm adds to ``state.json``."""
        return {} if self.example_source is None else self.example_source.state()

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`extra_state` gave."""
        if self.example_source is not None:
            self.example_source.saved_state = state

    def save(self, folder: str | Path) -> Path:
        """Write a checkpoint: what is trained, the optimizer, every random state, counters. No pickle."""
        return agent_state.save(self, folder)

    def extra_tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """Groups of tensors that an algorithm adds to its checkpoint."""
        return {} if self.example_source is None else self.example_source.tensors()

    def load_extra_tensors(self, groups: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Take back what :meth:`extra_tensors` gave; called after :meth:`load_extra_state`."""
        if self.example_source is not None:
            self.example_source.load(groups)

    @classmethod
    def load(cls: type[Self], folder: str | Path, env: Any, **overrides: Any) -> Self:
        """An agent from a checkpoint, or from a run's folder (its newest checkpoint), on ``env``.

        Raises:
            ValueError: if it is damaged, of another agent, or was trained against another reference.
        """
        return agent_state.load(cls, folder, env, overrides)

    def save_pretrained(
        self, folder: str | Path, *, merge: bool = True, run: str | Path | None = None, push_to_hub: str | None = None
    ) -> Path:
        """Write the policy as a plain ``transformers`` folder: :func:`lm_gym.export.save_pretrained`."""
        from lm_gym.export import save_pretrained

        return save_pretrained(self, folder, merge=merge, run=run, push_to_hub=push_to_hub)
