"""Entry point, worker, run folder, trainer, sweeps and reports."""
