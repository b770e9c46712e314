"""Where a run can run. A backend starts a worker, knows whether it is alive, and stops it."""
