"""Ctrl-C at any moment: while modules are imported, while XLA compiles, while it computes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable


def watch(stop: Callable[[int], object]) -> None:
    """Lets SIGINT and SIGTERM call `stop` with their number, at once and in a thread of its own.

    KeyboardInterrupt, an exception in the main thread, would wait until XLA has finished its computation and
    would be lost in callbacks; at the end Python would wait for threads that compile. A signal that is ignored
    remains ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    threading.Thread(target=lambda: stop(os.read(reads, 1)[0]), name="signals", daemon=True).start()
