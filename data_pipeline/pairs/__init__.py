"""Pictures with captions: shards of pairs → a mixed, resumable stream of batches (images, tokens).

Reading them, in a rank:

    stream.py       PairStream: start there; what replaces an undecodable picture (validation.py: held-out pairs)
    reader.py       PairSet: one corpus's pairs by position, CRC-checked, in a folder or behind a URL
    tokenizers.py   captions → tokens, with SentencePiece or CLIP's own byte pairs
    pictures.py     a file → the square that a model sees: decode.py (JPEG, PNG, WebP → pixels, bounded) and augment.py
                    (crops, flips and colours: a pure function of seed and sample number)
    decoding.py     the threads that decode

Making them (`trestle prepare`):

    recipe.py       what it takes
    prepare/        shard sets of folders, lists and existing tars
    report/         pages that show what was kept and dropped, and why
    shards.py       writes one: WebDataset tars, index, manifest
"""
