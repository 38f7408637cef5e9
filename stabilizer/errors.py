"""Errors of all rooms.

StabilizerError(message, code)
├── ConfigurationError          what a person wrote cannot be used; exit status 2
│   └── RuleDefinitionError     .file .line .field; raised together in a RuleFileError group
├── InvalidInputError           a request or a batch that means nothing; .field .value .allowed
├── ProtocolVersionError        a job speaks a version that this side does not
├── NotFoundError               run, incident, command or series that does not exist
├── ConflictError               the state forbids it: settled command, past attempt, other catalog
├── AuthenticationError         no token, or one that is not ours
├── StorageError                the database did not take or give what was asked
├── TelemetryError              never leaves the sender thread
└── ControlError                a command could not be carried out
    ├── CommandRejectedError    refused before anything was touched; .reason
    └── RestoreError            state may be half restored: the job must stop

`code` is stable and machine-readable; HTTP statuses are given in collector/api only, since these
errors also travel to training jobs, where a status means nothing.
"""

from __future__ import annotations


class StabilizerError(Exception):
    """Base of all errors of this project; catch it to catch them all."""

    code = "internal_error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class ConfigurationError(StabilizerError):
    """A setting or file cannot be used. The message names field, value and what is allowed."""

    code = "invalid_configuration"


class RuleDefinitionError(ConfigurationError):
    """One mistake in a rule file, at a line (from 1) and a dotted field."""

    code = "invalid_rule"

    def __init__(self, message: str, *, file: str, line: int, field: str) -> None:
        super().__init__(f"{file}:{line}: {field}: {message}")
        self.reason = message
        self.file = file
        self.line = line
        self.field = field


class RuleFileError(ExceptionGroup[RuleDefinitionError]):
    """Every mistake of a rule file at once."""


class InvalidInputError(StabilizerError):
    """Input that means nothing. Nothing of it has been stored."""

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
    """The other side speaks a protocol version that this side does not."""

    code = "protocol_version_unsupported"


class NotFoundError(StabilizerError):
    """What was asked for does not exist."""

    code = "not_found"


class ConflictError(StabilizerError):
    """The present state forbids what was asked for; `code` says which state."""

    code = "conflict"


class AuthenticationError(StabilizerError):
    """No token was given, or one that this collector does not know."""

    code = "unauthenticated"


class StorageError(StabilizerError):
    """The database did not take or give what was asked."""

    code = "storage_unavailable"


class TelemetryError(StabilizerError):
    """A report could not be delivered. Handled inside the sender thread, never seen by training."""

    code = "telemetry_failed"


class ControlError(StabilizerError):
    """A command could not be carried out."""

    code = "control_failed"


class CommandRejectedError(ControlError):
    """Refused before anything of the job was touched; `reason` is a `RejectReason` value."""

    code = "command_rejected"

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class RestoreError(ControlError):
    """A restore broke off half way. The job must stop: it never trains on half-restored state."""

    code = "restore_failed"
