"""Tables of the store. Answers and undos are only ever added: triggers refuse every change of a row, and of a pair that
has answers. Stores of before a trigger get it when they are opened."""

APPLICATION_ID = 0x4C4D4750
"""SQLite's application_id of a store ("LMGP"), so that no other database is taken for one."""
VERSION = 1

# Small columns stand before the texts: SQLite reads a row from its beginning, and a text may be a megabyte.
SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);

CREATE TABLE annotators (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    admin INTEGER NOT NULL,            -- may see the admin page
    token_hash TEXT UNIQUE,            -- SHA-256 of the invitation's token; the token itself is not kept
    expires REAL NOT NULL,             -- end of the invitation and of its sessions, seconds since 1970
    multiplier INTEGER NOT NULL,       -- the order of items of one's own: (id * multiplier + offset) mod a prime
    offset INTEGER NOT NULL,
    created REAL NOT NULL
);
CREATE TABLE sessions (
    hash TEXT PRIMARY KEY,             -- SHA-256 of the cookie
    annotator INTEGER NOT NULL REFERENCES annotators (id),
    created REAL NOT NULL
);

CREATE TABLE items (
    id INTEGER PRIMARY KEY,            -- random: it says nothing about where a pair comes from
    uid TEXT NOT NULL UNIQUE,          -- hash of the texts, so that a pair is imported once
    asked INTEGER NOT NULL,            -- 0: held back until `select`
    need INTEGER NOT NULL,             -- answers wanted
    done INTEGER NOT NULL DEFAULT 0,   -- answers there are that count (skips do not)
    gold INTEGER,                      -- the known answer -3 to 3, above 0: b is better; NULL: not known
    author INTEGER REFERENCES annotators (id),  -- who wrote the prompt (red-team mode)
    created REAL NOT NULL,
    source TEXT NOT NULL,
    columns TEXT NOT NULL,             -- JSON, the other columns of the row
    prompt TEXT NOT NULL, a TEXT NOT NULL, b TEXT NOT NULL  -- JSON: a text, or a list of messages
);
CREATE INDEX items_open ON items (id, done, need, gold) WHERE asked = 1 AND done < need;

CREATE TABLE loans (                   -- an item in the hands of an annotator
    annotator INTEGER NOT NULL REFERENCES annotators (id),
    item INTEGER NOT NULL REFERENCES items (id),
    swapped INTEGER NOT NULL,          -- 1: b is shown first (left, or above on a phone)
    place INTEGER NOT NULL,            -- the how manieth item of this annotator
    expires REAL NOT NULL,
    answered INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (annotator, item)
) WITHOUT ROWID;
CREATE INDEX loans_item ON loans (item, answered, expires);
CREATE INDEX loans_open ON loans (annotator, answered, place);

CREATE TABLE answers (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,           -- made by the page, so that a retry is known
    digest TEXT NOT NULL,              -- SHA-256 of what was sent under the id
    annotator INTEGER NOT NULL REFERENCES annotators (id),
    item INTEGER NOT NULL REFERENCES items (id),
    kind TEXT NOT NULL CHECK (kind IN ('preference', 'both_bad', 'skip', 'flag')),
    shown INTEGER CHECK (shown BETWEEN -3 AND 3),        -- as answered: above 0, the second shown is better
    strength INTEGER CHECK (strength BETWEEN -3 AND 3),  -- above 0: b is better
    swapped INTEGER NOT NULL,
    reason TEXT NOT NULL, comment TEXT NOT NULL,
    seconds REAL NOT NULL,             -- that the item was on show
    received REAL NOT NULL,
    CHECK ((kind IN ('preference', 'both_bad')) = (strength IS NOT NULL))
);
CREATE INDEX answers_annotator ON answers (annotator, seq);
CREATE INDEX answers_item ON answers (item);
CREATE TABLE undos (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    answer TEXT NOT NULL UNIQUE REFERENCES answers (id),
    annotator INTEGER NOT NULL REFERENCES annotators (id),
    received REAL NOT NULL
);
CREATE VIEW live AS SELECT * FROM answers WHERE id NOT IN (SELECT answer FROM undos);
"""

# REPLACE erases the row that it replaces without a trigger of DELETE: what is there already is not put there again.
TRIGGERS = """
CREATE TRIGGER IF NOT EXISTS answers_stay BEFORE DELETE ON answers
BEGIN SELECT RAISE(ABORT, 'answers are never erased'); END;
CREATE TRIGGER IF NOT EXISTS answers_as_given BEFORE UPDATE ON answers
BEGIN SELECT RAISE(ABORT, 'answers are never changed'); END;
CREATE TRIGGER IF NOT EXISTS answers_once BEFORE INSERT ON answers
WHEN EXISTS (SELECT 1 FROM answers WHERE id = NEW.id OR seq = NEW.seq)
BEGIN SELECT RAISE(ABORT, 'answers are never changed'); END;
CREATE TRIGGER IF NOT EXISTS undos_stay BEFORE DELETE ON undos
BEGIN SELECT RAISE(ABORT, 'undos are never erased'); END;
CREATE TRIGGER IF NOT EXISTS undos_as_given BEFORE UPDATE ON undos
BEGIN SELECT RAISE(ABORT, 'undos are never changed'); END;
CREATE TRIGGER IF NOT EXISTS undos_once BEFORE INSERT ON undos
WHEN EXISTS (SELECT 1 FROM undos WHERE id = NEW.id OR answer = NEW.answer OR seq = NEW.seq)
BEGIN SELECT RAISE(ABORT, 'undos are never changed'); END;
CREATE TRIGGER IF NOT EXISTS items_stay BEFORE DELETE ON items
WHEN EXISTS (SELECT 1 FROM answers WHERE item = OLD.id)
BEGIN SELECT RAISE(ABORT, 'a pair with answers is never erased'); END;
CREATE TRIGGER IF NOT EXISTS items_as_shown BEFORE UPDATE OF id, uid, prompt, a, b ON items
WHEN EXISTS (SELECT 1 FROM answers WHERE item = OLD.id)
BEGIN SELECT RAISE(ABORT, 'a pair with answers is never changed'); END;
CREATE TRIGGER IF NOT EXISTS items_once BEFORE INSERT ON items
WHEN EXISTS (SELECT 1 FROM answers WHERE item IN (SELECT id FROM items WHERE id = NEW.id OR uid = NEW.uid))
BEGIN SELECT RAISE(ABORT, 'a pair with answers is never changed'); END;
"""
