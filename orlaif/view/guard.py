"""Who may ask the page's server, and how: by GET alone, and by an address or a name that is its own.

A page elsewhere can have its name lead to this machine (DNS rebinding) and would then be taken for this one by the
browser; its requests still carry its name as their host. An address that is spelled in numbers cannot be such a name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class Guard:
    """Refuses requests that are none of the page's own.

    Args:
        app: what the others go to.
        names: by which the server may be asked, besides any address in numbers.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self.app, self.names = app, {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        if scope["type"] == "http":
            hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
            if len(hosts) != 1 or not self.is_own(hosts[0]):
                await PlainTextResponse("no such host here", status_code=400)(scope, receive, send)
                return
            if scope["method"] != "GET":
                refusal = PlainTextResponse("GET only", status_code=405, headers={"Allow": "GET"})
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def is_own(self, host: str) -> bool:
        """Whether a host header, with a port or without, names this server."""
        bracketed = host.startswith("[")
        name = host[1:].partition("]")[0] if bracketed else host.partition(":")[0]
        if not bracketed and name.lower() in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
