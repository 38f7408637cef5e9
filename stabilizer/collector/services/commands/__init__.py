"""Commands: lifecycle, targets, previews, and delivery to jobs."""
