"""Places where a run can run. Each starts a worker, says whether it lives, and stops it."""
