"""Which GPUs are of no use until somebody resets them, and when they are of use again.

    fatal Xid, or the driver asks for a reset ──► faulty
    faulty ──► of use again, once there are signs of a reset: the card could not be read meanwhile and can be now,
               or the driver asked for a reset and does not any more

Rules of this file: a card that cannot be read is missing, not faulty. NVML is waited on in a thread of its own;
whoever takes a reading tells what it has seen.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rayscheduler.cluster.gpu import Gpu
from rayscheduler.cluster.nvml import StaleWatch, XidWatch

WAIT_MS = 1000
PAUSE_S = 1.0

# The Xids after which a card is of no use before it is reset, or its machine restarted: those whose immediate action
# is RESET_GPU or RESTART_BM in NVIDIA's catalog ("Analyzing Xid Errors with the Xid Catalog",
# https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html, Ampere and newer), and 48, after which "a GPU
# reset or node reboot is needed". Left out, though listed there: 109 and 155, which applications cause or which are
# links that go down by intent. Errors of NVLink (74, 144 to 150) may be the other end's. Where such a card does need
# a reset, the driver itself asks for it (Xid 154, since R565), and that is heeded.
FATAL_XIDS = {
    46: "the GPU stopped processing",
    48: "double-bit ECC error",
    62: "a micro-controller of the GPU halted",
    64: "bad memory could not be remapped",
    79: "the GPU has fallen off the bus",
    95: "uncontained memory error",
    110: "security fault",
    119: "its GSP does not answer",
    120: "error of its GSP",
    136: "link training failed",
    140: "unrecovered ECC error",
    143: "it could not be initialised",
    156: "a part of it is to be retired",
    158: "fatal timeout",
}

logger = logging.getLogger(__name__)


@dataclass
class _Fault:
    why: str
    asked: bool = False  # the driver asked for a reset since
    unread: bool = False  # the card could not be read since


class GpuFaults:
    """`note` and `seen` may be called by different threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: dict[str, _Fault] = {}  # by UUID of the card
        self._readable: frozenset[str] = frozenset()
        self._watching = False

    def note(self, card: str, xid: int) -> None:
        """A card has reported an error."""
        if xid in FATAL_XIDS:
            with self._lock:
                self._faults[card] = _Fault(f"Xid {xid}, {FATAL_XIDS[xid]}")

    def seen(self, readable: Sequence[Gpu]) -> dict[str, str]:
        """What is wrong with cards, by UUID, now that exactly these devices can be read."""
        cards = {gpu.card: gpu.recovery for gpu in readable}
        self._readable = frozenset(cards)
        with self._lock:
            for card, recovery in cards.items():
                if recovery and card not in self._faults:
                    self._faults[card] = _Fault(f"its driver asks for {recovery}", asked=True)
            for card, fault in list(self._faults.items()):
                if card not in cards:
                    fault.unread = True
                elif cards[card]:
                    fault.asked = True
                elif fault.unread or fault.asked:
                    del self._faults[card]
            return {card: fault.why for card, fault in self._faults.items()}

    def watch(self) -> None:
        """From now on hear of errors, in a thread that ends with the process."""
        if not self._watching:
            self._watching = True
            threading.Thread(target=self._hear, name="gpu-faults", daemon=True).start()

    def _hear(self) -> None:
        while True:
            try:
                self._hear_of_cards(XidWatch())
            except StaleWatch:
                pass
            except Exception:
                logger.exception("a watch for errors of GPUs failed")
            time.sleep(PAUSE_S)

    def _hear_of_cards(self, watch: XidWatch) -> None:
        """Returns when there are other cards to be heard of."""
        try:
            while self._readable <= watch.cards:
                heard = watch.wait(WAIT_MS)
                if heard is not None:
                    logger.warning("GPU %s reports Xid %d", *heard)
                    self.note(*heard)
        finally:
            watch.close()
