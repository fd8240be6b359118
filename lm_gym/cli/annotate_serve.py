"""`lm-gym annotate serve`: fills the store, invites people, and runs the page."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from lm_gym.annotate.importing import Imported, read_pairs
from lm_gym.annotate.people import invite, invited
from lm_gym.annotate.store import Store, add_pairs, set_need
from lm_gym.cli.errors import say
from lm_gym.extras import install_command
from lm_gym.terminal import printable, shorten

if TYPE_CHECKING:
    from lm_gym.annotate.server import RedTeam

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ADMIN = "admin"
ROWS_SHOWN = 10


@dataclass
class Serve:
    """Open the page on which people compare completions, and print an invitation link for each of them."""

    db: str = "prefs.sqlite"
    """The store, made if missing."""
    data: str | None = None
    """Pairs to compare: a .jsonl, .json, .csv, .tsv or .parquet file, a folder, a hub id; known ones are passed by."""
    gold: str | None = None
    """Pairs with known answers (chosen with its label, or `gold` from -3 to 3), mixed in for everybody."""
    annotators: tuple[str, ...] = ()
    """Names of people to invite; without any and with none in the store: one called annotator."""
    per_item: int | None = None
    """Annotators asked about each pair; None: as before, 1 in a new store."""
    guidelines: str | None = None
    """A Markdown file for the annotators."""
    red_team: str | None = None
    """A model to write prompts against: as --model of `lm-gym sample`."""
    max_new_tokens: int = 128
    """Of an answer of that model."""
    hold: bool = False
    """Hold the new pairs of --data back until `lm-gym annotate select` asks about them."""
    new_links: bool = False
    """New links for the people named with --annotators (or all), and for the overview; old links and sign-ins end."""
    link_days: float = 30.0
    """A link, and whoever signed in with it, is good for so many days."""
    host: str = "127.0.0.1"
    """The address to listen on. Another than this machine's own lets others in: put TLS before it."""
    port: int = 8765
    """The port; 0: any free one."""
    url: str | None = None
    """The address that people use, if it is another (a proxy, a name): http(s)://name[:port]."""
    debug: bool = False
    """Show the traceback of an error."""


def add(store: Store, found: Imported, source: str, *, gold: bool, hold: bool) -> int:
    """Add pairs to the store; returns how many were new.

    Raises:
        ValueError: a gold pair without a known answer.
    """
    unknown = sum(pair.gold is None for pair in found.pairs)
    if gold and unknown:
        raise ValueError(
            f"{source}: {unknown} of {len(found.pairs)} gold pairs have no known answer; give chosen and rejected, or "
            "a column gold from -3 (a is significantly better) to 3"
        )
    need = int(store.setting("need", "1"))
    return add_pairs(store, found.pairs, source=Path(source).name, need=need, asked=not hold, gold=gold)


def tell_unusable(found: Imported) -> None:
    """Say on stderr which rows cannot be used, the first ones one by one."""
    for where, why in found.unusable[:ROWS_SHOWN]:
        say(f"cannot use {printable(where)} it {printable(shorten(why, 300))}".replace(", it", ": it"))
    if len(found.unusable) > ROWS_SHOWN:
        say(f"and {len(found.unusable) - ROWS_SHOWN} more rows (`lm-gym annotate import --unusable FILE` names all)")


