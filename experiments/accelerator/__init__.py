"""What `experiments.gpu` measures: one piece per file, each `measure(report, job)`."""
