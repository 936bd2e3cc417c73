"""The report of an experiment: one self-contained page, and a table for the terminal."""

from __future__ import annotations

from fedfair.report._budget_page import write_budget
from fedfair.report._html import comparison_table, write_report

__all__ = ["comparison_table", "write_budget", "write_report"]
