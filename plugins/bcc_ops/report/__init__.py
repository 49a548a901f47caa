"""What people see of a run: metrics and one page, rendered from its documents and nothing else."""
