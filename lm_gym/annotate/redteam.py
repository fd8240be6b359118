"""Red-team mode: a person writes a prompt, the model answers twice, and both answers are an item like any other."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lm_gym.annotate.answers import is_whole, read_id
from lm_gym.annotate.lending import Loan, lend, loan_of
from lm_gym.annotate.people import Annotator
from lm_gym.annotate.store import Conflict, Pair, Store, StoreError, dumps, insert
from lm_gym.rewards import Text

if TYPE_CHECKING:
    from lm_gym.models import CausalLM

Writer = Callable[[Text], tuple[Text, Text]]
"""A prompt (a text, or messages) -> two different completions of it, of the same kind."""

LONGEST_PROMPT = 8000
SOURCE = "red-team"
TRIES = 4
"""Draws of two completions before the model is said to have only one answer."""


def provoke(store: Store, who: Annotator, sent: Any, writer: Writer, *, conversational: bool) -> Loan:
    """Let the model answer a prompt, keep both answers as an item, and lend it to who wrote the prompt.

    Args:
        sent: {"id": a UUID made by the page, "text": what the person wrote, "item": the item to go on with or null,
            "side": "first" or "second", the answer of it to go on with}. The same again gives the same item.
        writer: writes the two completions.
        conversational: whether the model takes messages.

    Raises:
        StoreError: something is missing or too long, or the two answers are the same.
        Conflict: the id was used for another prompt, or the item is not one of this annotator's.
    """
    if not isinstance(sent, dict) or not isinstance(sent.get("text"), str):
        raise StoreError("a prompt expected a JSON object with a text")
    identity, text = read_id(sent.get("id")), sent["text"].strip().encode("utf-8", "replace").decode()
    if not 0 < len(text) <= LONGEST_PROMPT:
        raise StoreError(f"a prompt expected 1 to {LONGEST_PROMPT} characters, got {len(text)}")
    uid = f"{SOURCE} {identity}"
    prompt = _prompt(store, who, text, sent, conversational)
    digest = hashlib.sha256(dumps(prompt).encode()).hexdigest()
    known = _known(store, who, uid, digest)
    if known is not None:
        return known
    a, b = writer(prompt)
    if a == b:
        raise StoreError("the model said the same twice, so that there is nothing to compare: write something else")
    with store.transaction() as connection:
        item = insert(
            store,
            connection,
            Pair(prompt, a, b, {"prompt_hash": digest, "written_by": who.name}),
            source=SOURCE,
            need=int(store.setting("need", "1")),
            author=who.id,
            uid=uid,
        )
        if item is not None:
            lend(store, connection, who.id, item, store.clock())
    found = _known(store, who, uid, digest)
    assert found is not None  # it was just kept, by this call or by the same prompt sent twice at once
    return found


def _known(store: Store, who: Annotator, uid: str, digest: str) -> Loan | None:
    """The item that was made for this prompt already."""
    rows = store.rows("SELECT id, author, columns FROM items WHERE uid = ?", (uid,))
    if not rows:
        return None
    if rows[0]["author"] != who.id or json.loads(rows[0]["columns"])["prompt_hash"] != digest:
        raise Conflict("this id was used for another prompt: make a new one")
    return loan_of(store, who.id, rows[0]["id"])


def _prompt(store: Store, who: Annotator, text: str, sent: dict[str, Any], conversational: bool) -> Text:
    """What the model is to continue: the text alone, or behind the conversation that it goes on with."""
    said: Text = [{"role": "user", "content": text}] if conversational else text
    item = sent.get("item")
    if item is None:
        return said
    side = sent.get("side")
    if side not in ("first", "second"):
        raise StoreError(f"side expected first or second, got {side!r:.40}")
    if not is_whole(item) or not store.rows("SELECT 1 FROM items WHERE id = ? AND author = ?", (item, who.id)):
        raise Conflict("only a conversation of your own can be gone on with")
    loan = loan_of(store, who.id, item)
    answer = loan.first if side == "first" else loan.second
    if isinstance(said, str):
        return f"{loan.prompt}{answer}\n{said}"
    return [*loan.prompt, *answer, *said]


def model_writer(
    lm: CausalLM, *, max_new_tokens: int = 128, temperature: float = 1.0, stop: tuple[str, ...] = (), seed: int = 0
) -> Writer:
    """A writer that draws both completions from a language model, one prompt at a time.

    Args:
        max_new_tokens: a completion ends after so many tokens. stop: strings that end one.

    Raises (the writer):
        StoreError: the prompt is longer than the model's context leaves.
    """
    from lm_gym.decoding import Engine, GenerationParams
    from lm_gym.positions import because
    from lm_gym.prompts import load_prompts

    room = lm.max_positions - max_new_tokens
    if room < 1:
        raise ValueError(
            f"max_new_tokens expected fewer than the model's limit of {lm.max_positions} tokens{because(room)}, got "
            f"{max_new_tokens}"
        )
    engine = Engine(lm, seed=seed)
    params = GenerationParams(max_new_tokens=max_new_tokens, temperature=temperature, stop=stop)
    lock = threading.Lock()

    def write(prompt: Text) -> tuple[Text, Text]:
        try:
            (record,) = load_prompts([{"prompt": prompt}], lm.tokenizer, max_tokens=room)
        except ValueError as error:
            raise StoreError(f"the model cannot take this: {error}") from error
        first = second = ""
        with lock:
            for _ in range(TRIES):
                pair = engine.generate([record.token_ids, record.token_ids], params)
                first, second = (lm.decode(completion.tokens) for completion in pair)
                if first != second:
                    break
        if isinstance(prompt, str):
            return first, second
        return [{"role": "assistant", "content": first}], [{"role": "assistant", "content": second}]

    return write
