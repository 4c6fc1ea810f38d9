"""What became of the pairs, as HTML pages that stand alone: no script, and nothing loaded from anywhere.

    page.py   the two pages: the mix's, and one for each corpus; start here
    sheet.py  contact sheets: pictures with captions and why they were dropped
    parts.py  funnel, histograms, the table of the mix

Elements, numbers, charts and colours are those of data_pipeline.report. Captions and sources are shown, never obeyed.
Thumbnails stand in the page as data: URIs. Equal data gives equal bytes.
"""

from data_pipeline.pairs.report.page import render_corpus, render_mix

__all__ = ["render_corpus", "render_mix"]
