"""Pictures with captions: shards of pairs → a mixed, resumable stream of batches (images, tokens).

shards.py       writes a shard set of pairs: WebDataset tars, index, manifest
reader.py       PairSet: one corpus's pairs by position, CRC-checked, in a folder or behind a URL
tokenizers.py   captions → tokens, with SentencePiece or CLIP's own byte pairs
decode.py       JPEG, PNG, WebP, … → pixels, bounded
augment.py      crops, flips and colours: a pure function of (seed, sample number)
decoding.py     a batch's pictures in threads; what replaces an undecodable one
stream.py       PairStream: start there
validation.py   held-out pairs, without augmentation
prepare/        makes shard sets of folders, lists and existing tars
"""
