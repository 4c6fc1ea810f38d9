"""What became of the documents, as HTML pages that stand alone: no script, and nothing loaded from anywhere.

    page.py        the two pages: the mix's, and one for each corpus; start here
    sections.py    mix, corpora, quality filter, time
    funnel.py      documents and bytes through the stages
    excerpts.py    why documents were dropped, with excerpts
    histograms.py  lengths, languages, scores, sizes of clusters
    duplicates.py  near-duplicates side by side, with the words that differ marked
    charts.py      pictures as SVG: histogram, ROC curve, the mix
    tables.py      tables, with bars in them where they help
    numbers.py     how counts, bytes, shares and durations are written
    markup.py      elements, and documents' text made harmless
    document.py    a page in one file, and its head
    style.py       the style sheet, for light and dark

All text is escaped where elements are made, unless it is marked as `Html`. Equal data gives equal bytes.
"""

from data_pipeline.report.page import render_corpus, render_mix

__all__ = ["render_corpus", "render_mix"]
