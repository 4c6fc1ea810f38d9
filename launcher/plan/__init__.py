"""`trestle plan`: what a recipe on so many accelerators comes to, before anybody pays. By formula, without torch.

Open
- `estimate` for the whole of it; `hardware` for what is known of accelerators;
- `efficiency` for how much of a peak is reached, and from which measurements that is known;
- `compute` for the time of a stage, `links` for communication, `times` for the step;
- `published` for how well all this agrees with what others have reported.
"""
