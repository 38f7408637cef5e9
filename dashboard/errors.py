"""Errors of the dashboard.

DashboardError
├── CollectorUnavailableError   no response, or an unexpected one; .url
├── SignInRequiredError         not signed in, or the collector rejects the token
├── MissingError                the requested object does not exist; .code
└── CollectorRefusedError       the collector rejects the request; .code .status
"""

from __future__ import annotations

from stabilizer.errors import StabilizerError


class DashboardError(StabilizerError):
    """Base class of errors shown on a page."""

    code = "dashboard_error"


class CollectorUnavailableError(DashboardError):
    """The collector does not respond, or its response is unexpected."""

    code = "collector_unavailable"

    def __init__(self, message: str, *, url: str) -> None:
        super().__init__(message)
        self.url = url


class SignInRequiredError(DashboardError):
    """Not signed in, session expired, or token rejected by the collector."""

    code = "sign_in_required"


class MissingError(DashboardError):
    """The run, command or series does not exist."""

    code = "missing"


class CollectorRefusedError(DashboardError):
    """The collector rejected the request; `code` is the collector's stable error code."""

    code = "refused"

    def __init__(self, message: str, *, code: str, status: int) -> None:
        super().__init__(message, code=code)
        self.status = status
