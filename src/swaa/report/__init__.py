"""``swaa report``: one self-contained page for a folder of results."""

from swaa.report.page import Report, write_report

__all__ = ["Report", "write_report"]
