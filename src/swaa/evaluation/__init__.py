"""Evaluation: tasks, engines, a judge, and runs that resume."""
