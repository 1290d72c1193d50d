"""The error that a request gets as its answer."""

__all__ = ["RETRY_SECONDS", "RequestError"]

# Value of Retry-After: by then the requests in progress have been answered.
RETRY_SECONDS = 1


class RequestError(Exception):
    """A request cannot be answered.

    Attributes:
        status: The HTTP status. 503 gets the header Retry-After.
    """

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status
