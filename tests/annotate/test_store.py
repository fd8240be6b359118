"""What a person said is kept once, as it was said, and each item goes to as many people as wanted."""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from annotate_stores import Clock, answer_all, new_id, person, say, store_with

from lm_gym.annotate.answers import Answer, last_answers, submit, undo
from lm_gym.annotate.lending import LOAN_SECONDS, next_items, progress
from lm_gym.annotate.people import Annotator, holder, invite, sign_in, signed_in
from lm_gym.annotate.status import status
from lm_gym.annotate.store import Busy, Conflict, Pair, Store, StoreError, Unreadable, add_pairs, set_need
from lm_gym.cli import main


def answers(store: Store) -> list[sqlite3.Row]:
    return store.rows("SELECT * FROM live ORDER BY seq")


def test_an_answer_is_stored_in_terms_of_the_pair_and_as_it_was_shown(tmp_path: Path) -> None:
    store = store_with(tmp_path, 40)
    ada = person(store, "ada")
    orders = set()
    for loan in [loan for _ in range(40) for loan in _answer_next(store, ada, 2)]:
        orders.add(loan.swapped)
        one, other = f"a{str(loan.prompt)[1:]}", f"b{str(loan.prompt)[1:]}"
        assert (loan.first, loan.second) == ((other, one) if loan.swapped else (one, other))
    assert orders == {True, False}
    for row in answers(store):
        assert row["shown"] == 2 and row["strength"] == (-2 if row["swapped"] else 2)


def _answer_next(store: Store, who: Annotator, shown: int) -> list:
    (loan,) = next_items(store, who, 1)
    submit(store, who, Answer(new_id(), loan.item, "preference", shown))
    return [loan]


def test_the_same_answer_again_gives_the_same_result_and_another_under_its_id_is_refused(tmp_path: Path) -> None:
    store = store_with(tmp_path, 3)
    ada, bob = person(store, "ada"), person(store, "bob")
    (loan,) = next_items(store, ada, 1)
    answer = Answer(new_id(), loan.item, "preference", -3, comment="clear", seconds=4.5)
    first = submit(store, ada, answer)
    store.clock.now += 60
    assert submit(store, ada, answer) == first
    assert len(answers(store)) == 1
    with pytest.raises(Conflict, match="used for another answer"):
        submit(store, ada, Answer(answer.id, loan.item, "preference", 3, comment="clear", seconds=4.5))
    with pytest.raises(Conflict, match="used for another answer"):
        submit(store, bob, answer)
    with pytest.raises(Conflict, match="answered this item already"):
        submit(store, ada, Answer(new_id(), loan.item, "preference", 3))
    with pytest.raises(Conflict, match="not given to you"):
        submit(store, bob, Answer(new_id(), loan.item, "preference", 3))
    assert [row["shown"] for row in answers(store)] == [-3]


