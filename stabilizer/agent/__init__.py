"""Inside the training job: measures, reports, obeys."""
