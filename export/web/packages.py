"""The npm packages of the page: one version each, downloaded once by npm and verified by its SHA-512."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from export.web.errors import WebError

TABLE = Path(__file__).with_name("packages.json")
# All packages have this license. Not all contain its text.
MIT = """\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation
files (the "Software"), to deal in the Software without restriction, including without limitation the rights to use, copy,
modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the
Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE,
ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


@dataclass(frozen=True)
class Package:
    """One npm package.

    Attributes:
        name: Its name on npm.
        version: The version that was tried.
        integrity: `sha512-` and the base64 of the SHA-512 of its archive.
        files: The files that the page needs, from the path in the package to the name in the page's directory.
        copyright: The notice of its license.
        source: Where its source is.
    """

    name: str
    version: str
    integrity: str
    files: Mapping[str, str]
    copyright: str
    source: str

    @property
    def archive(self) -> str:
        """The name of its archive, as `npm pack` names it."""
        return f"{self.name}-{self.version}.tgz"


def packages() -> list[Package]:
    """Return the packages of the page."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    return [Package(name, **values) for name, values in table.items()]


def third_party_files(directory: Path | None) -> dict[str, bytes]:
    """Return the files of all packages, and their notices.

    Args:
        directory: Where the archives are, or are downloaded to. None: download them again.

    Raises:
        WebError: An archive is missing and cannot be downloaded, or is not the expected one.
        OSError: The directory cannot be read or written.
    """
    if directory is None:
        with tempfile.TemporaryDirectory() as temporary:
            return third_party_files(Path(temporary))
    files: dict[str, bytes] = {}
    for package in packages():
        content = _archive(package, directory)
        files |= _members(package, content, directory / package.archive)
    return {**files, "NOTICE.txt": _notices().encode()}


def _archive(package: Package, directory: Path) -> bytes:
    """Return a package's archive from the directory. If it is not there, npm downloads it."""
    path = directory / package.archive
    if not path.exists():
        _download(package, path)
    content = path.read_bytes()
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
    if package.integrity != f"sha512-{digest}":
        raise WebError(
            f"{path}: its SHA-512 is not that of {package.name} {package.version}; delete the file and rerun the command"
        )
    return content


def _download(package: Package, path: Path) -> None:
    """Download a package's archive with npm."""
    npm = shutil.which("npm")
    if npm is None:
        raise WebError(
            f"npm: not found, and {path} is missing; install Node.js, or name a directory with that file with --packages"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        # The path is absolute, because npm runs in that directory, where no .npmrc of a project is.
        target = str(Path(temporary).absolute())
        command = [
            npm,
            "pack",
            "--ignore-scripts",
            "--loglevel=error",
            "--pack-destination",
            target,
        ]
        done = subprocess.run(
            [*command, f"{package.name}@{package.version}"],
            cwd=temporary,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
        packed = Path(temporary) / package.archive
        if done.returncode or not packed.is_file():
            raise WebError(
                f"npm: cannot download {package.name} {package.version} ({_reason(done.stderr)}); check the network, or"
                f" name a directory with {package.archive} with --packages"
            )
        os.replace(packed, path)


def _reason(stderr: str) -> str:
    """Return the first lines of npm's messages as one."""
    lines = [line.removeprefix("npm error").strip() for line in stderr.splitlines()]
    return "; ".join([line for line in lines if line][:2])[:200] or "no message"


def _members(package: Package, content: bytes, path: Path) -> dict[str, bytes]:
    """Return the files of a package that the page needs."""
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        for name, target in package.files.items():
            member = archive.extractfile(f"package/{name}")
            if member is None:
                raise WebError(
                    f"{path}: has no file {name}; choose another version of {package.name}"
                )
            files[target] = member.read()
    return files


def _notices() -> str:
    """Return the copyright notices and the license of all packages."""
    parts = [
        f"{package.name} {package.version}, MIT License\n{package.copyright}\n{package.source}\n"
        for package in packages()
    ]
    return "\n".join([*parts, MIT])
