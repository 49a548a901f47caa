"""Links from a task's page in the UI."""
