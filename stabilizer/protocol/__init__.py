"""The contract that job, collector and dashboard share: pydantic models and the frame codec."""
