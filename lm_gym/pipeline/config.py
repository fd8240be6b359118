"""What a pipeline is configured by: general options, and a section for each stage."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from lm_gym.agent import LMAgent
from lm_gym.agent_config import make_config
from lm_gym.agents.ppo import PPO
from lm_gym.agents.sft import SFT
from lm_gym.choices import check_choice
from lm_gym.data_rows import UNUSABLE
from lm_gym.guard import Guard
from lm_gym.preference_data import Annotators
from lm_gym.reward_models.bradley_terry import RewardModelConfig

STAGES = ("sft", "preferences", "reward-model", "rl", "evaluation")
"""In their order; each one's result is the folder of its name."""

GOLD = {"reviews": "tiny-sentiment", "questions": "tiny-helpfulness", "requests": "tiny-harmlessness"}
"""What is true about the texts of a prompt set of tiny."""

OURS = ("data", "eval_data", "kl_coef", "seed")
"""Fields of an agent's config that the pipeline sets."""


@dataclass
class SFTStage:
    """Supervised fine-tuning on demonstrations."""

    demonstrations: str | None = None
    """Prompt-completion data in TRL's formats; None: good texts of tiny's world, for the prompts tiny:...."""
    count: int = 512
    """Demonstrations to train on, the first of a file (all it has where they are fewer); 0: all of a file."""
    held_out: int = 128
    """Further ones for the held-out loss: of other prompts."""
    epochs: float = 2.0
    """Passes over them."""
    save_every: int = 20
    """Updates between checkpoints, from which a stopped run goes on."""
    agent: dict[str, Any] = field(default_factory=dict)
    """Fields of SFTConfig: batch_size, learning_rate, micro_batch_size and so on."""

    def __post_init__(self) -> None:
        _at_least(self, count=0, held_out=0, save_every=1)
        if not self.epochs > 0:
            raise ValueError(f"sft.epochs expected above 0, got {self.epochs}")
        _check_agent("sft", SFT, self.agent)


@dataclass
class PreferenceStage:
    """Pairs of the fine-tuned model's texts, and who prefers which."""

    data: str | None = None
    """Pairs from a file instead, in any of TRL's formats; then nothing is drawn or labelled."""
    test_data: str | None = None
    """Held-out pairs beside `data`."""
    unusable: Literal["error", "drop"] = "error"
    """Rows of the two that are no pairs refuse the whole, or are left out and counted in a warning."""
    judge: str | None = None
    """The score that the annotators look at, a reward model; None: the gold score."""
    pairs: int = 3000
    """To train on; prompts are used several times where there are fewer."""
    test_pairs: int = 1000
    """On evaluation prompts, to measure the reward model with; no model is trained or chosen by them."""
    annotators: Annotators = field(default_factory=Annotators)
    """Who labels, and with what noise."""

    def __post_init__(self) -> None:
        _at_least(self, pairs=1, test_pairs=1)
        if (self.data is None) != (self.test_data is None):
            raise ValueError("preferences expected data and test_data, or neither")
        check_choice("preferences.unusable", self.unusable, UNUSABLE)
        if self.data is None and self.unusable != "error":
            raise ValueError("preferences.unusable is of the rows of preferences.data, and there are none")
        if self.data is not None and self.judge is not None:
            raise ValueError("preferences.judge would do nothing: the pairs of preferences.data are labelled already")


@dataclass
class RewardModelStage:
    """A Bradley-Terry reward model of the pairs."""

    start: str = "sft"
    """What its trunk starts from: sft (the fine-tuned model), base, or a model by name."""
    config: RewardModelConfig = field(default_factory=RewardModelConfig)
    """How it is trained; model, seed and device are the pipeline's. `layers` None: two of tiny, all of other models."""


@dataclass
class RLStage:
    """Reinforcement learning against the learned reward, from the fine-tuned model, which KL is measured against."""

    agent_class: type[LMAgent] = PPO
    """Any agent that trains."""
    total_tokens: int = 30_000
    """Tokens to train on; the update that passes them is the last."""
    kl_coef: float = 0.2
    """β, the price of a nat of KL in units of the reward model: log-odds of being preferred."""
    save_every: int = 5
    """Updates between checkpoints, from which a stopped run goes on."""
    guard_every: int = 0
    """Above 0: every so many updates the policy is evaluated by the learned reward, on a tenth of the training prompts
    that is then not trained on; one that got worse by more than its noise is taken back, with half the step size."""
    guard_prompts: int = 64
    """Texts of such an evaluation."""
    guard_kl: float | None = None
    """Nats a text: a policy further than this from the fine-tuned model is taken back too; None: no limit."""
    agent: dict[str, Any] = field(default_factory=dict)
    """Fields of the agent's config: batch_size, epochs, learning_rate and so on."""

    def __post_init__(self) -> None:
        _at_least(self, total_tokens=1, save_every=1, guard_every=0)
        if self.guard_every:
            Guard(self.guard_every, None, self.guard_prompts, self.guard_kl)  # checks them
        elif self.guard_kl is not None:
            raise ValueError("rl.guard_kl has no effect without rl.guard_every, the updates between two looks")
        if not self.agent_class.trains:
            raise ValueError(f"rl expected an agent that trains, got {self.agent_class.name}")
        if not self.kl_coef >= 0:
            raise ValueError(f"rl.kl_coef expected at least 0, got {self.kl_coef}")
        _check_agent("rl", self.agent_class, self.agent)


