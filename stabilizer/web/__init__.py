"""Web server code of collector and dashboard: access checks, body limits, the process."""
