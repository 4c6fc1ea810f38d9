"""One rank's life: engine, optimizer and schedule, loop, checkpoints, metrics, validation. Knows nothing of Ray or
nodes.

Open
- `worker` for a rank from start to exit code, `process` for what it takes from its environment,
  `stacks` for what it says of itself while it hangs;
- `trainer` for the loop, `position` for what it counts, `batches` for its data;
- `inputs/` for what differs between text and image-text pairs: stream, micro-batches, looks. `validation` and `samples`
  look at text, `pair_validation` and `evaluation/` at pairs: held-out loss, retrieval, zero-shot, probes, pictures;
- `engine/` for one optimizer step on any layout: the plain fp32 reference, and DeepSpeed ZeRO; `engine/coupled` is the
  gradient cache of contrastive losses;
- `shared_folder` for the refusal of a run's folder that not all nodes see;
- `footprint` for what ZeRO makes of a rank's parameters, `engine_memory` for what DeepSpeed copies beside them, and
  `memory` for all that a rank's memory is filled with: by formula;
- `profiling` for a few steps under torch's profiler, `trace` for what its traces say;
- `saving` for what a checkpoint holds and which one a run continues from, `checkpoint/` for how it is stored;
- `recipe` for the typed recipe and its refusals (`config` has the sections of this room, `sections` and `overrides`
  parse);
- `schedule` for the learning rate, `metrics/` for figures, events and the console line, `figures` for what is reduced
  over ranks.
"""
