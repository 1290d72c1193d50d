"""Downloads large files. A download resumes after an interruption, and its digest is checked."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

from organ_infer.files import flush_file
from train.errors import RunError
from train.locks import Lock

# bytes
CHUNK = 1 << 20
# seconds without a byte
TIMEOUT = 30
# seconds in which the download of another process must grow; it gives up by itself after 4 timeouts
WAIT = 5 * TIMEOUT


def digest_of(path: Path, algorithm: str) -> str:
    """Return the digest of a file in hexadecimal, by any algorithm of hashlib (`md5`, `sha256`)."""
    with path.open("rb") as file:
        return hashlib.file_digest(
            file, lambda: hashlib.new(algorithm, usedforsecurity=False)
        ).hexdigest()


def download(
    url: str, path: Path, digest: str, *, algorithm: str = "md5", attempts: int = 4
) -> None:
    """Download a file to `path` + ".part", check its digest, and rename it to `path`.

    A later attempt resumes the ".part" file. If several processes call this, one downloads and the others wait for it,
    as long as its file grows.

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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
        if size != (now := part.stat().st_size if part.exists() else 0):
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


def _fetch(url: str, path: Path, part: Path, digest: str, algorithm: str, attempts: int) -> str:
    """Download a file. Returns why it failed, or an empty string."""
    reason = ""
    for _ in range(attempts):
        try:
            complete = _fetch_rest(url, part)
        except urllib.error.HTTPError as e:
            reason = f"the server answered {e.code} {e.reason}"
            # the part is longer than the file: start over
            if e.code == 416:
                part.unlink(missing_ok=True)
                continue
            if e.code < 500:
                break
        except urllib.error.URLError as e:
            reason = str(e.reason)
        except http.client.HTTPException as e:
            reason = f"invalid HTTP response ({type(e).__name__})"
        except OSError as e:
            if e.errno is not None and part.parent.exists() and not os.access(part.parent, os.W_OK):
                raise RunError(
                    f"{path.parent}: cannot be written ({e.strerror}); choose another --data-dir"
                ) from e
            reason = str(e) or type(e).__name__
        else:
            actual = digest_of(part, algorithm)
            if actual.startswith(digest):
                os.replace(part, path)
                return ""
            reason = (
                f"expected {algorithm.upper()} {digest}, found {actual}"
                if complete
                else "the connection broke off"
            )
            if complete:
                part.unlink()
    return reason


def _fetch_rest(url: str, part: Path) -> bool:
    """Append the rest of a file to `part`. Returns whether it has the length that the server announced."""
    from tqdm import tqdm

    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "organ-infer-train"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        # the server sends the whole file again
        if start and response.status != 206:
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
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
