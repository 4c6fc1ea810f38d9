"""Stages that look at one document at a time: documents in, kept documents out, a reason for each that is dropped.

    extraction.py     from an HTML page to the text of its main content
    cleaning.py       Unicode, line ends, white space
    language.py       which language a text is in, and whether it is kept
    gopher.py         quality rules of Rae et al. 2021
    repetition.py     repetition rules of the same paper
    c4.py             rules of Raffel et al. 2020
    personal_data.py  masks addresses and numbers of people

Each holds the configuration of its stage and a factory that makes the stage of it. words.py finds a document's words
and lines, once for all filters.
"""
