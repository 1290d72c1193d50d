"""Downloads large files. A download resumes after an interruption, and its digest is checked."""

from __future__ import annotations

import contextlib
import email.utils
import errno
import hashlib
import http.client
import math
import os
import random
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC
from pathlib import Path

from organ_infer.files import created_directory, flush_file
from organ_infer.locks import Lock
from train.errors import RunError

# bytes
CHUNK = 1 << 20
# seconds without a byte
TIMEOUT = 30
# seconds of the first pause between two attempts, of the longest one without Retry-After, and of all pauses together
FIRST_PAUSE, LONGEST_PAUSE, LONGEST_WAIT = 1.0, 30.0, 300.0
# statuses below 500 that a later request may not get: timeout, locked, too early, too many requests
TEMPORARY = frozenset({408, 423, 425, 429})
# errors of the disk that waiting does not change
LASTING = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.EFBIG,
        errno.ENAMETOOLONG,
    }
)
# seconds in which the download of another process must grow: its longest pause, and some timeouts
WAIT = LONGEST_WAIT + 5 * TIMEOUT


def digest_of(path: Path, algorithm: str) -> str:
    """Return the digest of a file in hexadecimal, by any algorithm of hashlib (`md5`, `sha256`)."""
    with path.open("rb") as file:
        return hashlib.file_digest(
            file, lambda: hashlib.new(algorithm, usedforsecurity=False)
        ).hexdigest()


class _Unavailable(Exception):
    """An attempt that failed.

    Args:
        reason: why, for the message.
        again: whether a later attempt may succeed.
        wait: seconds that the server asks to wait, or None.
    """

    def __init__(self, reason: str, *, again: bool = True, wait: float | None = None) -> None:
        super().__init__(reason)
        self.again = again
        self.wait = wait


def download(
    url: str, path: Path, digest: str, *, algorithm: str = "md5", attempts: int = 6
) -> None:
    """Download a file to `path` + ".part", check its digest, and rename it to `path`.

    A download that fails leaves nothing behind but what it has of the file: a later attempt resumes the ".part" file. Between two attempts the server gets time: as much as its Retry-After asks
    for, at least seconds that double from attempt to attempt. If several processes call this, one downloads and the others
    wait for it, as long as its file grows.

    Args:
        url: the address of the file.
        path: where the file goes. If it exists once the lock is held, nothing is downloaded.
        digest: expected digest in hexadecimal, or its first digits.
        algorithm: hashlib's name of the digest's algorithm.
        attempts: number of attempts.

    Raises:
        RunError: the server cannot be reached, or the digest differs; the message names the address.
    """
    part = path.with_name(path.name + ".part")
    manual_fetch = f"fetch {url} by hand to {path} ({algorithm.upper()} {digest})"
    lock = Lock(path.with_name(f".{path.name}.lock"))
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(created_directory(path.parent))
            acquired = _wait_for(lock, path, part)
        except OSError as e:
            raise RunError(
                f"{path.parent}: cannot be written ({e.strerror}); choose another --data-dir or {manual_fetch}"
            ) from e
        if not acquired:
            return
        try:
            if not path.exists():
                reason = _fetch(url, path, part, digest, algorithm, attempts)
                if reason:
                    raise RunError(f"{path.name}: download failed ({reason}); {manual_fetch}")
        finally:
            # an empty part is nothing to resume from
            if not _size_of(part):
                part.unlink(missing_ok=True)
            lock.release()


def _wait_for(lock: Lock, path: Path, part: Path) -> bool:
    """Wait for a lock. Returns False if another process has completed the file meanwhile.

    Raises:
        RunError: another process has the lock, and its download has not grown for WAIT seconds.
    """
    size, since = -1, time.monotonic()
    while not lock.acquire():
        if path.exists():
            return False
        if size != (now := _size_of(part)):
            size, since = now, time.monotonic()
        if time.monotonic() - since >= WAIT:
            file = lock.marker if lock.is_marked else lock.path
            remedy = f"remove {file} if it was killed" if lock.is_marked else "end it"
            raise RunError(
                f"{part}: another process is downloading it and has written nothing for {WAIT:.0f} s"
                f" ({lock.owner() or f'it holds {file}'}); {remedy}, then rerun the same command"
            )
        time.sleep(0.2)
    return True


