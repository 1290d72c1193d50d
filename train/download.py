"""Fetching a large file: resumed where it broke off, checked before it takes its name."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from filelock import FileLock

from train.errors import RunError

CHUNK = 1 << 20  # bytes
TIMEOUT = 30  # seconds without a byte


def digest_of(path: Path, algorithm: str) -> str:
    """The digest of a file's bytes in hexadecimal, by any algorithm of hashlib (`md5`, `sha256`)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def download(url: str, path: Path, digest: str, *, algorithm: str = "md5", attempts: int = 4) -> None:
    """Fetch `url` to `path` through `path` + ".part", going on where an earlier attempt broke off, unless another process
    has done so meanwhile.

    digest: in hexadecimal, or its first digits. Raises RunError, naming the address, where the server cannot be reached or
    the digest differs in the end.
    """
    part = path.with_name(path.name + ".part")
    by_hand = f"fetch {url} by hand to {path} ({algorithm.upper()} {digest})"
    lock = FileLock(path.with_name(f".{path.name}.lock"))  # of several processes one fetches, the others wait
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as e:
        raise RunError(
            f"cannot write to {path.parent}: {e.strerror}; choose another --data-dir or {by_hand}"
        ) from e
    try:
        if not path.exists():
            reason = _fetch(url, path, part, digest, algorithm, attempts)
            if reason:
                raise RunError(f"{path.name} could not be downloaded: {reason}; {by_hand}")
    finally:
        lock.release()


def _fetch(url: str, path: Path, part: Path, digest: str, algorithm: str, attempts: int) -> str:
    """Why it could not be fetched; nothing where it could."""
    reason = ""
    for _ in range(attempts):
        try:
            complete = _fetch_rest(url, part)
        except urllib.error.HTTPError as e:
            reason = f"the server answered {e.code} {e.reason}"
            if e.code == 416:  # the part is longer than the file: start over
                part.unlink(missing_ok=True)
                continue
            if e.code < 500:
                break
        except urllib.error.URLError as e:
            reason = str(e.reason)
        except http.client.HTTPException as e:
            reason = f"an answer that is not HTTP's ({type(e).__name__})"
        except OSError as e:
            if e.errno is not None and part.parent.exists() and not os.access(part.parent, os.W_OK):
                raise RunError(
                    f"cannot write to {path.parent}: {e.strerror}; choose another --data-dir"
                ) from e
            reason = str(e) or type(e).__name__
        else:
            found = digest_of(part, algorithm)
            if found.startswith(digest):
                os.replace(part, path)
                return ""
            reason = (
                f"expected {algorithm.upper()} {digest}, found {found}"
                if complete
                else "the connection broke off"
            )
            if complete:
                part.unlink()
    return reason


def _fetch_rest(url: str, part: Path) -> bool:
    """Append what is missing of `url` to `part`; whether the file is complete as far as the server said."""
    from tqdm import tqdm

    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "organ-infer-train"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        if start and answer.status != 206:  # the server sends the whole file again
            start = 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        name = part.name.removesuffix(".part")
        with (
            part.open("ab" if start else "wb") as file,
            tqdm(total=total, initial=start, unit="B", unit_scale=True, unit_divisor=1024, desc=name) as bar,
        ):
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
            return total is None or file.tell() >= total
