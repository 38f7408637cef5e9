"""From alerts to decisions: incidents, the ladder, guards, the watch after an action."""
