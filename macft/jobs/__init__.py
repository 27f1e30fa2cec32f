"""Fusing and exporting: jobs with a run folder of their own."""
