"""What the kernel keeps a process from: memory, time, files, the network, and outliving its parent.

Limits are resource limits; files and TCP ports are Landlock's (Linux 5.13, ports 6.7), sockets seccomp's. All are
inherited by whatever the process starts and can never be taken back. Where a kernel lacks one, the others stay.
"""

import contextlib
import ctypes
import os
import platform
import resource
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

_SET_PDEATHSIG, _SET_SECCOMP, _SET_NO_NEW_PRIVS = 1, 22, 38  # prctl(2)
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_RULE_PATH, _RULE_PORT = 1, 2
_ABI_VERSION = 1  # a flag of landlock_create_ruleset
# Rights of linux/landlock.h: files by ABI, then TCP.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_FILE_RIGHTS_OF_ABI = ((1, (1 << 13) - 1), (2, _REFER), (3, _TRUNCATE))
_READ = _READ_FILE | _READ_DIR
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE  # the others are of folders
_BIND_TCP, _CONNECT_TCP = 1, 2
_NET_ABI = 4
# A new socket, io_uring (which opens sockets too), another program, another process's memory.
_FORBIDDEN = {
    "x86_64": (0xC000003E, (41, 425, 59, 322, 101, 310, 311)),
    "aarch64": (0xC00000B7, (198, 425, 221, 281, 117, 270, 271)),
}
_X32_CALLS = 0x40000000  # x86_64's second set of numbers for the same calls
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1  # EPERM
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06


def die_with_parent(parent: int) -> None:
    """Be killed when the thread that started this process ends; at once if `parent` is no longer the parent."""
    if sys.platform == "linux":
        _libc().prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def no_new_privileges() -> None:
    """No program that is started from here on gains rights by its owner; Landlock and seccomp ask for it."""
    if sys.platform == "linux":
        _libc().prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def limit(kind: int, value: int) -> None:
    """Set a resource limit for good; not every system has every limit."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (value, value))


def limit_memory(num_bytes: int) -> None:
    """At most so much more than now. Not of address space: a file that is only mapped takes no memory."""
    limit(resource.RLIMIT_DATA, _data_bytes() + num_bytes)


def limit_cpu(seconds: float) -> None:
    """So many seconds of this process's CPU time from now; the kernel counts in whole seconds. Can be set again."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    until = int(used.ru_utime + used.ru_stime + seconds) + 1
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (until, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def allow_files(read: Iterable[Path], write: Iterable[Path], ports: Iterable[int] | None) -> bool:
    """Forbid all files but those below `read` and `write`, and TCP but to `ports`; None leaves TCP as it is.

    False where the kernel cannot. Files that are open stay open.
    """
    abi = landlock_abi()
    if abi < 1:
        return False
    files = sum(rights for since, rights in _FILE_RIGHTS_OF_ABI if abi >= since)
    has_ports = ports is not None and abi >= _NET_ABI
    attributes = (ctypes.c_uint64 * 2)(files, _BIND_TCP | _CONNECT_TCP if has_ports else 0)
    size = 16 if abi >= _NET_ABI else 8
    rules = _libc().syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    if rules < 0:
        return False
    for path in read:
        _allow_path(rules, path, files & (_READ | _EXECUTE))
    for path in write:
        _allow_path(rules, path, files & ~_EXECUTE)
    for port in ports or () if has_ports else ():
        _libc().syscall(_ADD_RULE, rules, _RULE_PORT, (ctypes.c_uint64 * 2)(_CONNECT_TCP, port), 0)
    no_new_privileges()
    is_kept = _libc().syscall(_RESTRICT_SELF, rules, 0) == 0
    os.close(rules)
    return is_kept


def program_folders() -> tuple[Path, ...]:
    """What Python, its packages and their libraries are read from, now and later; nothing that a person wrote."""
    prefixes = {sys.prefix, sys.base_prefix, *filter(None, sys.path)}
    system = ("/usr", "/lib", "/lib64", "/dev/null", "/dev/urandom", "/proc/self", "/proc/cpuinfo")
    cores = ("/sys/devices/system/cpu", "/proc/meminfo")
    return tuple(map(Path, (*prefixes, *system, *cores)))


class _PathRule(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("rights", ctypes.c_uint64), ("folder", ctypes.c_int32))


def _allow_path(rules: int, path: Path, rights: int) -> None:
    with contextlib.suppress(OSError):  # what does not exist needs no rule
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rights = rights if path.is_dir() else rights & _OF_FILES
        _libc().syscall(_ADD_RULE, rules, _RULE_PATH, ctypes.byref(_PathRule(rights, opened)), 0)
        os.close(opened)


def forbid_sockets_and_programs() -> bool:
    """No new socket, no other program, no look into other processes; False where the kernel cannot.

    Sockets that are open stay open.
    """
    known = _FORBIDDEN.get(platform.machine())
    if sys.platform != "linux" or known is None:
        return False
    architecture, calls = known
    no_new_privileges()
    program = _program(architecture, calls)
    filter_ = _Filter(len(program), ctypes.cast(program, ctypes.c_void_p))
    return _libc().prctl(_SET_SECCOMP, 2, ctypes.byref(filter_), 0, 0) == 0


class _Instruction(ctypes.Structure):
    """struct sock_filter: code, jump if true, jump if false, value."""

    _fields_ = (
        ("code", ctypes.c_uint16),
        ("then", ctypes.c_uint8),
        ("otherwise", ctypes.c_uint8),
        ("value", ctypes.c_uint32),
    )


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("program", ctypes.c_void_p))


def _program(architecture: int, calls: tuple[int, ...]) -> "ctypes.Array[_Instruction]":
    """Refuse the calls, and all of another architecture's."""
    refuse = len(calls) + 5  # the number of the last line; a jump counts from the line after it
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 0, refuse - 2, architecture), (_LOAD, 0, 0, 0)]
    lines += [(_AT_LEAST, refuse - 4, 0, _X32_CALLS)]
    lines += [(_EQUAL, refuse - 5 - i, 0, call) for i, call in enumerate(calls)]
    lines += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    return (_Instruction * len(lines))(*(_Instruction(*line) for line in lines))


def landlock_abi() -> int:
    """Version of the kernel's Landlock, 0 without."""
    if sys.platform != "linux":
        return 0
    return max(0, _libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ABI_VERSION))


def missing_here() -> tuple[str, ...]:
    """What this system does not keep from a process that reads strangers' files; a sentence each."""
    if sys.platform != "linux":
        return (
            "Only Linux keeps a reading process from files and the network: this system does not.",
        )
    abi, sentences = landlock_abi(), []
    if abi < 1:
        sentences.append(
            "This kernel has no Landlock: what reads strangers' files may read others."
        )
    elif abi < _NET_ABI:
        sentences.append("This kernel's Landlock has no ports: what asks the Hub may ask others.")
    if platform.machine() not in _FORBIDDEN:
        sentences.append("Sockets are not forbidden on this processor's kernel.")
    return tuple(sentences)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _data_bytes() -> int:
    """Private writable memory of this process, as RLIMIT_DATA counts it."""
    try:
        with open("/proc/self/status") as lines:
            sizes = dict(line.split(":", 1) for line in lines)
        return int(sizes["VmData"].split()[0]) * 1024
    except (OSError, KeyError):
        return 0
