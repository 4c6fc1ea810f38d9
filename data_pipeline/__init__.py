"""Raw files → kept documents → tokens → packed samples in shards → a mixed, resumable stream of batches.

Making shards (`trestle prepare`), in the order of the data's way:

    recipe.py              the recipe that prepare takes
    sources/               files → documents: local or behind URLs, web archives, HTML, JSON lines, parquet, tars, text
    stages/                what looks at one document at a time: extraction, language, quality rules, masking
    quality.py             the learned filter, curated against raw
    dedup/                 exact copies and near-duplicates, in bounded memory
    decontamination.py     cuts evaluation sets out
    heldout.py             which documents are held out, and that they do not occur in the training text
    tokenizer_training.py  trains SentencePiece
    packing.py             documents' tokens → samples of sequence_length + 1 tokens
    shards.py              writes a shard set: WebDataset tars, index, manifest; whole or not at all
    prepare/               runs all of it, on one core or a cluster, over any number of kills: start there
    report/                what became of the documents, as HTML pages
    documents.py           a document, and the tally of what was kept and dropped; document_file.py: many on disk

Reading them, in a rank:

    batching.py            durations, batch sizes, the ramp: which samples are batch b
    stream.py              Stream: batches of text: start there (validation_set.py: held-out sets)
    mixed_stream.py        what a stream of any samples is: mix, epochs, state, fingerprint
    stream_state.py        exceptions and fingerprints: skips, changes of the data (eras.py), damage (substitution.py)
    mixing.py              which corpus sample g comes from, over a curriculum
    shuffling.py           and which sample of it, in one of two shuffles (permutation.py)
    shard_reader.py        one corpus's samples by position, CRC-checked, in a folder (shard_members.py) or behind a
                           URL (shard_store.py, remote_members.py, retrying.py; locations.py: which URLs are read)
    shard_cache.py         a node's copies of remote shards, shared by its ranks
    prefetch.py            reads ahead in a thread
    tokenizer.py           text ↔ tokens, lossless
    document_masks.py      which document of a packed sample each token is of
    baseline.py            the cross-entropy of token frequencies, to compare a model with

Pictures with captions have their own shards, stream and preparation, on the same machinery: pairs/.

errors.py names what can go wrong. Nothing here knows models, optimizers or layouts beyond "slice i of n".
"""