def test_undo_takes_back_the_last_answers_one_by_one_and_keeps_them(tmp_path: Path) -> None:
    store = store_with(tmp_path, 5)
    ada = person(store, "ada")
    shown = [next_items(store, ada, 1)[0] for _ in range(1)]
    ids = [say(store, ada, shown[0], 1)]
    for strength in (2, 3):
        shown += next_items(store, ada, 1)
        ids.append(say(store, ada, shown[-1], strength))
    with pytest.raises(Conflict, match="only the last answer"):
        undo(store, ada, new_id(), ids[0])
    first = new_id()
    done = undo(store, ada, first, ids[2])
    assert undo(store, ada, first, ids[2]) == done  # a retry
    undo(store, ada, new_id(), ids[1])
    assert last_answers(store, ada) == [ids[0]]
    # The two come back in the order in which they were asked, in the same order of completions, before anything new.
    again = next_items(store, ada, 3)
    assert again[:2] == shown[1:3] and again[2].item not in {loan.item for loan in shown}
    say(store, ada, again[0], -2)
    assert [row["strength"] for row in answers(store)] == [1, -2]
    assert [row["strength"] for row in store.rows("SELECT strength FROM answers ORDER BY seq")] == [1, 2, 3, -2]
    assert store.value("SELECT sum(done) FROM items") == 2


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM answers",
        "UPDATE answers SET shown = 0",
        "INSERT OR REPLACE INTO answers SELECT * FROM answers",
        "REPLACE INTO answers (id, digest, annotator, item, kind, swapped, reason, comment, seconds, received)"
        " SELECT id, 'x', annotator, item, 'skip', 0, '', '', 0, 0 FROM answers",
        "INSERT OR REPLACE INTO answers SELECT seq, id || 'x', digest, annotator, item, kind, -3, -3, swapped, reason,"
        " comment, seconds, received FROM answers",
        "DELETE FROM undos",
        "UPDATE undos SET received = 0",
        "INSERT OR REPLACE INTO undos SELECT seq + 9, id || 'x', answer, annotator, 0 FROM undos",
        "DELETE FROM items",
        "UPDATE items SET a = b",
        "UPDATE OR REPLACE items SET id = id + 1",
        "INSERT OR REPLACE INTO items SELECT id, uid, asked, need, done, gold, author, created, source, columns,"
        " prompt, b, a FROM items",
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_nothing_that_was_said_can_be_changed_or_erased(tmp_path: Path, statement: str, old: bool) -> None:
    """Nor the pair that it was said of; also in a store of before REPLACE was refused, once it is opened."""
    store = store_with(tmp_path, 2)
    ada = person(store, "ada")
    undo(store, ada, new_id(), say(store, ada, next_items(store, ada, 1)[0], 1))
    say(store, ada, next_items(store, ada, 1)[0], 1)
    store.close()
    raw = sqlite3.connect(tmp_path / "prefs.sqlite", isolation_level=None)  # as anybody with the file in hand has it
    if old:
        for name in ("answers_once", "undos_once", "items_stay", "items_as_shown", "items_once"):
            raw.execute(f"DROP TRIGGER {name}")
        Store(tmp_path / "prefs.sqlite").close()
    before = list(raw.iterdump())
    with pytest.raises(sqlite3.IntegrityError, match="never"):
        raw.execute(statement)
    assert list(raw.iterdump()) == before
    raw.close()


def test_what_the_store_itself_changes_of_a_pair_with_answers_is_not_refused(tmp_path: Path) -> None:
    store = store_with(tmp_path, 2, need=2)
    for name in ("ada", "bob"):
        who = person(store, name)
        say(store, who, next_items(store, who, 1)[0], 1)
    set_need(store, 3)
    assert add_pairs(store, [Pair("p0", "a0", "b0"), Pair("new", "a", "b")], source="again") == 1
    assert store.value("SELECT sum(done) FROM items") == 2
    assert store.value("SELECT min(need) FROM items WHERE done") == 3


# Other writers.


@contextlib.contextmanager
def another_writer(store: Store) -> Iterator[None]:
    """An import in another process, half-way."""
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def test_who_reads_waits_for_no_writer(tmp_path: Path) -> None:
    store = store_with(tmp_path, 5)
    store.wait = 1.0
    ada, bob = person(store, "ada"), person(store, "bob")
    (loan,) = next_items(store, ada, 1)
    with another_writer(store):
        refused: list[Busy] = []

        def write() -> None:
            try:
                say(store, ada, loan, 1)
            except Busy as error:
                refused.append(error)

        waiting = threading.Thread(target=write)
        waiting.start()
        time.sleep(0.1)  # it waits now, with the connection that writes in its hands
        started = time.monotonic()
        assert next_items(store, ada, 1) == [loan]
        assert progress(store, bob).left == 5 and status(store).items == 5
        with Store(store.path) as again:  # nor is there anything to wait for when it is opened
            assert again.value("SELECT count(*) FROM items") == 5
        assert time.monotonic() - started < 0.6 and waiting.is_alive()
        assert next_items(store, ada, 3) == [loan]  # what is on the table, when there can be no more
        waiting.join()
        assert len(refused) == 1
        store.wait = 0.05
        with pytest.raises(Busy, match="somebody else is writing to the store"):
            next_items(store, bob, 1)
    assert next_items(store, bob, 1) and say(store, ada, loan, 1)


def test_inside_of_a_transaction_its_own_changes_are_seen(tmp_path: Path) -> None:
    store = store_with(tmp_path, 1)
    with store.transaction() as connection:
        connection.execute("UPDATE items SET need = 7")
        assert store.value("SELECT need FROM items") == 7
        with store.snapshot() as seen:
            assert seen.value("SELECT need FROM items") == 1
    assert store.value("SELECT need FROM items") == 7


# Damage.


