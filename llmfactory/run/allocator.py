"""Keep freed memory in the process instead of handing it back to the kernel after every tensor.

glibc returns each large block to the kernel when it is freed and gets it back, zeroed page by page, for the next tensor: up
to 18 % of a CPU training step goes into page faults. Told once to serve large blocks from its heap and never to trim
that, it reuses them (measured: 1.09-1.23 x faster steps for some hundred MiB of memory). It cannot be undone within a
process, and does not need to be.
"""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Names of `mallopt` options, from glibc's malloc.h."""


def keep_freed_memory() -> bool:
    """Switch it on where the C library is glibc; whether it is."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    accepted = [mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, 2**31 - 1), mallopt(M_TOP_PAD, 64 * 2**20)]
    return all(accepted)
