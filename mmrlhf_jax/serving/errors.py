"""What a request is refused with, in OpenAI's form."""

from __future__ import annotations

from typing import Any

# Statuses that OpenAI's client tries again unless it is told not to.
_RETRIED = {408, 409, 429}
MOST_SAID = 2000


class ApiError(Exception):
    """An HTTP status, and a message for the client. `param` names the field that is wrong.

    A message may repeat what a request says, which may be long: it is cut to MOST_SAID characters.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry: bool = False):
        super().__init__(message if len(message) <= MOST_SAID else f"{message[:MOST_SAID]}...")
        self.status, self.param, self.code = status, param, code
        self.retry = retry or status in _RETRIED

    @property
    def kind(self) -> str:
        if self.status == 401:
            return "authentication_error"
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    def body(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        found = {"x-should-retry": "true" if self.retry else "false"}
        found |= {"www-authenticate": "Bearer"} if self.status == 401 else {}
        return found | ({"retry-after": "1"} if self.status in (429, 503) else {})


class ClientGone(ApiError):
    """The client has closed its connection, so that nobody reads the reply."""

    def __init__(self) -> None:
        super().__init__(400, "the client has gone", code="client_gone")
