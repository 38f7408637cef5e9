"""What the rules make of the frames, kept in step with the database."""
