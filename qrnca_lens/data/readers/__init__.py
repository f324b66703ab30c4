"""Readers and writers of question files, and the paper's data sets. Touches no model."""
