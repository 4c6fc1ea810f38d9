"""The `trestle` command and the recipes that ship; puts the other four rooms together.

Open
- `cli` for the list of commands, and how an exception becomes one line and an exit code;
- `prepare`, `train`, `resume`, `generate`, `evaluate` (`evaluate_pairs`), `export`, `import_model`, `inspect` for one
  command each: its arguments, its help, what it does;
- `profile` (`profile_shown`) for where the time of a run's steps goes;
- `submit`, `jobs`, `logs` and `stop` for a cluster that is not this machine: `head` for how it is reached, `checkout`
  for the code that goes there, `in_job` for what runs there, `tunnel` for watching it from here;
- `demo` and `demo_clip` for the demos, `digits` for the pictures of the second;
- `sources` for where a recipe comes from (a path, a shipped name), `job` for a recipe with its cluster;
- `run_folder` for what lies in a run's folder and who may write there;
- `plan/` for what a training takes, by formula: memory, time, cost, and the fastest layout;
- `placement` for where ranks will be, what they hold and send, `dry_run` for showing it;
- `supervise` for what is checked before ranks start, for starting them, and for the closing words;
- `changes` for what a resume may change;
- `one_process` for a run's model without a cluster, `huggingface_tokenizer` for its tokenizer as others read it;
- `arguments` for overrides beside a command's own options, `tables` for how figures are laid out,
  `explain` for what each key means;
- `recipes/` for the recipes.

Commands are imported when they are called, and torch, Ray and DeepSpeed only by the commands that need them.
"""
