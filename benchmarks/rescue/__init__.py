"""The closed loop: faults of the laboratory against us and against what is used today, live."""
