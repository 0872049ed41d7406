"""Who may ask: the page itself, under an address that is ours; every answer forbids requests to anywhere else."""

from __future__ import annotations

import hmac
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=(), display-capture=()",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """An application behind checks of Host, Origin and token.

    Args:
        app: what answers.
        host, port: it listens at.
        token: that the address has to name once; "" for none.

    Without a token only this machine's own names are taken for Host, so that no web page can reach us under a name of
    its own that has come to mean this machine. With one the browser sends it back as a cookie, which pages elsewhere
    lack; what they ask in its name is refused by Origin.
    """

    def __init__(self, app: ASGIApp, *, host: str, port: int, token: str = "") -> None:
        self.app, self.token, self.cookie = app, token, f"selkern-{port}"
        names = {"127.0.0.1", "localhost", "[::1]", f"[{host}]" if ":" in host else host}
        self.hosts = {f"{name}:{port}" for name in names} | (names if port == 80 else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        headers = Headers(scope=scope)
        refusal = self._wrong_place(scope, headers) or self._wrong_token(scope, headers)
        await (refusal or self.app)(scope, receive, send_guarded)

    def _wrong_place(self, scope: Scope, headers: Headers) -> Response | None:
        """A refusal of requests that other pages make, or that came under a name that is not ours."""
        host = headers.get("host", "")
        if not self.token and host.lower() not in self.hosts:
            return _refuse("this address is not one of selkern explore's own")
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site in ("cross-site", "same-site") and not (scope["path"] == "/" and scope["method"] == "GET"):
            return _refuse("asked by another page")
        if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
            return _refuse("asked by another page")
        return None

    def _wrong_token(self, scope: Scope, headers: Headers) -> Response | None:
        """A refusal without the token; a redirect to the page with a cookie for an address that has it."""
        if not self.token or self._is_token(_cookie(headers, self.cookie)):
            return None
        given = next(
            (part[6:] for part in scope["query_string"].decode("latin-1").split("&") if part[:6] == "token="), ""
        )
        if scope["path"] == "/" and scope["method"] == "GET" and self._is_token(given):
            answer = RedirectResponse("/", status_code=303)
            answer.set_cookie(self.cookie, self.token, httponly=True, samesite="lax", path="/")
            return answer
        return _refuse("open the address that selkern explore has printed: it ends in a token")

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.token.encode())


def _cookie(headers: Headers, name: str) -> str:
    try:
        result = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return result.value if result else ""


def _refuse(why: str) -> Response:
    return PlainTextResponse(f"refused: {why}\n", status_code=403)
