"""Contrastive losses over the pairs of all ranks, in tiles: exact, with gradients, in memory that N^2 is no part of.

Open
- `softmax` for CLIP's loss and NT-Xent; `sigmoid` for SigLIP's;
- `coupled` for what they return, `autograd` to differentiate through them;
- `pool` for what is communicated, `tiles` for the memory and the precision, `inputs` for what is taken.
"""

from modeling.contrastive.autograd import contrastive
from modeling.contrastive.coupled import Coupled
from modeling.contrastive.sigmoid import sigmoid_loss
from modeling.contrastive.softmax import clip_loss, nt_xent_loss

__all__ = ["Coupled", "clip_loss", "contrastive", "nt_xent_loss", "sigmoid_loss"]
