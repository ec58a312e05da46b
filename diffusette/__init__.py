"""Diffusette: Stable Diffusion, small enough to ship."""
