"""What a person reads: the run's log, its progress, its pictures."""
