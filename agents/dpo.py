"""Direct preference optimisation: a policy from pairs of texts, without a reward model in the loop.

With h = log(π(y_c|x)/π_ref(y_c|x)) − log(π(y_r|x)/π_ref(y_r|x)), for a chosen and a rejected text of a prompt:

    "dpo" (Rafailov et al. 2023, arXiv:2305.18290, eq. 7):   L = −log σ(β·h)
    with label_smoothing ε (conservative DPO; Mitchell 2023, "A note on DPO with noisy preferences"):
                                                             L = −(1 − ε)·log σ(β·h) − ε·log σ(−β·h)
    "ipo" (Azar et al. 2023, arXiv:2310.12036, eq. 17):      L = (h − 1/(2β))²         (their τ is our β)

A pair may come with a label p = P(chosen is better), as some annotated data does: then (1 − ε) above becomes
p·(1 − ε) + (1 − p)·ε, and IPO's target (2p − 1)/(2β). β is the environment's ``kl_coef``. Log-probs are sums over the
response (TRL's IPO takes means), at the problem's temperature.

Pairs are given (``pairs``), or drawn: both texts from the reference, on the environment's prompts, and preferred by the
model of Bradley & Terry on the environment's reward, P(a is better) = σ(R_a − R_b). By default every update draws fresh
pairs, so that the end point is that of the population loss and no data set's, and the label is that probability itself,
the mean of the labels that annotators would give. On the worked example its regret is (lm_gym.exact.dpo_endpoint):

    dpo 0 (it is the optimum π*),   label_smoothing .1: .0691,   ipo .5051

With the default configuration, 100,000 tokens end there. Labels that are drawn (``labels="sampled"``) have the same end
point, and noise that no optimizer takes away: the exact best fit of 20,800 such pairs (100,000 tokens) is at regret
.0062, of 100,000 pairs at .0014, of 1,000 pairs at .29 (means of 5 draws). "hard" labels have no end point but the
reference's best texts (h grows without bound; regret .418). The policy does not write while it trains: what the
reference never writes, it does not learn.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn.functional import logsigmoid

from lm_gym import judged
from lm_gym.agent import LMAgent, Update
from lm_gym.agent_config import AgentConfig
from lm_gym.choices import check_choice
from lm_gym.data_rows import Rows
from lm_gym.example_source import ExampleSource, read_pairs
from lm_gym.judged import LABELS, Batch


@dataclass
class DPOConfig(AgentConfig):
    """DPO's fields, beside those of :class:`lm_gym.agent_config.AgentConfig`."""

    batch_size: int = 32
    """Texts an update: 16 pairs."""
    micro_batch_size: int | None = None
    """Texts a forward pass, the gradients adding up to the batch's; None: the batch. Saves memory only."""
    pairs: str | None = None
    """Preference data: a file (.jsonl, .json, .csv, .tsv, .parquet), a folder or a hub id; in Python also a list or a
    `Dataset`. None: pairs are drawn from the reference and labelled by the environment's reward."""
    unusable: str = "error"
    """Given rows that cannot be used: an "error", or "drop": they are left out, and a warning counts them."""
    too_long: str = "error"
    """Given rows that the environment has no room for: an "error"; "drop"; or "cut": an answer ends at max_new_tokens,
    a prompt loses its beginning (BOS aside). A warning counts them."""
    max_length: int | None = None
    """The longest prompt and answer together, in tokens, of given rows: beyond it the prompt is cut until half of that
    is left of it, then the answers. None: the environment's own limits."""
    n_pairs: int = 0
    """Of drawn pairs: so many, drawn once and gone over repeatedly, as a data set is; 0: fresh ones each update."""
    labels: str = "probability"
    """Of drawn pairs: the "probability" that the first is better, "sampled" with it, or "hard" (the higher score)."""
    loss: str = "dpo"
    """"dpo" or "ipo"."""
    label_smoothing: float = 0.0
    """ε of conservative DPO: the share of labels that is taken to be wrong, below .5."""


def dpo_loss(h: torch.Tensor, labels: torch.Tensor, beta: float, label_smoothing: float = 0.0) -> torch.Tensor:
    """−q·log σ(β·h) − (1 − q)·log σ(−β·h), q = p·(1 − ε) + (1 − p)·ε (Rafailov et al. 2023, eq. 7; Mitchell 2023).

    Args:
        h: (n,) log π/π_ref of the first text less that of the second. labels: (n,) p, P(the first is better).
        beta: β above 0. label_smoothing: ε, 0 to .5.

    Returns:
        (n,) losses.
    """
    q = labels * (1 - label_smoothing) + (1 - labels) * label_smoothing
    return -q * logsigmoid(beta * h) - (1 - q) * logsigmoid(-beta * h)


def ipo_loss(h: torch.Tensor, labels: torch.Tensor, tau: float) -> torch.Tensor:
    """(h − (2p − 1)/(2τ))², (n,) (Azar et al. 2023, eq. 17, with p = 1); arguments as in :func:`dpo_loss`."""
    return (h - (2 * labels - 1) / (2 * tau)).square()


