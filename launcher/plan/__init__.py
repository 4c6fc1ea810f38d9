"""`trestle plan`: what a recipe on so many accelerators comes to, before anybody pays. By formula, without torch.

Open
- `command` for `trestle plan`: its arguments, the job on the hardware asked for, where the answer goes;
- `estimate` for the whole of it, `figures` for what it consists of, `data` for epochs;
- `hardware` for what is known of accelerators;
- `efficiency` for how much of a peak is reached, and from which measurements that is known;
- `stages` and `compute` for the time of a stage, `links` for communication, `habits` for what overlaps, `times` for the
  step;
- `search` for all legal layouts and the fastest of them: `candidates` enumerates, `reasons` says why one loses, `mend`
  what would make one fit;
- `schedule` for what a stage does when, as the schedules that run order it;
- `show` for a terminal, `page` for HTML: `facts` has the lines of both, `terms` the names, `bars`, `timeline` and
  `layouts` the pictures and the table, `colours` the style;
- `published` for how well all this agrees with what others have reported.
"""