def serve(options: Serve) -> int:
    """Fill the store, print the links, and serve until Ctrl-C."""
    try:
        import uvicorn
    except ImportError as error:
        raise ImportError(f"the annotation page needs {error.name}: {install_command('annotate')}") from error
    from lm_gym.annotate.connections import LOGGING, bounded_protocol
    from lm_gym.annotate.server import create_app

    if not 0 <= options.port <= 65535:
        raise ValueError(f"port expected 0 to 65535 (0: any free one), got {options.port}")
    url, hosts = _address(options)
    guidelines = Path(options.guidelines).read_text(encoding="utf-8") if options.guidelines else ""
    with Store(options.db, create=True) as store:
        if options.per_item is not None:
            set_need(store, options.per_item)
        for source, gold in ((options.data, False), (options.gold, True)):
            if source is not None:
                found = read_pairs(source)
                tell_unusable(found)
                add(store, found, source, gold=gold, hold=options.hold)
        if not store.value("SELECT count(*) FROM items") and options.red_team is None:
            raise ValueError(f"{options.db} holds no pairs yet: give some with --data")
        red_team = None if options.red_team is None else _red_team(options.red_team, options.max_new_tokens)
        app = create_app(store, guidelines=guidelines, red_team=red_team, hosts=hosts)
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        # Bound here, so that the links name the port and a port in use is an error before anybody is invited.
        with socket.create_server((options.host, options.port), family=family) as listening:
            # asyncio does not see that this is TCP; with Nagle's algorithm every answer would take 40 ms longer.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            base = url or f"http://{_bracketed(options.host)}:{listening.getsockname()[1]}"
            _announce(store, options, base)
            config = uvicorn.Config(
                app, log_level="warning", access_log=False, server_header=False, proxy_headers=False, lifespan="off",
                timeout_graceful_shutdown=5, http=bounded_protocol(), log_config=LOGGING,
            )  # fmt: skip
            try:
                uvicorn.Server(config).run(sockets=[listening])
            except KeyboardInterrupt:
                pass
        print(f"stopped; every confirmed answer is in {options.db}", flush=True)
    return 0


def _address(options: Serve) -> tuple[str | None, set[str]]:
    """The address for links (None: made from host and port), and the names under which the page answers."""
    url = options.url.rstrip("/") if options.url is not None else None
    if url is not None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path or parts.query:
            raise ValueError(f"url expected http(s)://name[:port], got {options.url!r}")
        return url, {*LOOPBACK, parts.hostname, options.host}
    if options.host in ("0.0.0.0", "::"):
        raise ValueError(
            f"host {options.host} is no address to put into a link: add --url http://<this machine's name>:<port>"
        )
    return None, {*LOOPBACK, options.host}


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _red_team(model: str, max_new_tokens: int) -> RedTeam:
    from lm_gym.annotate.redteam import model_writer
    from lm_gym.annotate.server import RedTeam
    from lm_gym.cli.sample import load_policy

    lm = load_policy(model)
    writer = model_writer(lm, max_new_tokens=max_new_tokens)
    return RedTeam(Path(model).name, writer, conversational=bool(getattr(lm.tokenizer, "chat_template", None)))


def _announce(store: Store, options: Serve, base: str) -> None:
    """Invite who has no link that holds, and print what can be opened where."""
    known = [row["name"] for row in store.rows("SELECT name FROM annotators WHERE NOT admin ORDER BY id")]
    if ADMIN in options.annotators:
        raise ValueError(f"{ADMIN!r} is the name of the overview's link; choose another for the annotator")
    named = list(dict.fromkeys(options.annotators or known or ["annotator"]))
    width = max(map(len, [*known, *named, "overview"]))
    counts = store.rows("SELECT count(*), coalesce(sum(gold IS NOT NULL), 0), coalesce(sum(NOT asked), 0) FROM items")[
        0
    ]
    held = f", {counts[2]} held back" if counts[2] else ""
    need = store.setting("need", "1")
    print(f"{'store':<{width}}  {options.db}: {counts[0]} pairs, {counts[1]} of them gold{held}; {need} to answer each")
    for name in [*dict.fromkeys([*known, *named]), ADMIN]:
        admin = name == ADMIN
        renew = options.new_links and (admin or name in named)
        label = "overview" if admin else name
        if invited(store, name) and not renew:
            print(f"{label:<{width}}  has a link already (--new-links makes a new one and ends the old)")
        else:
            token = invite(store, name, days=options.link_days, admin=admin)
            print(f"{label:<{width}}  {base}/join/{token}")
    if options.host not in LOOPBACK:
        where = "other machines can reach this page"
        print(
            f"{'note':<{width}}  {where}"
            + ("" if base.startswith("https:") else ", and links travel unencrypted: put TLS before it")
        )
    print("stop with Ctrl-C", flush=True)