def fit_pairs(agent: LMAgent, batch: Batch) -> dict[str, float]:
    """One optimizer step on the loss that the config of an agent asks for; returns what is logged."""
    c: Any = agent.config
    beta = agent.kl_coef

    def loss(logps: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        ratios = logps - batch.ref_logprobs[at].to(logps.device)
        h, labels = ratios[:, 0] - ratios[:, 1], batch.labels[at].to(logps.device)
        return ipo_loss(h, labels, beta) if c.loss == "ipo" else dpo_loss(h, labels, beta, c.label_smoothing)

    metrics, logps = judged.descend(agent, batch, loss)
    return batch.metrics | metrics | pair_metrics(logps, batch.ref_logprobs, batch.labels, beta)


def pair_metrics(logps: torch.Tensor, ref_logps: torch.Tensor, labels: torch.Tensor, beta: float) -> dict[str, float]:
    """What TRL logs, of log-probs (n, 2) and labels (n,). Ties (.5) have no chosen text and are left out."""
    kept = labels != 0.5
    if not kept.any():
        return {}
    logps, ref_logps, first = logps[kept], ref_logps[kept], labels[kept, None] > 0.5
    ordered = torch.where(first, logps, logps.flip(-1))
    rewards = beta * (ordered - torch.where(first, ref_logps, ref_logps.flip(-1)))
    margins = rewards[:, 0] - rewards[:, 1]
    return {
        "rewards/chosen": float(rewards[:, 0].mean()),
        "rewards/rejected": float(rewards[:, 1].mean()),
        "rewards/accuracies": float((margins > 0).float().mean()),
        "rewards/margins": float(margins.mean()),
        "logps/chosen": float(ordered[:, 0].mean()),
        "logps/rejected": float(ordered[:, 1].mean()),
    }


def check_pair_config(config: Any, beta: float) -> None:
    """Refuse what no pair loss can mean."""
    check_choice("loss", config.loss, ("dpo", "ipo"))
    check_choice("labels", config.labels, LABELS)
    if not 0 <= config.label_smoothing < 0.5:
        raise ValueError(f"label_smoothing expected 0 to below .5, got {config.label_smoothing}")
    if config.loss == "ipo" and config.label_smoothing:
        raise ValueError("label_smoothing is of loss='dpo': with loss='ipo' it would be another τ")
    if beta <= 0:
        raise ValueError("kl_coef expected above 0: it is the β of the loss, and 0 leaves nothing to learn")
    if config.batch_size % 2:
        raise ValueError(f"batch_size expected an even number of texts, two a pair, got {config.batch_size}")


class DPO(LMAgent):
    """Direct preference optimisation on pairs of texts; also conservative DPO and IPO.

    The module's docstring has the losses and where they end, :class:`DPOConfig` every field.
    """

    config_class: ClassVar[type[DPOConfig]] = DPOConfig
    name: ClassVar[str] = "dpo"
    extra_groups: ClassVar[tuple[str, ...]] = ("examples",)
    config: DPOConfig
    example_source: ExampleSource

    def __init__(self, env: Any, **config: Any) -> None:
        given = config.pop("pairs", None)
        super().__init__(env, **config)
        c = self.config
        check_pair_config(c, self.kl_coef)
        if c.n_pairs < 0 or 0 < c.n_pairs < c.batch_size // 2:
            raise ValueError(f"n_pairs expected 0 or at least a batch of {c.batch_size // 2}, got {c.n_pairs}")
        if given is not None and (c.n_pairs or c.labels != "probability"):
            raise ValueError("n_pairs and labels are of drawn pairs, which pairs=None asks for; got pairs too")
        if given is None and (c.unusable, c.too_long, c.max_length) != ("error", "error", None):
            raise ValueError("unusable, too_long and max_length are of given pairs, which pairs= asks for; got none")
        rows = Rows("preference data", unusable=c.unusable, too_long=c.too_long, max_length=c.max_length)
        self.example_source = ExampleSource(self, given, rows, read=read_pairs, draw=self.draw, fixed=c.n_pairs)
        c.pairs = self.example_source.name

    def draw(self, n: int) -> Batch:
        """n pairs of the reference's texts, labelled by the environment's reward."""
        prompts = [p for p in self.next_prompts(n) for _ in range(2)]
        texts, metrics = judged.draw(self, self.mdp.reference, prompts)
        assert texts.scores is not None
        first, second = texts.scores.view(-1, 2).T
        return Batch.drawn(texts, judged.preferred(first, second, self.config.labels, self.generator), metrics)

    def one_update(self) -> Update:
        started = time.perf_counter()
        batch = self.example_source.next(self.config.batch_size // 2)
        before = time.perf_counter()
        metrics = fit_pairs(self, batch)
        metrics["length/mean"] = float(batch.texts.lengths.float().mean())
        metrics |= {"perf/data_seconds": before - started, "perf/update_seconds": time.perf_counter() - before}
        return Update(metrics, int(batch.texts.lengths.sum()), len(batch.texts), judged.samples(batch, self.mdp))
