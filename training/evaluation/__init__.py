"""What a two-tower model of pictures and texts has learnt, measured on its features alone.

Open
- `config` for the recipe's `evaluation:` section;
- `suite` for what runs all of it, `encode` for features of held-out pairs on any number of ranks;
- `zero_shot`, `retrieval`, `probe` and `neighbours` for the scores, as functions of feature matrices;
- `similarity` for the tiles that they work in and for what counts as a tie;
- `pictures`, `drawing` and `examples` for what TensorBoard shows of them.
"""
