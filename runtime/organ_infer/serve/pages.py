"""Static pages at `/`: the files of one directory."""

import os
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

__all__ = ["Pages"]

# The content types of pages. Python's own table depends on the system's files and on Python's version.
CONTENT_TYPES = {
    ".css": "text/css",
    ".gif": "image/gif",
    ".html": "text/html",
    ".ico": "image/vnd.microsoft.icon",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".js": "text/javascript",
    ".json": "application/json",
    ".map": "application/json",
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
}
OTHER = "application/octet-stream"


class Pages(StaticFiles):
    """The files of a directory, with the content types of CONTENT_TYPES.

    Links that lead out of the directory are not followed, and hidden files are not served.
    """

    def __init__(self, directory: str) -> None:
        super().__init__(directory=directory, html=True)

    async def get_response(self, path: str, scope: Any) -> Response:
        """Return a file, or the index.html of a directory."""
        if any(part.startswith(".") and part != "." for part in path.split(os.sep)):
            raise HTTPException(404)
        try:
            return await super().get_response(path, scope)
        except HTTPException as e:
            # 401: the file cannot be read. A client can do nothing about it.
            raise HTTPException(404) if e.status_code == 401 else e from None
        except (OSError, ValueError):
            # For example a circle of links, or a NUL in the path.
            raise HTTPException(404) from None

    def file_response(self, full_path: Any, *args: Any, **options: Any) -> Response:
        """Return a file with its content type."""
        response = super().file_response(full_path, *args, **options)
        if "content-type" in response.headers:
            suffix = os.path.splitext(os.fspath(full_path))[1].lower()
            kind = CONTENT_TYPES.get(suffix, OTHER)
            text = kind.startswith("text/") or kind.endswith(("json", "xml"))
            response.headers["content-type"] = f"{kind}; charset=utf-8" if text else kind
        # Browsers ask again whether a file has changed, because its name stays the same.
        response.headers["cache-control"] = "no-cache"
        return response
