"""A Bradley-Terry reward model, trained here: a language model's trunk with one number for a head.

What comes out is a `transformers` folder (AutoModelForSequenceClassification, num_labels=1) that `hf:<folder>` and any
other tool load. Training reads texts with the very `Classifier` that will judge with it: prompt and completion joined,
by the tokenizer's own rule for special tokens, or the chat template.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lm_gym.choices import check_choice
from lm_gym.data_rows import Rows
from lm_gym.folders import filled_aside
from lm_gym.forward import by_length
from lm_gym.preferences import Preference, Ranking
from lm_gym.reward_models.bt_data import Comparison, annotator_names, batches, encode, split, table
from lm_gym.reward_models.bt_losses import TIES, centring_penalty, comparison_loss, plackett_luce_loss
from lm_gym.reward_models.bt_parameters import ANNOTATORS, CommonParameters, Estimate, estimate
from lm_gym.reward_models.classifier import Classifier
from lm_gym.reward_models.scalar_model import scalar_model
from lm_gym.runinfo import write_atomically

COMMON_LEARNING_RATE = 0.02
"""Of tie and annotator parameters, in the space of the logarithms: a few scalars need no small steps."""
EVAL_TOKENS = 16_384
"""Padded tokens a forward when scoring."""
RECORD = "bradley_terry.json"
"""Beside the weights: configuration, history, estimates."""


@dataclass
class RewardModelConfig:
    """How a Bradley-Terry reward model is trained."""

    model: str = "tiny"
    """Where the trunk comes from: tiny, a hub id, a folder, or a GGUF file."""
    layers: int | None = None
    """Use its first so many layers; None: all."""
    epochs: int = 2
    """Passes over the comparisons, at most."""
    batch_size: int = 32
    """Comparisons an update."""
    learning_rate: float | None = None
    """Peak step size of Adam; None: as suits the model's size, 9e-4 for tiny."""
    warmup: float = 0.1
    """Share of the updates in which the step size rises; then it falls to 0 in a line."""
    weight_decay: float = 0.0
    """Of AdamW, on all weights."""
    max_grad_norm: float = 1.0
    """Gradients are cut to this norm."""
    max_length: int | None = None
    """The longest prompt and completion together, in tokens; None: the model's own limit."""
    too_long: Literal["cut", "drop", "error"] = "cut"
    """Comparisons with a longer text: the text loses its beginning, the comparison is left out, or an error names it. A
    warning counts them."""
    unusable: Literal["error", "drop"] = "error"
    """Comparisons that cannot be used: an error, or they are left out, and a warning counts them."""
    ties: Literal["none", "rao-kupper", "davidson"] = "none"
    """How a tie (label .5) comes about; none: it is half a victory for both."""
    annotators: Literal["none", "scale", "accuracy"] = "none"
    """What each annotator has of its own: a factor of the differences, or a probability to say what it means."""
    use_margin: bool = False
    """Ask for differences beyond the column `margin`: −log σ(s_A − s_B − margin)."""
    label_smoothing: float = 0.0
    """ε: a label l becomes (1 − ε)·l + ε·(1 − l)."""
    centring: float = 0.01
    """Weight of the squared sum of a comparison's scores, which keeps their mean at 0."""
    held_out: float = 0.1
    """Share of the prompts that is kept out for early stopping; 0: none, and all epochs are run."""
    evals_per_epoch: int = 2
    """Looks at the held-out comparisons; the weights with the least loss there are kept."""
    patience: int = 3
    """Looks without a smaller held-out loss until training stops."""
    seed: int = 0
    """Of the split and the order."""
    device: str = "cpu"
    """cpu, cuda, or cuda:N."""

    def __post_init__(self) -> None:
        check_choice("ties", self.ties, ("none", *TIES))
        check_choice("annotators", self.annotators, ("none", *ANNOTATORS))
        for name in ("epochs", "batch_size", "evals_per_epoch", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} expected at least 1, got {getattr(self, name)}")
        for name, high in (("warmup", 1.0), ("label_smoothing", 0.5), ("held_out", 1.0)):
            if not 0 <= getattr(self, name) < high:
                raise ValueError(f"{name} expected a number from 0 up to but not {high:g}, got {getattr(self, name)}")
        if self.layers is not None and self.layers < 1:
            raise ValueError(f"layers expected at least 1, got {self.layers}")
        used = [n for n in ("use_margin", "label_smoothing") if getattr(self, n)]
        if self.ties != "none" and used:
            raise ValueError(f"ties={self.ties!r} has its own likelihood of labels: leave {' and '.join(used)} out")


