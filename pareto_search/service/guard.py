"""Who may ask: every request passes here before anything else looks at it."""

import hmac
from collections.abc import Collection, Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The hash is that of an empty <style>, which Plotly makes and then fills through the browser's own interface.
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


BODY, UPLOAD = 1 << 20, 256 << 20
"""The most bytes of a request, and of one that uploads data."""


class Guard:
    """Refuses whoever has no token, who comes under another host's name or from another site's page, or with too much.

    Args:
        token: what `Authorization: Bearer` must carry.
        hosts: the names, without port, under which the service is reached.
        public: the paths that need no token: the page and its assets, which say nothing about anybody.
    """

    def __init__(self, app: ASGIApp, token: str, hosts: Iterable[str], public: Collection[str]) -> None:
        self._app, self._token, self._public = app, token.encode(), public
        # As a browser sends them, in lower case, without the port that an operator may have given too; a bare IPv6
        # address looks as if it had one.
        bare = (f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else host for host in hosts)
        self._hosts = {_name(f"//{host}") for host in bare} - {None}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # there are no websockets here

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        refusal = self._refusal(scope)
        await (refusal or self._app)(scope, receive, answer)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        if _name(f"//{headers.get('host', '')}") not in self._hosts:
            return _refused(400, "this is not the host's name; use the address that the service printed, or --name it")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != headers["host"]:
            return _refused(403, "a page of another site asks; open the service's own page")
        if scope["path"] in self._public and scope["method"] in ("GET", "HEAD"):
            return None
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token):
            refusal = _refused(401, "the token is missing or wrong; send it as 'Authorization: Bearer TOKEN'")
            refusal.headers["www-authenticate"] = "Bearer"
            return refusal
        return _too_much(scope["path"], headers)


def _too_much(path: str, headers: Headers) -> JSONResponse | None:
    if "transfer-encoding" in headers:
        return _refused(411, "the request does not say its length; send Content-Length")
    most, remedy = (UPLOAD, "; an operator can register larger data, with --data") if path == "/v1/data" else (BODY, "")
    if int(headers.get("content-length", 0)) > most:  # the server cuts off what is longer than it says
        return _refused(413, f"the request is too large; expected at most {most} bytes{remedy}")
    return None


def _name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _refused(status: int, error: str) -> JSONResponse:
    return JSONResponse({"error": error}, status)
