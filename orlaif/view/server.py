"""The page's server: this machine only, GET only, and of files only those that the samples name."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from orlaif.view.guard import Guard
from orlaif.view.page import as_json, static
from orlaif.view.run import Run

_STATIC = {
    "": ("page.html", "text/html"),
    "page.js": ("page.js", "text/javascript"),
    "page.css": ("page.css", "text/css"),
}
#: Nothing from elsewhere, nothing inline: an answer that holds a script is a text.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src 'self'; connect-src 'self'"
)
_HEADERS = {
    "Content-Security-Policy": f"{_POLICY}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_NOTHING = Response("not found", status_code=404, headers=_HEADERS)


def make_app(runs: Sequence[Run], hosts: Sequence[str] = ("localhost",)) -> Starlette:
    """The application.

    Args:
        runs: one or more, shown side by side.
        hosts: names by which the server may be asked, besides addresses in numbers (:class:`~orlaif.view.guard.Guard`).
    """

    def file(request: Request) -> Response:
        found = _STATIC.get(request.path_params.get("name", ""))
        return _NOTHING if found is None else Response(static(found[0]), media_type=found[1], headers=_HEADERS)

    def overview(request: Request) -> Response:
        if request.query_params.get("refresh"):
            for run in runs:
                run.refresh()
        return Response(as_json([run.overview for run in runs]), media_type="application/json", headers=_HEADERS)

    def of_run(request: Request) -> tuple[Run, int] | None:
        run, place = request.path_params["run"], request.path_params["place"]
        return (runs[run], place) if 0 <= run < len(runs) else None

    def group(request: Request) -> Response:
        found = of_run(request)
        whole = None if found is None else found[0].group(found[1])
        return _NOTHING if whole is None else Response(as_json(whole), media_type="application/json", headers=_HEADERS)

    def media(request: Request) -> Response:
        found = of_run(request)
        path = None if found is None else found[0].media(found[1], request.path_params["item"])
        return _NOTHING if path is None else FileResponse(path, headers=_HEADERS)

    def sheet(request: Request) -> Response:
        found = of_run(request)
        data = None if found is None else found[0].sheet(found[1], request.path_params["item"])
        return _NOTHING if data is None else Response(data, media_type="image/webp", headers=_HEADERS)

    place = "{run:int}/{place:int}"
    routes = [
        Route("/", file, methods=["GET"]),
        Route("/{name:str}", file, methods=["GET"]),
        Route("/api/runs", overview, methods=["GET"]),
        Route(f"/api/group/{place}", group, methods=["GET"]),
        Route(f"/media/{place}/{{item:int}}", media, methods=["GET"]),
        Route(f"/sheet/{place}/{{item:int}}", sheet, methods=["GET"]),
    ]
    return Starlette(routes=routes, middleware=[Middleware(Guard, names=hosts)])
