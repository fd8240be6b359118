"""A transformers sequence classifier as a reward model: a chosen label of several, or the only logit of one."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lm_gym import flat_trunk
from lm_gym.chat import in_one_form, written
from lm_gym.models import check_ids
from lm_gym.positions import because, frequency_switch, hard_limit
from lm_gym.prompts import without_second_bos
from lm_gym.rewards import Text, plain_text

PROBE = (
    "The weather was fine, and all of them went down to the sea; what they found there was an old boat.",
    "It was an old boat.",
)
"""A long text and a short one: what padding does to the short one's score."""
OUTPUTS = ("logit", "prob", "logprob")
TEXTS = ("prompt+completion", "completion", "pair")


class Classifier:
    """Scores a text with a sequence classifier and its own tokenizer, in batches of texts of about equal length.

    Range: any number (`output="logit"`), [0, 1] (`prob`), (-inf, 0] (`logprob`).

    A plain prompt and completion are joined as they stand; a conversation goes through the chat template of the
    classifier's tokenizer. A text that is longer than the classifier takes loses its beginning, with a warning. As a
    pair (`[CLS] prompt [SEP] completion [SEP]`, by the tokenizer's own rule for two texts) the prompt loses its
    beginning; where the completion alone is too long, the whole prompt goes, and the completion loses its end.

    Args:
        model: hub id or folder, or a live model of transformers (then `tokenizer` too): it is used, never copied.
        tokenizer: taken from `model`'s folder if None.
        label: name or number of the label that is the reward. None for a model with one logit, which needs none.
        output: "logit" as the model gives it; "prob" and "logprob" of the softmax over labels, or of the sigmoid where
            there is one logit or the model's problem type is multi-label.
        text: "prompt+completion", "completion", or "pair" for a model that was trained on pairs of texts.
        batch_size: texts a forward.
        max_length: in tokens; None is the model's own limit.
        device: "auto" is CUDA where there is one. Ignored, as `dtype` is, for a live model.
        dtype: "float32", "bfloat16", "float16"; "auto" is the checkpoint's. Log-probs are computed in float32 always.
        revision: of a hub id.
    """

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        label: str | int | None = None,
        output: str = "logit",
        text: str = "prompt+completion",
        batch_size: int = 32,
        max_length: int | None = None,
        device: str = "auto",
        dtype: str = "float32",
        revision: str | None = None,
    ) -> None:
        if output not in OUTPUTS:
            raise ValueError(f"classifier: output is {output!r}; expected one of {', '.join(OUTPUTS)}")
        if text not in TEXTS:
            raise ValueError(f"classifier: text is {text!r}; expected one of {', '.join(TEXTS)}")
        if batch_size < 1:
            raise ValueError(f"classifier: batch_size is {batch_size}; expected at least 1")
        self.output, self.text, self.batch_size = output, text, batch_size
        self.name = f"hf:{model}" if isinstance(model, str) else f"{type(self).__module__}:{type(model).__qualname__}"
        self.__name__ = self.name  # TRL logs rewards/<__name__>: two classifiers have two
        if isinstance(model, str):
            model, tokenizer = _loaded(model, tokenizer, device, dtype, revision)
        elif tokenizer is None:
            raise ValueError("classifier: a live model needs its tokenizer: Classifier(model, tokenizer=...)")
        self.model, self.tokenizer = model, tokenizer
        self.label = _label_index(model.config, label)
        self.max_length = _limit(model, tokenizer, max_length)
        self._switch = frequency_switch(model.config.get_text_config())
        # BigBird's sparse attention follows the length of the batch, and leaves it for good at the first short text
        self._sparse = getattr(model.config, "attention_type", None) == "block_sparse"
        # whether only texts of one length go together, since padding changes scores; None: not known yet
        self._equal_lengths = True if self._sparse else None
        self._warned = False
        # BERT, DeBERTa, XLNet and others tell segments apart
        self._segments = "token_type_ids" in inspect.signature(model.forward).parameters
        if text == "pair" and tokenizer.num_special_tokens_to_add(pair=True) <= tokenizer.num_special_tokens_to_add():
            raise ValueError(
                f"classifier: text=pair expected a tokenizer that writes something between two texts, and that of "
                f"{self.name} joins them as they stand: use text=prompt+completion"
            )

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **_: Any) -> list[float]:
        read = [self._read(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
        tokens, segments = [ids for ids, _ in read], [kinds for _, kinds in read]
        with contextlib.suppress(AttributeError, NotImplementedError):  # CANINE has no table of tokens
            check_ids(tokens, len(self.model.get_input_embeddings().weight), "text", self.name, self.tokenizer)
        order = sorted(range(len(tokens)), key=lambda row: len(tokens[row]))
        size = self.batch_size if self._pad is not None else 1  # without one, transformers takes no batch
        scores = [0.0] * len(tokens)
        was_training = self.model.training
        self.model.eval()
        try:
            for start in range(0, len(order), size):
                rows = order[start : start + size]
                logits = self.logits([tokens[row] for row in rows], [segments[row] for row in rows])
                for row, score in zip(rows, self._chosen(logits).tolist(), strict=True):
                    scores[row] = score
        finally:
            self.model.train(was_training)
        return scores

    def fingerprint(self) -> str:
        """SHA-256 of the weights and of what is read from them."""
        digest = hashlib.sha256(f"{self.label} {self.output} {self.text} {self.max_length}".encode())
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def tokens(self, prompt: Text, completion: Text, *, cut: bool = True, warn: bool = True) -> list[int]:
        """Token ids of a text as the model is given it, at least one and (unless `cut` is false) at most `max_length`.

        A conversation goes through the chat template, with the checks of :func:`lm_gym.chat.written`; a text that
        begins with BOS gets no second one.
        """
        return self._read(prompt, completion, cut=cut, warn=warn)[0]

    def _read(
        self, prompt: Text, completion: Text, *, cut: bool = True, warn: bool = True
    ) -> tuple[list[int], list[int]]:
        """:meth:`tokens`, and the segment of each, where the tokenizer tells segments apart."""
        if self.text == "pair":
            return self._pair(plain_text(prompt), plain_text(completion), cut=cut, warn=warn)
        if self.text == "prompt+completion" and not isinstance(completion, str):
            start = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            if not getattr(self.tokenizer, "chat_template", None):
                raise ValueError(f"{self.name}: its tokenizer has no chat template, and the prompts are conversations")
            text, special = written(in_one_form([*start, *completion]), self.tokenizer, ending="whole"), False
        else:
            before = plain_text(prompt) if self.text == "prompt+completion" else ""
            text, special = before + plain_text(completion), True
        found = self._encoded(text, special=special, cut=cut, warn=warn)
        return found if found[0] else ([self._stand_in()], [])

    def _encoded(self, text: str, *, special: bool, cut: bool, warn: bool) -> tuple[list[int], list[int]]:
        """Ids and segments, at most `max_length`: the end of a long text is kept, since it is what the policy wrote."""
        whole, segments = _plain(self.tokenizer(text, add_special_tokens=special))
        ids = without_second_bos(text, whole, self.tokenizer)
        if not cut or self.max_length is None or len(ids) <= self.max_length:
            return ids, segments[len(whole) - len(ids) :]
        if warn:
            self._warn(len(ids), "a text", "loses its beginning")
        return _plain(self._cut("left", True, text, add_special_tokens=special))

    def _pair(self, first: str, second: str, *, cut: bool, warn: bool) -> tuple[list[int], list[int]]:
        """Ids and segments of two texts, at most `max_length`."""
        found = self.tokenizer(first, second)
        over = 0 if self.max_length is None or not cut else len(found["input_ids"]) - self.max_length
        if over > 0:
            if warn:
                self._warn(len(found["input_ids"]), "a pair", "loses the beginning of its prompt, or all of it")
            if len(self.tokenizer(first, add_special_tokens=False)["input_ids"]) > over:
                found = self._cut("left", "only_first", first, second)
            else:
                found = self._cut("right", "only_second", "", second)
        return _plain(found)

    def _cut(self, at: str, how: bool | str, *texts: str, **options: Any) -> Any:
        side, self.tokenizer.truncation_side = self.tokenizer.truncation_side, at
        try:
            return self.tokenizer(*texts, truncation=how, max_length=self.max_length, **options)
        finally:
            self.tokenizer.truncation_side = side

    def _warn(self, length: int, what: str, loses: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{self.name}: {what} of {length} tokens {loses}, the limit is {self.max_length} (said once)",
                stacklevel=2,
            )

    def _stand_in(self) -> int:
        """What an empty text is given as, where the tokenizer adds no special token: a model cannot read no tokens."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.unk_token_id):
            if token is not None:
                return int(token)
        raise ValueError(f"{self.name}: an empty text has no tokens, and its tokenizer no BOS, EOS or UNK token")

    @property
    def _pad(self) -> int | None:
        pad = self.model.config.get_text_config().pad_token_id
        return None if pad is None else int(pad)

    def logits(self, tokens: list[list[int]], segments: list[list[int]] | None = None) -> Tensor:
        """(B, labels) float32 of B texts, each as if it were alone; ``segments`` of their tokens, or [] for all 0."""
        segments = [[] for _ in tokens] if segments is None else segments
        groups: dict[Any, list[int]] = {}
        for row, text in enumerate(tokens):
            groups.setdefault(self._together(len(text), tokens), []).append(row)
        if len(groups) == 1:
            return self._padded(tokens, segments)
        parts = torch.cat(
            [self._padded([tokens[i] for i in rows], [segments[i] for i in rows]) for rows in groups.values()]
        )
        order = torch.tensor([row for rows in groups.values() for row in rows], device=parts.device)
        return parts[order.argsort()]

    def _together(self, length: int, tokens: list[list[int]]) -> Any:
        """What texts of one forward have in common: all, unless a longer neighbour would change what a text gets."""
        if self._equal_lengths is None and len(set(map(len, tokens))) > 1:
            self._equal_lengths = self._padding_counts()
        # frequencies of longrope follow the longest text of a batch
        return length if self._equal_lengths else self._switch is not None and length > self._switch

    @torch.no_grad()
    def _padding_counts(self) -> bool:
        """Whether a text's score changes when it is padded beside a longer one.

        It does where the head reads the last column (XLNet) or the trunk mixes padding in, mask or not (FNet's Fourier
        transform, ConvBERT's convolutions, Nyströmformer, YOSO, CANINE).
        """
        if isinstance(getattr(self.model, "score", None), torch.nn.Linear) and flat_trunk.is_known(
            self.model.base_model
        ):
            return False
        long, short = (self.tokenizer(text)["input_ids"][: self.max_length] for text in PROBE)
        if not 0 < len(short) < len(long):
            return True
        alone, beside = self._padded([short]), self._padded([short, long])[:1]
        exact = self.model.dtype == torch.float32
        return not torch.allclose(alone, beside, rtol=1e-3 if exact else 0.02, atol=1e-3 if exact else 0.02)

    def _padded(self, tokens: list[list[int]], segments: Sequence[list[int]] = ()) -> Tensor:
        """(B, labels) float32 of B texts, padded behind with the pad token that the model's head looks for."""
        width = max(map(len, tokens))
        device = self.model.device
        ids = torch.full((len(tokens), width), self._pad or 0, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(tokens):
            ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
        base, head = self.model.base_model, getattr(self.model, "score", None)
        if isinstance(head, torch.nn.Linear) and flat_trunk.is_known(base):
            # as transformers does, the state of the last token that is no pad token is what the head reads
            column = torch.arange(width).expand_as(ids)
            real = mask.bool() if self._pad is None else ids != self._pad
            wanted = column == (column * real).amax(-1, keepdim=True)
            texts = flat_trunk.FlatTexts(ids, mask, wanted)
            return head(flat_trunk.run(base, texts.to(device))).float()  # type: ignore[no-any-return]
        if self._sparse:
            base.set_attention_type("block_sparse")
        given = {"input_ids": ids, "attention_mask": mask}
        if self._segments and any(map(any, segments)):
            given["token_type_ids"] = kinds = torch.zeros_like(ids)
            for row, segment in enumerate(segments):
                kinds[row, : len(segment)] = torch.tensor(segment)
        logits = self.model(**{key: value.to(device) for key, value in given.items()}).logits
        return torch.as_tensor(logits).float()

    def _chosen(self, logits: Tensor) -> Tensor:
        """(B,) from (B, labels)."""
        chosen = logits[:, self.label]
        if self.output == "logit":
            return chosen
        if logits.shape[1] == 1 or self.model.config.problem_type == "multi_label_classification":
            logprobs = torch.nn.functional.logsigmoid(chosen)
        else:
            logprobs = logits.log_softmax(dim=1)[:, self.label]
        return logprobs.exp() if self.output == "prob" else logprobs


def _loaded(model: str, tokenizer: Any, device: str, dtype: str, revision: str | None) -> tuple[Any, Any]:
    from safetensors import SafetensorError

    from lm_gym.loading import (
        BROKEN,
        LOADING,
        SAFE,
        Unloadable,
        first_line,
        load_tokenizer,
        refuse_oversized,
        refuse_pickles,
    )

    kinds = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in kinds:
        raise ValueError(f"classifier: dtype is {dtype!r}; expected one of {', '.join(kinds)}")
    refuse_pickles(model, "classifier")
    try:
        with LOADING:
            from transformers import AutoModelForSequenceClassification

            refuse_oversized(AutoModelForSequenceClassification, model, "classifier")
            loaded, info = AutoModelForSequenceClassification.from_pretrained(
                model, dtype=kinds[dtype], revision=revision, output_loading_info=True, **SAFE
            )
            tokenizer = model if tokenizer is None else tokenizer
            if isinstance(tokenizer, str):
                tokenizer = load_tokenizer(tokenizer, "classifier", revision=revision)
    except Unloadable:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError, *BROKEN) as error:
        why = first_line(error)
        raise ValueError(f"classifier: {model!r} cannot be loaded as a sequence classifier: {why}") from error
    if info["missing_keys"]:
        raise ValueError(
            f"classifier: {model!r} has no weights for {', '.join(sorted(info['missing_keys'])[:3])}: it is no trained "
            "classifier, and a random head would give random rewards. Give a model that was trained with one"
        )
    config = loaded.config.get_text_config()
    if config.pad_token_id is None and tokenizer.pad_token_id is not None:
        config.pad_token_id = tokenizer.pad_token_id
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return loaded.to(device).eval().requires_grad_(False), tokenizer


def _plain(found: Any) -> tuple[list[int], list[int]]:
    return [int(i) for i in found["input_ids"]], [int(i) for i in found.get("token_type_ids") or ()]


def _label_index(config: Any, label: str | int | None) -> int:
    names = {int(index): str(name) for index, name in (config.id2label or {}).items()}
    known = ", ".join(f"{index} {name!r}" for index, name in names.items())
    if label is None:
        if config.num_labels == 1:
            return 0
        raise ValueError(f"classifier: the model has {config.num_labels} labels, choose one with label=: {known}")
    exact = [index for index, name in names.items() if name == label]
    loose = [index for index, name in names.items() if name.lower() == str(label).lower()]
    if len(exact or loose) == 1:
        return (exact or loose)[0]
    if str(label).isdecimal() and int(label) < config.num_labels:
        return int(label)
    near = difflib.get_close_matches(str(label), names.values(), n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"classifier: the model has no label {label!r}.{hint} It has {known}")


def _limit(model: Any, tokenizer: Any, wanted: int | None) -> int | None:
    """The most tokens that the model is given; None where neither it nor its tokenizer nor anybody says so.

    Raises:
        ValueError: more are wanted than it has positions for.
    """
    hard = hard_limit(model, together=False)
    if wanted and hard is not None and wanted > hard:
        raise ValueError(f"classifier: max_length is {wanted}; expected at most {hard} tokens{because(hard)}")
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limits = [wanted] if wanted else [getattr(tokenizer, "model_max_length", None), positions, hard]
    known = [int(limit) for limit in limits if limit is not None and 0 < limit < 10**9]
    return min(known) if known else None
