"""Accuracy tables: programs that know the truth, kept out of the student's product path."""
