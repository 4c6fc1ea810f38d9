"""Files → documents, in a fixed order; what cannot be read is counted and named, never passed over in silence.

    files.py          what a recipe's sources name: local folders and globs, URLs
    remote.py         files behind URLs, by fsspec: transient errors are retried, at the byte where they struck
    decompression.py  a file's bytes, decompressed piece by piece; finds where compressed data break off
    read.py           which reader a file gets, and what becomes of a damaged one

The readers, each from bytes to documents:

    text.py           text and HTML files, a document each; UTF-8 or the encoding of a web page
    json_lines.py     a document a line
    parquet.py        a document a row
    warc.py           web archives: a document for each page that a server sent
    web_tars.py       WebDataset tars: a document a sample
"""

from data_pipeline.sources.files import SourceFile, find_files, open_source
from data_pipeline.sources.read import read_documents

__all__ = ["SourceFile", "find_files", "open_source", "read_documents"]
