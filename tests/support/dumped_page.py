"""Pages in a headless browser, as a reader sees them after their script has run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from support.chromium import find_chromium

BROWSER = find_chromium()


def opened(path: Path, profile: Path) -> tuple[str, str]:
    """Open a page, and return it as HTML after its load event, and what the browser logs."""
    assert BROWSER is not None
    done = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
            *(f"--user-data-dir={profile}", "--timeout=60000", "--dump-dom", path.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def with_script(page: str, script: str) -> str:
    """Return a page without its policy that runs another script at its end."""
    page, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    assert count == 1
    return page.replace("</body>", f"<script>{script}</script></body>")
