"""What collector and dashboard share as web servers: access checks, body limits, the process."""
