"""A report as a page: one HTML file that needs no network, with both graphs."""

from bnfold.report.html.page import frame, page

__all__ = ["frame", "page"]