def test_a_damaged_store_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stored(folder: str) -> Path:
        (tmp_path / folder).mkdir()
        with store_with(tmp_path / folder, 30) as store:
            answer_all(store, person(store, "ada"), {f"p{i}": 1 for i in range(30)})
        with sqlite3.connect(tmp_path / folder / "prefs.sqlite") as raw:
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            for name in ("items_stay", "items_as_shown"):
                raw.execute(f"DROP TRIGGER {name}")
            return tmp_path / folder / "prefs.sqlite"

    pages = stored("pages")
    size = pages.stat().st_size
    pages.write_bytes(pages.read_bytes()[: size // 2] + b"\xff" * (size - size // 2))
    torn = stored("torn")
    with contextlib.closing(sqlite3.connect(torn)) as raw, raw:
        raw.execute("UPDATE items SET prompt = '[' || prompt")
    lost = stored("lost")
    with contextlib.closing(sqlite3.connect(lost)) as raw, raw:
        raw.execute("DELETE FROM items WHERE id = (SELECT min(item) FROM answers)")
    for path in (pages, torn, lost):
        assert main(["annotate", "export", "--db", str(path), "--out", str(tmp_path / "out.jsonl")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and str(path) in error


def test_a_full_disk_confirms_nothing_and_the_store_goes_on_when_there_is_room(tmp_path: Path) -> None:
    store = store_with(tmp_path, 3)
    ada = person(store, "ada")
    (loan,) = next_items(store, ada, 1)
    answer = Answer(new_id(), loan.item, "preference", 1, comment="x" * 4000)
    pages = store.value("PRAGMA page_count")
    with store.transaction() as connection:
        connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(Unreadable, match=r"prefs.sqlite: SQLite says: database or disk is full"):
        submit(store, ada, answer)
    assert answers(store) == []
    with store.transaction() as connection:
        connection.execute("PRAGMA max_page_count = 100000")
    submit(store, ada, answer)
    assert [row["id"] for row in answers(store)] == [answer.id]


def test_a_file_is_opened_again_with_everything_in_it(tmp_path: Path) -> None:
    with store_with(tmp_path, 4) as store:
        ada = person(store, "ada")
        say(store, ada, next_items(store, ada, 1)[0], 3)
    with Store(tmp_path / "prefs.sqlite") as store:
        assert [row["strength"] for row in answers(store)] == [3]
        assert store.value("PRAGMA journal_mode") == "wal" and store.value("PRAGMA synchronous") == 2


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no store .*missing.sqlite"):
        Store(tmp_path / "missing.sqlite")
    (tmp_path / "text.sqlite").write_text("hello " * 100)
    with pytest.raises(StoreError, match="expected a store"):
        Store(tmp_path / "text.sqlite")
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE mine (x)")
    other.close()
    with pytest.raises(StoreError, match="no store of `lm-gym annotate`"):
        Store(tmp_path / "other.sqlite", create=True)
    with sqlite3.connect(tmp_path / "other.sqlite") as other:
        assert other.execute("PRAGMA journal_mode").fetchone()[0] == "delete"  # left as it was


def test_items_are_lent_so_that_two_do_not_do_the_same_work_and_loans_end(tmp_path: Path) -> None:
    clock = Clock()
    store = store_with(tmp_path, 6, clock=clock)
    ada, bob = person(store, "ada"), person(store, "bob")
    hers = {loan.item for loan in next_items(store, ada, 3)}
    his = {loan.item for loan in next_items(store, bob, 3)}
    assert len(hers) == len(his) == 3 and not hers & his
    assert {loan.item for loan in next_items(store, ada, 3)} == hers  # asking again gives the same
    assert next_items(store, person(store, "cem"), 3) == []
    clock.now += LOAN_SECONDS + 1
    cems = next_items(store, person(store, "cem"), 3)
    assert len(cems) == 3
    # Ada comes back late: what she has said by then counts, and nothing of it is refused.
    late = next(loan for loan in cems if loan.item in hers | his)
    who = ada if late.item in hers else bob
    submit(store, who, Answer(new_id(), late.item, "preference", 1))
    assert len(answers(store)) == 1


@pytest.mark.parametrize("need", [1, 3])
def test_every_item_goes_to_as_many_annotators_as_wanted_and_skips_do_not_count(tmp_path: Path, need: int) -> None:
    store = store_with(tmp_path, 12, need=need)
    people = [person(store, name) for name in ("ada", "bob", "cem", "dee", "eve")]
    skipped = 0
    for _ in range(40):
        for who in people:
            for loan in next_items(store, who, 2):
                if skipped < 4:
                    submit(store, who, Answer(new_id(), loan.item, "skip"))
                    skipped += 1
                else:
                    say(store, who, loan, 1)
    counts = store.rows("SELECT item, count(*) AS n FROM live WHERE kind <> 'skip' GROUP BY item")
    assert len(counts) == 12 and {row["n"] for row in counts} == {need}
    assert store.value("SELECT max(n) FROM (SELECT count(*) AS n FROM live GROUP BY annotator, item)") == 1
    set_need(store, need + 1)  # another one each, but for items that everybody has answered or skipped
    seen = store.rows("SELECT item, count(DISTINCT annotator) AS n FROM live GROUP BY item")
    assert sum(len(next_items(store, who, 5)) for who in people) == sum(row["n"] < len(people) for row in seen)


def test_orders_are_ones_own_and_gold_is_mixed_in_for_everybody(tmp_path: Path) -> None:
    store = store_with(tmp_path, 40, need=5)
    gold = [Pair(f"g{i}", "right", "wrong", gold=-2) for i in range(10)]
    assert add_pairs(store, gold, source="gold", gold=True) == 10
    orders = []
    for name in ("ada", "bob"):
        who, seen = person(store, name), []
        while loans := next_items(store, who, 1):
            seen.append(str(loans[0].prompt))
            say(store, who, loans[0], 1)
        assert len(set(seen)) == 50
        golden = [at for at, prompt in enumerate(seen) if prompt.startswith("g")]
        assert golden != list(range(10)) and golden != list(range(40, 50))
        orders.append(seen)
    assert orders[0] != orders[1] and orders[0] != sorted(orders[0], key=lambda prompt: (prompt[0], int(prompt[1:])))


def test_a_pair_is_there_once_in_whichever_order_it_comes(tmp_path: Path) -> None:
    store = store_with(tmp_path, 2)
    assert add_pairs(store, [Pair("p0", "b0", "a0"), Pair("p9", "x", "y")], source="again") == 1


def test_many_at_once_get_different_items_and_lose_nothing(tmp_path: Path) -> None:
    store = store_with(tmp_path, 60)
    people = [person(store, f"person {i}") for i in range(6)]

    def work(who: Annotator) -> None:
        while loans := next_items(store, who, 2):
            for loan in loans:
                say(store, who, loan, 1)

    threads = [threading.Thread(target=work, args=(who,)) for who in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.value("SELECT count(*) FROM live") == 60 == store.value("SELECT count(DISTINCT item) FROM live")


def test_progress_counts_what_is_done_and_estimates_the_time_left(tmp_path: Path) -> None:
    store = store_with(tmp_path, 10, need=2)
    ada, bob = person(store, "ada"), person(store, "bob")
    assert (progress(store, ada).done, progress(store, ada).left, progress(store, ada).seconds_left) == (0, 10, None)
    for seconds in (4.0, 10.0, 7.0):
        say(store, ada, next_items(store, ada, 1)[0], 1, seconds=seconds)
    found = progress(store, ada)
    assert (found.done, found.left, found.seconds_left) == (3, 7, 49.0)  # median 7 s, 7 items that she has not seen
    for _ in range(9):
        say(store, bob, next_items(store, bob, 1)[0], 1)
    assert progress(store, ada).left == 4  # 8 answers are still wanted, of which two people each give a half


def test_tokens_are_kept_as_hashes_expire_and_are_replaced(tmp_path: Path) -> None:
    clock = Clock()
    store = store_with(tmp_path, 1, clock=clock)
    token = invite(store, "ada", days=2)
    signed = sign_in(store, token)
    assert signed is not None and signed[0].name == "ada"
    cookie = signed[1]
    assert signed_in(store, cookie) == signed[0] and signed_in(store, token) is None and holder(store, cookie) is None
    everything = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert token.encode() not in everything and cookie.encode() not in everything
    newer = invite(store, "ada", days=2)
    assert holder(store, token) is None and signed_in(store, cookie) is None
    signed = sign_in(store, newer)
    assert signed is not None
    clock.now += 2 * 86_400 + 1
    assert holder(store, newer) is None and sign_in(store, newer) is None and signed_in(store, signed[1]) is None
    for wrong in ("", " ada", "a/b", "x" * 61, "<b>"):
        with pytest.raises(StoreError, match="expected 1 to 60"):
            invite(store, wrong)
    with pytest.raises(StoreError, match="days"):
        invite(store, "bob", days=0)
