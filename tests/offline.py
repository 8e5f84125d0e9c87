"""The one answer to whatever asks for a network beyond this machine: there is none.

An audit hook gives it in the Python processes of the tests (the suite, a ComfyUI), with the errors
that Linux gives where no network is. `comfyui/offline.sh` takes the network itself away, which
holds for what is not Python too. What is refused cannot tell which of them did it.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

SENDS = ("socket.connect", "socket.sendto", "socket.sendmsg")
LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")


def leaves_this_machine(event: str, args: tuple[Any, ...]) -> str:
    """The host of an audit event that reaches beyond this machine, else ""."""
    host: Any = None
    if event in SENDS:
        host = args[1][0] if isinstance(args[1], tuple) else None  # else a path: a Unix socket
    elif event in LOOKUPS:
        host = args[0]
    text = host.decode() if isinstance(host, bytes) else host or "localhost"
    if text == "localhost" or text.endswith(".localhost"):
        return ""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return str(text)
    asks_nobody = event in LOOKUPS and event != "socket.gethostbyaddr"  # it is a number already
    return "" if address.is_loopback or asks_nobody else text


def stay_on_this_machine(note: Callable[[str], None]) -> None:
    """From now on this process has no network but loopback; `note` is told each host that it asks
    for. For good: Python has no way to take an audit hook away."""

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if not event.startswith("socket.") or not (host := leaves_this_machine(event, args)):
            return
        note(host)
        if event == "socket.gethostbyaddr":
            raise socket.herror(2, "Host name lookup failure")
        if event in LOOKUPS:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

    sys.addaudithook(watch)
