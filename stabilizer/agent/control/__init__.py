"""What the job does with a command: inbox, agreement, snapshots, rewinding, overrides."""