@dataclass
class RewardModelFit:
    """A trained reward model and how it came about."""

    judge: Classifier
    """The reward model: call it as any other."""
    config: RewardModelConfig
    history: list[dict[str, float]]
    """A row a look: epoch, train_loss since the last look, held-out loss, accuracy and calls of it, cpu_seconds."""
    best: int
    """The row of `history` whose weights these are."""
    held_out: str
    """What was held out, in words."""
    estimates: list[Estimate] = field(default_factory=list)
    """Gain, tie and annotator parameters with 95% intervals, from the held-out comparisons."""

    def save(self, folder: str | Path) -> Path:
        """Write weights, tokenizer and bradley_terry.json; `hf:<folder>` gives the same scores."""
        record = {
            "config": dataclasses.asdict(self.config),
            "history": self.history,
            "best": self.best,
            "held_out": self.held_out,
            "estimates": [dataclasses.asdict(e) for e in self.estimates],
        }
        with filled_aside(folder) as aside:
            self.judge.model.save_pretrained(aside)
            self.judge.tokenizer.save_pretrained(aside)
            write_atomically(aside / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        return Path(folder)


def train_reward_model(
    data: Sequence[Preference | Ranking],
    config: RewardModelConfig | None = None,
    *,
    held_out_data: Sequence[Preference | Ranking] | None = None,
    log: Callable[[dict[str, float]], None] | None = None,
    **changes: Any,
) -> RewardModelFit:
    """Train on pairs (labels in [0, 1]) and rankings.

    Args:
        config: its fields may also be given by name (`changes`).
        held_out_data: comparisons for early stopping; None: a share of `data` (`config.held_out`), split by prompt.
        log: called with every row of the history.

    Raises:
        ValueError: no comparisons, or an option that they cannot serve.
        FloatingPointError: the loss is no number.
    """
    config = dataclasses.replace(config or RewardModelConfig(), **changes)
    if not data:
        raise ValueError("expected comparisons to train on, got none")
    model, tokenizer, rate = scalar_model(config.model, layers=config.layers, device=config.device)
    judge = Classifier(model, tokenizer=tokenizer, max_length=config.max_length)
    if not isinstance(config.model, (str, Path)):  # a live one, which no file could name
        config = dataclasses.replace(config, model=str(getattr(config.model, "name", type(config.model).__name__)))
    judge.name = f"bradley-terry:{config.model}"
    names = annotator_names(data)
    _check(data, names, config)
    what = Rows("comparisons", unusable=config.unusable, too_long=config.too_long)
    train = encode(data, judge, names, what, margins=config.use_margin)
    kept: list[Comparison] = []
    how = "none"
    if held_out_data is not None:
        what = Rows("held-out comparisons", unusable=config.unusable, too_long=config.too_long)
        kept, how = encode(held_out_data, judge, names, what, margins=config.use_margin), "given"
    elif config.held_out:
        train, kept, how = split(train, config.held_out, config.seed)
    if not train:
        raise ValueError(f"expected comparisons to train on, got {len(data)}, all of them held out")
    ties, annotators = (None if kind == "none" else kind for kind in (config.ties, config.annotators))
    common = CommonParameters(ties, annotators, names).to(model.device)
    history, best = _fit(judge, common, train, kept, config, rate, log)
    fit = RewardModelFit(judge, config, history, best, how)
    if kept:
        fit.estimates = _estimates(judge, common, kept)
    return fit


def _check(data: Sequence[Preference | Ranking], names: Sequence[str], config: RewardModelConfig) -> None:
    if config.annotators != "none" and len(names) < 2:
        raise ValueError(
            f"annotators={config.annotators!r} expected rows by several annotators (column `annotator`), got "
            f"{', '.join(names) or 'none'}"
        )
    if config.ties != "none" and not any(isinstance(row, Preference) and row.label == 0.5 for row in data):
        raise ValueError(f"ties={config.ties!r} expected rows with the label .5, got none: leave ties out")
    long = sum(isinstance(row, Ranking) and len(row.completions) > 2 for row in data)
    if long and (config.ties != "none" or config.annotators == "accuracy" or config.label_smoothing):
        raise ValueError(
            f"{long} rankings of three or more: they go with annotators='scale', and with neither ties, accuracies nor "
            "label_smoothing"
        )


def _fit(
    judge: Classifier,
    common: CommonParameters,
    train: list[Comparison],
    kept: list[Comparison],
    config: RewardModelConfig,
    rate: float,
    log: Callable[[dict[str, float]], None] | None,
) -> tuple[list[dict[str, float]], int]:
    """Train in place, and leave the best weights; the history, and which row of it was the best."""
    model, rng = judge.model, random.Random(config.seed)
    model.requires_grad_(True)
    per_epoch = math.ceil(len(train) / config.batch_size)
    steps = config.epochs * per_epoch
    looks = {round(per_epoch * (i + 1) / config.evals_per_epoch) for i in range(config.evals_per_epoch)}
    groups: list[dict[str, Any]] = [
        {"params": list(model.parameters()), "lr": config.learning_rate or rate, "weight_decay": config.weight_decay},
        {"params": list(common.parameters()), "lr": COMMON_LEARNING_RATE, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _height(step, steps, config.warmup))
    history: list[dict[str, float]] = []
    states: dict[int, Any] = {}
    losses: list[float] = []
    best, started = 0, time.process_time()
    for step, batch in enumerate((b for _ in range(config.epochs) for b in batches(train, config.batch_size, rng)), 1):
        scores = judge.logits([list(text) for c in batch for text in c.texts])[:, 0]
        loss = _losses(common, scores, batch, config, penalty=True).mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} in update {step}: lower learning_rate")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], config.max_grad_norm)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step - 1) % per_epoch + 1 not in looks:
            continue
        row = {"epoch": step / per_epoch, "train_loss": sum(losses) / len(losses)}
        row |= held_out_measures(judge, common, kept, config) if kept else {}
        row["cpu_seconds"] = time.process_time() - started
        history.append(row)
        losses = []
        if log is not None:
            log(row)
        if not kept or row["loss"] <= history[best]["loss"]:
            best = len(history) - 1
            states = {0: copy.deepcopy(model.state_dict()), 1: copy.deepcopy(common.state_dict())} if kept else {}
        elif len(history) - 1 - best >= config.patience:
            break
    if states:
        model.load_state_dict(states[0])
        common.load_state_dict(states[1])
    model.requires_grad_(False)
    return history, best


def _height(step: int, steps: int, warmup: float) -> float:
    """Share of the peak step size at an update from 0: up in a line, then down in one."""
    rise = max(1, round(warmup * steps))
    return (step + 1) / rise if step < rise else (steps - step) / max(1, steps - rise)


def _losses(
    common: CommonParameters, scores: Tensor, batch: Sequence[Comparison], config: RewardModelConfig, *, penalty: bool
) -> Tensor:
    """(B,) from the scores of all texts of B comparisons, one after the other."""
    values, mask = table(scores, batch)
    who = torch.tensor([c.annotator for c in batch], device=scores.device)
    labels = torch.tensor([c.label for c in batch], device=scores.device)
    labels = labels + config.label_smoothing * (1 - 2 * labels)
    margins = torch.tensor([c.margin for c in batch], device=scores.device)
    losses = comparison_loss(common(values[:, 0] - values[:, 1] - margins, who), labels)
    if values.shape[1] > 2:
        scaled = values * common.scales()[who][:, None] if common.annotators == "scale" else values
        losses = torch.where(mask[:, 2], plackett_luce_loss(scaled, mask), losses)
    return losses + config.centring * centring_penalty(values, mask) if penalty else losses


@torch.no_grad()
def held_out_scores(judge: Classifier, data: Sequence[Comparison]) -> Tensor:
    """Scores of all texts, one comparison after the other."""
    texts = [text for c in data for text in c.texts]
    scores = torch.zeros(len(texts))
    for rows in by_length([len(text) for text in texts], EVAL_TOKENS):
        scores[rows] = judge.logits([list(texts[i]) for i in rows])[:, 0].cpu()
    return scores


def held_out_measures(
    judge: Classifier, common: CommonParameters, data: Sequence[Comparison], config: RewardModelConfig
) -> dict[str, float]:
    """Loss without the centring, and accuracy over neighbours of comparisons that are no ties (equal scores: half)."""
    scores = held_out_scores(judge, data)
    with torch.no_grad():
        loss = _losses(copy.deepcopy(common).cpu(), scores, data, config, penalty=False).mean().item()
    values, mask = table(scores, data)
    right = 0.5 + 0.5 * (values[:, :-1] - values[:, 1:]).sign()
    labels = torch.tensor([c.label for c in data])[:, None]
    right = torch.where(labels < 0.5, 1 - right, right)
    counted = mask[:, 1:] & (labels != 0.5)
    accuracy = right[counted].mean().item() if counted.any() else 0.5
    return {"loss": loss, "accuracy": accuracy, "mean_score": scores.mean().item()}


def _estimates(judge: Classifier, common: CommonParameters, kept: Sequence[Comparison]) -> list[Estimate]:
    pairs = [c for c in kept if len(c.texts) == 2]
    if not pairs:
        return []
    values, _ = table(held_out_scores(judge, pairs), pairs)
    labels = torch.tensor([c.label for c in pairs])
    who = torch.tensor([c.annotator for c in pairs])
    return estimate(common, values[:, 0] - values[:, 1], labels, who)
