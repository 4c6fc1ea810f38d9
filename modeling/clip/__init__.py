"""CLIP (Radford et al. 2021): an image and a text tower with one embedding space."""
