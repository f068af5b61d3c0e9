"""Small and read-only disks for a test alone: real mounts, in a mount namespace of the calling process."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18


def own_mounts() -> None:
    """From here on this process, which must have one thread alone, may mount, and nobody else sees it."""
    user, group = os.getuid(), os.getgid()
    try:
        _check(_libc().unshare(_CLONE_NEWUSER | _CLONE_NEWNS))
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        _mount("none", Path("/"), "", _MS_REC | _MS_PRIVATE)
    except OSError as error:
        raise RuntimeError(
            f"this machine refuses a mount namespace ({error}). The tests of full and read-only disks need one. Allow "
            f"user namespaces: sysctl kernel.apparmor_restrict_unprivileged_userns=0 kernel.unprivileged_userns_clone=1"
        ) from error


def mount_small(folder: Path, size_bytes: int) -> None:
    """An empty disk of that size, in memory, at `folder`."""
    folder.mkdir(exist_ok=True)
    _mount("tmpfs", folder, "tmpfs", 0, f"size={size_bytes}")


def mount_read_only(folder: Path) -> None:
    """`folder` as it is, but not to be written, whoever asks."""
    _mount(str(folder), folder, "", _MS_BIND)
    _mount("none", folder, "", _MS_BIND | _MS_REMOUNT | _MS_RDONLY)


def unmount(folder: Path) -> None:
    _check(_libc().umount(bytes(folder)))


def _mount(source: str, target: Path, kind: str, flags: int, options: str = "") -> None:
    _check(_libc().mount(source.encode(), bytes(target), kind.encode(), ctypes.c_ulong(flags), options.encode()))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
