"""What can go wrong between a page and the collector.

DashboardError
├── CollectorUnavailableError   no answer, or one that is not the collector's; .url
├── SignInRequiredError         nobody is signed in, or the collector refuses the token
├── MissingError                what was asked for does not exist (any more); .code
└── CollectorRefusedError                the collector says no; .code .status
"""

from __future__ import annotations

from stabilizer.errors import StabilizerError


class DashboardError(StabilizerError):
    """Base of the errors that a page shows."""

    code = "dashboard_error"


class CollectorUnavailableError(DashboardError):
    """The collector does not answer, or what answers is no collector."""

    code = "collector_unavailable"

    def __init__(self, message: str, *, url: str) -> None:
        super().__init__(message)
        self.url = url


class SignInRequiredError(DashboardError):
    """Nobody is signed in, the session has ended, or the collector does not take its token."""

    code = "sign_in_required"


class MissingError(DashboardError):
    """A run, command or series that does not exist, or does not any more."""

    code = "missing"


class CollectorRefusedError(DashboardError):
    """The collector refused; `code` is its own stable code."""

    code = "refused"

    def __init__(self, message: str, *, code: str, status: int) -> None:
        super().__init__(message, code=code)
        self.status = status
