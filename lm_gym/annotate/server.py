"""The page as a FastAPI application: pages from templates, a small JSON interface, static files from a fixed list."""

import hashlib
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_gym.annotate.answers import Answer, last_answers, read_id, submit, undo
from lm_gym.annotate.guard import Guard
from lm_gym.annotate.lending import Loan, next_items, progress
from lm_gym.annotate.markdown import guidelines_html, turns
from lm_gym.annotate.people import Annotator, holder, sign_in, signed_in
from lm_gym.annotate.redteam import Writer, provoke
from lm_gym.annotate.status import share, status
from lm_gym.annotate.store import Busy, Conflict, Store, StoreError, Unreadable
from lm_gym.extras import install_command
from lm_gym.terminal import shorten

if TYPE_CHECKING:
    from fastapi import FastAPI

HERE = Path(__file__).resolve().parent
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
WAIT = 3.0
"""Seconds for which a request that writes waits for other writers; the page asks again by itself."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")

# FastAPI reads the annotations of the functions below when the application is made, and they name what is imported
# there: this file does without `from __future__ import annotations`.


@dataclass(frozen=True)
class RedTeam:
    """A model to write prompts against."""

    name: str
    writer: Writer
    conversational: bool
    """Whether it takes messages; otherwise it continues a text."""


class NotSignedIn(Exception):
    """No cookie, a wrong one, or one that has expired."""


class Forbidden(Exception):
    """Signed in, but not for this."""


def create_app(
    store: Store,
    *,
    guidelines: str = "",
    red_team: RedTeam | None = None,
    hosts: Collection[str] = LOOPBACK,
) -> "FastAPI":
    """The application that `lm-gym annotate serve` runs.

    Args:
        guidelines: Markdown for the annotators, shown under the rules of a model's text.
        hosts: names under which it may be asked for, without port.

    Raises:
        ImportError: without the extra `annotate`.
    """
    try:
        import jinja2
        from fastapi import Body, FastAPI, Request
        from fastapi.exceptions import RequestValidationError
        from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
        from starlette.exceptions import HTTPException
    except ImportError as error:
        raise ImportError(f"the annotation page needs {error.name}: {install_command('annotate')}") from error

    store.wait = min(store.wait, WAIT)
    body: Any = Body()
    # No documentation pages: they would load scripts from another host.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, hosts=frozenset(hosts))  # type: ignore[arg-type]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"share": lambda pair: share(*pair), "line": lambda text: shorten(text, 140)}
    static = {path.name: path for path in (HERE / "static").iterdir() if path.suffix in TYPES}
    scope = hashlib.sha256(str(store.path.resolve()).encode()).hexdigest()[:12]
    cookie_name = f"lm_gym_{scope}"  # cookies know no ports: two stores on one machine have two names
    rules = guidelines_html(guidelines) if guidelines.strip() else ""

    def page(template: str, code: int = 200, **values: Any) -> HTMLResponse:
        values = {"who": None, "admin": False, "red_team": red_team, **values}
        return HTMLResponse(environment.get_template(template).render(values), status_code=code)

    def person(request: Request, *, admin: bool = False) -> Annotator:
        who = signed_in(store, request.cookies.get(cookie_name, ""))
        if who is None:
            raise NotSignedIn
        if who.admin != admin:
            raise Forbidden
        return who

    def workplace(request: Request, mode: str) -> Response:
        who = signed_in(store, request.cookies.get(cookie_name, ""))
        if who is not None and who.admin:
            return RedirectResponse("/admin", status_code=303)
        who = person(request)
        return page("compare.html", who=who, mode=mode, rules=rules, scope=f"{scope}.{who.id}")

    @app.get("/")
    def compare(request: Request) -> Response:
        return workplace(request, "compare")

    @app.get("/red-team")
    def red_team_page(request: Request) -> Response:
        if red_team is None:
            raise HTTPException(404)
        return workplace(request, "red-team")

    @app.get("/admin")
    def admin_page(request: Request) -> Response:
        who = person(request, admin=True)
        return page("admin.html", who=who, admin=True, status=status(store), path=store.path.name)

    @app.get("/join/{token}")
    def join_page(token: str) -> Response:
        who = holder(store, token)
        if who is None:
            return page("message.html", 403, title="This link does not work", body=WRONG_LINK)
        return page("join.html", invited=who)

    @app.post("/api/join")
    def join(request: Request, sent: Any = body) -> Response:
        token = sent.get("token") if isinstance(sent, dict) else None
        found = sign_in(store, token) if isinstance(token, str) else None
        if found is None:
            return JSONResponse({"error": WRONG_LINK}, 403)
        who, cookie = found
        response = JSONResponse({"to": "/admin" if who.admin else "/"})
        response.set_cookie(
            cookie_name,
            cookie,
            max_age=400 * 86_400,  # the session ends with the invitation, which the store knows
            httponly=True,
            samesite="strict",
            secure=request.headers.get("origin", "").startswith("https:"),
        )
        return response

    @app.get("/api/next")
    def following(request: Request, count: int = 1) -> Any:
        who = person(request)
        items = [_shown(loan) for loan in next_items(store, who, count)]
        return JSONResponse(
            {"items": items, "progress": asdict(progress(store, who)), "last": last_answers(store, who)}
        )

    @app.post("/api/answers")
    def answer(request: Request, sent: Any = body) -> Any:
        return JSONResponse(submit(store, person(request), Answer.read(sent)))

    @app.post("/api/undo")
    def take_back(request: Request, sent: Any = body) -> Any:
        who = person(request)
        if not isinstance(sent, dict):
            raise StoreError("an undo expected a JSON object")
        return JSONResponse(undo(store, who, read_id(sent.get("id")), read_id(sent.get("answer"))))

    @app.post("/api/red-team")
    def red_team_prompt(request: Request, sent: Any = body) -> Any:
        who = person(request)
        if red_team is None:
            raise HTTPException(404)
        loan = provoke(store, who, sent, red_team.writer, conversational=red_team.conversational)
        return JSONResponse({"item": _shown(loan)})

    @app.get("/api/status")
    def status_json(request: Request) -> Any:
        person(request, admin=True)
        return JSONResponse(status(store).as_json())

    @app.get("/static/{name}")
    def static_file(name: str) -> Response:
        if name not in static:  # a name from the list, never a path
            raise HTTPException(404)
        path = static[name]
        return Response(path.read_bytes(), media_type=TYPES[path.suffix])

    def failure(request: Request, code: int, title: str, body: str) -> Response:
        api = request.url.path.startswith("/api/")
        response = JSONResponse({"error": body}, code) if api else page("message.html", code, title=title, body=body)
        if code == 503:
            response.headers["Retry-After"] = "2"
        return response

    def handler(code: int, title: str, body: str = "") -> Callable[[Any, Any], Any]:
        def handle(request: Request, error: Exception) -> Response:
            return failure(request, code, title, body or str(error))

        return handle

    def of_http(request: Request, error: HTTPException) -> Response:
        body = "There is no such page here." if error.status_code == 404 else str(error.detail)
        return failure(request, error.status_code, "Nothing here", body)

    app.add_exception_handler(NotSignedIn, handler(401, "You are not signed in", NOT_SIGNED_IN))
    app.add_exception_handler(Forbidden, handler(403, "Not for you", "Your link does not open this page."))
    app.add_exception_handler(Conflict, handler(409, "That does not fit"))
    app.add_exception_handler(Busy, handler(503, "In a moment"))
    app.add_exception_handler(Unreadable, handler(500, "The store cannot be used", BROKEN))
    app.add_exception_handler(StoreError, handler(400, "That cannot be used"))
    app.add_exception_handler(RequestValidationError, handler(400, "That cannot be used", "the request is malformed"))
    app.add_exception_handler(HTTPException, of_http)  # type: ignore[arg-type]
    return app


WRONG_LINK = (
    "It is not complete, it has expired, or a newer one has taken its place. Ask whoever sent it to you for a new one."
)
BROKEN = (
    "Tell whoever runs this page: its disk is full, or the file of the answers is damaged. What was confirmed stays."
)
NOT_SIGNED_IN = "Open the invitation link that you were given; it signs you in."


def _shown(loan: Loan) -> dict[str, Any]:
    """What the page learns of an item: the texts in the order of showing, and nothing of where they come from."""
    return {
        "item": loan.item,
        "prompt": turns(loan.prompt),
        "first": turns(loan.first),
        "second": turns(loan.second),
    }
