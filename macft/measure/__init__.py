"""Scores for answers, and the tables that show them."""