def _size_of(part: Path) -> int:
    """Return the bytes of a file; 0 if there is none, as when another process has just renamed it."""
    try:
        return part.stat().st_size
    except FileNotFoundError:
        return 0


def _fetch(url: str, path: Path, part: Path, digest: str, algorithm: str, attempts: int) -> str:
    """Download a file. Returns why it failed, or an empty string."""
    waited, failures = 0.0, 0
    for attempt in range(1, attempts + 1):
        before = _size_of(part)
        try:
            _attempt(url, path, part, digest, algorithm)
        except _Unavailable as e:
            reason = str(e)
            if not e.again or attempt == attempts:
                return reason
            # an attempt that got further begins the waiting anew
            after = _size_of(part)
            failures = 1 if after > before else failures + 1
            pause = _pause(failures, e.wait)
            if waited + pause > LONGEST_WAIT:
                return f"{reason}, and asks to wait {pause:.0f} s" if e.wait else reason
            print(
                f"{path.name}: {reason}; waiting {math.ceil(pause)} s, then attempt {attempt + 1} of {attempts}",
                file=sys.stderr,
                flush=True,
            )
            time.sleep(pause)
            waited += pause
        else:
            return ""
    return "no attempt was made"


def _pause(failures: int, asked: float | None) -> float:
    """Return the seconds to wait after a number of failures in a row, and what the server asks for if that is more."""
    # the jitter keeps several machines from asking at the same time
    own = min(FIRST_PAUSE * 2.0 ** (failures - 1), LONGEST_PAUSE) * random.uniform(0.5, 1.0)
    return own if asked is None else max(own, asked)


def _attempt(url: str, path: Path, part: Path, digest: str, algorithm: str) -> None:
    """Download what is missing of a file, and rename it if it is complete.

    Raises:
        _Unavailable: it is not complete.
        RunError: the directory cannot be written.
    """
    try:
        complete = _fetch_rest(url, part)
    except urllib.error.HTTPError as e:
        # the part is longer than the file: start over
        if e.code == 416 and part.exists():
            part.unlink()
            return _attempt(url, path, part, digest, algorithm)
        raise _Unavailable(
            f"the server answered {e.code} {e.reason}",
            again=e.code >= 500 or e.code in TEMPORARY,
            wait=_retry_after(e.headers.get("Retry-After")),
        ) from e
    except urllib.error.URLError as e:
        # waiting does not change the server's certificate
        invalid = isinstance(e.reason, ssl.SSLCertVerificationError)
        raise _Unavailable(str(e.reason), again=not invalid) from e
    except http.client.HTTPException as e:
        raise _Unavailable(f"invalid HTTP response ({type(e).__name__})") from e
    except OSError as e:
        if e.errno is not None and part.parent.exists() and not os.access(part.parent, os.W_OK):
            raise RunError(
                f"{path.parent}: cannot be written ({e.strerror}); choose another --data-dir"
            ) from e
        raise _Unavailable(str(e) or type(e).__name__, again=e.errno not in LASTING) from e
    actual = digest_of(part, algorithm)
    if actual.startswith(digest):
        os.replace(part, path)
        return
    if not complete:
        raise _Unavailable("the connection broke off")
    part.unlink()
    raise _Unavailable(f"expected {algorithm.upper()} {digest}, found {actual}")


def _retry_after(header: str | None) -> float | None:
    """Return the seconds that a header Retry-After asks to wait, given as seconds or as a date; None without a valid one."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        date = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    # a date without a time zone is one in UTC
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, date.timestamp() - time.time())


def _fetch_rest(url: str, part: Path) -> bool:
    """Append the rest of a file to `part`. Returns whether it has the length that the server announced."""
    from tqdm import tqdm

    start = _size_of(part)
    request = urllib.request.Request(url, headers={"User-Agent": "organ-infer-train"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        # the server sends the whole file again
        if start and response.status != 206:
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        free = shutil.disk_usage(part.parent).free
        if length and int(length) > free:
            raise _Unavailable(
                f"{int(length) / 1e6:,.0f} MB needed, {free / 1e6:,.0f} MB free", again=False
            )
        name = part.name.removesuffix(".part")
        with (
            part.open("ab" if start else "wb") as file,
            tqdm(
                total=total, initial=start, unit="B", unit_scale=True, unit_divisor=1024, desc=name
            ) as bar,
        ):
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            flush_file(file.fileno())
            return total is None or file.tell() >= total
