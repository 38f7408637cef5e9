"""The IDEFICS training job: model, data, configuration and faults; the agent's first user."""
