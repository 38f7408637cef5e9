"""Which document comes when: seeded orders and mixtures that cost no memory."""
