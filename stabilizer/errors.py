"""Errors of all packages.

StabilizerError(message, code)
├── ConfigurationError          an invalid setting, option or file; exit status 2
│   └── RuleDefinitionError     .file .line .field; raised together in a RuleFileError group
├── InvalidInputError           an invalid request or batch; .field .value .allowed
├── ProtocolVersionError        the protocol version of the other side is not supported
├── NotFoundError               run, incident, command or series that does not exist
├── ConflictError               the current state forbids it, e.g. the command is settled
├── AuthenticationError         the token is missing or unknown
├── StorageError                the database failed or does not respond
├── TelemetryError              never leaves the sender thread
└── ControlError                a command could not be applied
    ├── CommandRejectedError    rejected before anything was changed; .reason
    └── RestoreError            state may be half restored: the job must stop

`code` is stable and machine-readable. Only collector/api maps errors to HTTP statuses: the agent
uses these errors too.
"""

from __future__ import annotations


class StabilizerError(Exception):
    """Base of all errors of this project."""

    code = "internal_error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class ConfigurationError(StabilizerError):
    """A setting or file is invalid. The message names the field, its value and what is allowed."""

    code = "invalid_configuration"


class RuleDefinitionError(ConfigurationError):
    """One error in a rule file, with its line (from 1) and dotted field."""

    code = "invalid_rule"

    def __init__(self, message: str, *, file: str, line: int, field: str) -> None:
        super().__init__(f"{file}:{line}: {field}: {message}")
        self.reason = message
        self.file = file
        self.line = line
        self.field = field


class RuleFileError(ExceptionGroup[RuleDefinitionError]):
    """All errors of a rule file."""


class InvalidInputError(StabilizerError):
    """Invalid input. Nothing of it has been stored."""

    code = "invalid_input"

    def __init__(
        self,
        message: str,
        *,
        field: str,
        value: object = None,
        allowed: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.field = field
        self.value = value
        self.allowed = allowed


class ProtocolVersionError(StabilizerError):
    """The protocol version of the other side is not supported."""

    code = "protocol_version_unsupported"


class NotFoundError(StabilizerError):
    """The requested object does not exist."""

    code = "not_found"


class ConflictError(StabilizerError):
    """The current state forbids the request; `code` names the reason."""

    code = "conflict"


class AuthenticationError(StabilizerError):
    """The token is missing or unknown."""

    code = "unauthenticated"


class StorageError(StabilizerError):
    """The database failed or does not respond."""

    code = "storage_unavailable"


class TelemetryError(StabilizerError):
    """A report could not be delivered. Handled in the sender thread; never reaches the training."""

    code = "telemetry_failed"


class ControlError(StabilizerError):
    """A command could not be applied."""

    code = "control_failed"


class CommandRejectedError(ControlError):
    """Rejected before the job was changed; `reason` is a `RejectReason` value."""

    code = "command_rejected"

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class RestoreError(ControlError):
    """A restore failed half way. The job must stop: it never trains on half-restored state."""

    code = "restore_failed"
