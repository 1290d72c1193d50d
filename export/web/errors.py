"""The error of the page's command."""


class WebError(Exception):
    """A page that cannot be written. The message is one line."""
