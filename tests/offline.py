"""What watches for connections: in the suite (conftest.py) and around the command line."""

from __future__ import annotations

import ipaddress
from typing import Any

LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")


def leaves_this_machine(event: str, args: tuple[Any, ...]) -> str:
    """The host of an audit event that reaches beyond this machine, else ""."""
    host: Any = None
    if event in ("socket.connect", "socket.sendto"):
        host = args[1][0] if isinstance(args[1], tuple) else None  # else a path: a Unix socket
    elif event in LOOKUPS:
        host = args[0]
    text = host.decode() if isinstance(host, bytes) else host or "localhost"
    if text == "localhost" or text.endswith(".localhost"):
        return ""
    try:
        return "" if ipaddress.ip_address(text.partition("%")[0]).is_loopback else text
    except ValueError:
        return str(text)
