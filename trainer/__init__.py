"""The IDEFICS training job: model, data, configuration and faults, monitored by the agent."""