@dataclass
class EvaluationStage:
    """What the policies are compared on."""

    texts: int = 512
    """Evaluation prompts, a text of each policy for each; fewer where there are fewer."""
    best_of_n: int = 4
    """Texts of the fine-tuned model, of which the reward model's favourite is kept."""
    samples: int = 12
    """Prompts that are shown with all their texts."""

    def __post_init__(self) -> None:
        _at_least(self, texts=2, best_of_n=2, samples=0)


@dataclass
class Pipeline:
    """All of it."""

    model: str = "tiny"
    """The base model: tiny, a hub id, a folder, or a GGUF file."""
    prompts: str = "tiny:requests"
    """A prompt source, as in `lm-gym train`."""
    eval_prompts: str | None = None
    """Prompts that nothing is trained on; None: the test split of a tiny:... set, the last tenth of any other."""
    gold: str | None = None
    """What is true about a text, a reward model: annotators look at it and the report judges by it. None: the score
    that belongs to a tiny:... set."""
    max_new_tokens: int = 32
    """A text ends after so many tokens."""
    temperature: float = 1.0
    """Of all sampling, and of KL."""
    seed: int = 0
    """Of every draw."""
    device: str = "cpu"
    """cpu, cuda, or cuda:N."""
    sft: SFTStage = field(default_factory=SFTStage)
    preferences: PreferenceStage = field(default_factory=PreferenceStage)
    reward_model: RewardModelStage = field(default_factory=RewardModelStage)
    rl: RLStage = field(default_factory=RLStage)
    evaluation: EvaluationStage = field(default_factory=EvaluationStage)

    def __post_init__(self) -> None:
        if self.model == "tiny" and self.reward_model.start in ("sft", "base"):
            self.reward_model = _of_tiny(self.reward_model)
        if self.sft.demonstrations is None and self.tiny_kind is None:
            raise ValueError(
                f"the prompts {self.prompts!r} have no demonstrations of their own: give sft.demonstrations, a file "
                "with prompt and completion"
            )
        if self.sft.demonstrations is None and self.sft.count < 1:
            raise ValueError("sft.count expected at least 1: tiny's world writes as many demonstrations as one likes")
        if self.gold is None and self.tiny_kind is None:
            raise ValueError(f"the prompts {self.prompts!r} have no score of their own: give gold, such as vader")

    def sources(self) -> dict[str, str | None]:
        """What may be a file or a folder of this machine, by its option."""
        start, given = self.reward_model.start, self.preferences
        return {
            "model": self.model,
            "prompts": self.prompts,
            "eval_prompts": self.eval_prompts,
            "gold": self.gold,
            "sft.demonstrations": self.sft.demonstrations,
            "preferences.data": given.data,
            "preferences.test_data": given.test_data,
            "preferences.judge": given.judge,
            "reward_model.start": None if start in ("sft", "base") else start,
        }

    @property
    def tiny_kind(self) -> str | None:
        """The kind of a prompt set of tiny, `tiny:<kind>`; None: other prompts."""
        parts = self.prompts.split(":")
        kind = (parts[1:2] or ["reviews"])[0]
        return kind if parts[0] == "tiny" and kind in GOLD and parts[2:] in ([], ["train"]) else None

    @property
    def gold_name(self) -> str:
        """The gold score by name."""
        return self.gold if self.gold is not None else GOLD[str(self.tiny_kind)]

    @property
    def eval_source(self) -> str | None:
        """The source of the evaluation prompts; None: a part of `prompts`."""
        if self.eval_prompts is not None or self.tiny_kind is None:
            return self.eval_prompts
        return f"tiny:{self.tiny_kind}:test"


def _of_tiny(stage: RewardModelStage) -> RewardModelStage:
    """With two layers, at half the time of four; docs/pipeline.md has what they reach."""
    layers = 2 if stage.config.layers is None else stage.config.layers
    return dataclasses.replace(stage, config=dataclasses.replace(stage.config, layers=layers))


def _at_least(section: Any, **lows: int) -> None:
    for name, low in lows.items():
        if getattr(section, name) < low:
            raise ValueError(f"{name} expected at least {low}, got {getattr(section, name)}")


def _check_agent(section: str, kind: type[LMAgent], given: dict[str, Any]) -> None:
    """Refuse what the agent does not know, values out of bounds, and what is the pipeline's to set."""
    taken = [name for name in given if name in OURS]
    if taken:
        raise ValueError(f"{section} expected no {taken[0]} among the agent's fields: the pipeline sets it")
    make_config(kind.config_class, given, f"{section} ({kind.name})")


def agent_fields(kind: type[LMAgent]) -> list[dataclasses.Field[Any]]:
    """The fields of an agent's config that a pipeline leaves to its user."""
    return [f for f in dataclasses.fields(kind.config_class) if f.name not in OURS]
