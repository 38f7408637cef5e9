"""What pages draw: reduced to as much as they can show."""
