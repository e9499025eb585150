"""Takes a free TCP port for an engine, so that no two engines of a machine are given the same one.

Between the choice of a port and the moment that an engine listens on it, minutes may pass. So ports come
from a range that the kernel does not hand to outgoing connections, and each is claimed by a name in the
abstract socket namespace, which a process holds as long as it lives and not longer.

Rules of this file: Linux (abstract sockets); nothing listens here.
"""

from __future__ import annotations

import errno
import random
import socket

from rayscheduler.errors import EngineError

PORTS = range(20_000, 30_000)  # below the ephemeral ports (32768 up), above those of Ray's workers
_ATTEMPTS_MAX = 1_000
_TAKEN = (errno.EADDRINUSE, errno.EACCES)


class ClaimedPort:
    """A port that no other runner on this machine will choose until it is released."""

    def __init__(self, number: int, claim: socket.socket) -> None:
        self.number = number
        self._claim = claim

    def release(self) -> None:
        """Give it back; a second time does nothing."""
        self._claim.close()


def claim_port(host: str, number: int | None = None) -> ClaimedPort:
    """That port of the host's address, or any. EngineError: it is in use, or none is free."""
    if number is not None:
        claimed = _claim(host, number)
        if claimed is None:
            raise EngineError(f"port {number} of {host} is in use; leave it out, and a free one is taken")
        return claimed
    for _ in range(_ATTEMPTS_MAX):
        claimed = _claim(host, random.choice(PORTS))
        if claimed is not None:
            return claimed
    raise EngineError(f"no port of {host} from {PORTS.start} to {PORTS.stop - 1} is free for an engine")


def _claim(host: str, number: int) -> ClaimedPort | None:
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        claim.bind(f"\0rayscheduler/port/{number}")
        family, kind, protocol, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT is no obstacle
            probe.bind(address)
            probe.listen(1)
    except socket.gaierror as error:
        claim.close()
        raise EngineError(f"{host} is no address of this machine: {error.strerror}") from error
    except OSError as error:
        claim.close()
        if error.errno not in _TAKEN:
            raise EngineError(f"no engine can listen on {host}: {error.strerror}") from error
        return None
    return ClaimedPort(number, claim)
