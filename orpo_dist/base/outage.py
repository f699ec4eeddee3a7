"""Which errors of loading are an outage of the network or of a server, and pass by themselves."""

from __future__ import annotations

import os
import socket

# Of the HTTP libraries below the hub's, by name: they come and go, and none has to be installed.
LIBRARIES = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "aiohttp")
OUTAGES = (
    "NetworkError", "TimeoutException", "RemoteProtocolError",  # httpx, httpcore
    "ConnectionError", "Timeout",  # requests
    "ProtocolError", "MaxRetryError", "TimeoutError",  # urllib3
    "ClientConnectionError", "ServerTimeoutError",  # aiohttp
)  # fmt: skip
TEMPORARY = (408, 425, 429)  # of the statuses below 500, which are else the asker's mistake


def is_outage(error: BaseException) -> bool:
    """Whether trying again may help: no connection, no answer in time, 429, or a server's 5xx.

    Libraries wrap what happened, so causes count. What is not there, or not for this user (404,
    401, 403), is no outage, and neither is being offline on purpose.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        verdict = _verdict(link)
        if verdict is not None:
            return verdict
        seen.append(link)
        link = link.__cause__ or link.__context__
    return False


def _verdict(error: BaseException) -> bool | None:
    """Of one link of a chain; None where it does not say."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if not isinstance(status, int):
        status = getattr(error, "status", None)  # aiohttp's
    if isinstance(status, int) and status >= 400:
        return status >= 500 or status in TEMPORARY
    if type(error).__name__ == "OfflineModeIsEnabled":
        return False
    kinds = [kind for kind in type(error).__mro__ if kind.__module__.split(".")[0] in LIBRARIES]
    if any(kind.__name__ in OUTAGES for kind in kinds):
        return True
    if isinstance(error, socket.gaierror):
        return True
    if isinstance(error, ConnectionError | TimeoutError) and error.__cause__ is None:
        return True  # with a cause it is a library's own word for whatever that was
    return None
