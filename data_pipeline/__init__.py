"""Raw files → kept documents → tokens → packed samples in shards → a mixed, resumable stream of batches.

Making shards (`trestle prepare`), in the order of the data's way:

    config.py              the recipe's `data:` section, and the recipe that prepare takes
    readers.py             files → documents: text, JSON lines, parquet, compressed or not
    cleaning.py            stages: cleaning, exact deduplication, and which documents are held out
    heldout.py             drops held-out text that occurs in the training text
    tokenizer_training.py  trains SentencePiece
    packing.py             documents' tokens → samples of sequence_length + 1 tokens
    shards.py              writes a shard set: WebDataset tars, index, manifest; whole or not at all
    prepare.py             runs all of it (spool.py keeps documents on disk between the stages,
                           workspace.py keeps half-written work apart)

Reading them, in a rank:

    batching.py            durations, batch sizes, the ramp: which samples are batch b
    mixing.py              which corpus sample g comes from (permutation.py: and which sample of it)
    shard_reader.py        one corpus's samples by position, CRC-checked
    stream.py              Stream, ValidationSet: batches, epochs, state, fingerprint
    prefetch.py            reads ahead in a thread
    tokenizer.py           text ↔ tokens, lossless
    baseline.py            the cross-entropy of token frequencies, to compare a model with

errors.py names what can go wrong. Nothing here knows models, optimizers or layouts beyond "slice i of n".
"""
