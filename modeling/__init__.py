"""Models, their objectives, their parallel layout and their FLOP counts. Knows torch and megatron-core, nothing else.

Open
- `registry` for the list of families and what the training loop asks of one;
- `gpt/` for the decoder: `config` (its shape), `network` (the model over Megatron Core, and each parameter's global
  place), `objective` (batch → loss), `flops`, `presets` (GPT-3's eight models and a Llama-like one), `huggingface`
  (weights to and from transformers), `generation` (sampling with a key-value cache);
- `clip/` for the two towers of CLIP: `config`, `network` (`vision`, `text`, `blocks`, a ResNet-50), `objective`
  (features, and the loss over a whole batch of them), `flops`, `presets`, weights to and from transformers and
  open_clip;
- `contrastive/` for InfoNCE, NT-Xent and SigLIP's loss over the pairs of all ranks, in tiles; `coupling` for what a
  family offers whose loss couples a batch;
- `footprint` for the parameters that a rank holds and what it hands over, `work` for what it computes, `memory` and
  `layer_memory` for what autograd keeps of a micro-batch: by formula;
- `layout` for the parallel axes, a rank's place in them and their checks, `groups` for the process groups and this
  rank's coordinates, `execution` for precision, recomputation and compilation;
- `sharding` and `initialization` for what a rank's parameter is a part of, and its initial values by name;
- `transformer` for layers in Megatron Core's terms, `attention` (`blockwise_attention`, `document_masks`), `norms`,
  `linear`, `gelu`, `cross_entropy` for their parts;
- `megatron_bridge` for what Megatron Core takes for granted and does not hold on a CPU, `gloo` for one thread for the
  sockets of all groups.
"""
