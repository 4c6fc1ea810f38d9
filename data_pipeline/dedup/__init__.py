"""Documents in parts → which of them are copies or near-copies of one of higher priority.

In the order of the data's way:

    config.py      what counts as a near-duplicate, and how much memory may be used
    find.py        runs the phases below as tasks; `find_duplicates` is all that others need
    shingles.py    text → normalised text → words → hashes of runs of five words
    minhash.py     shingles → signature → one key a band
    exact.py       equal normalised texts
    candidates.py  pairs with an equal key in some band
    verify.py      their exact Jaccard similarity
    clusters.py    verified pairs → clusters → who is dropped, and for whom

Documents are named by ids: numbers over all parts, in the order of the parts. The smaller id has the higher priority.
"""
