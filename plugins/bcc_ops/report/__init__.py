"""What people see of a run: figures and one page, rendered from its documents and nothing else."""
