"""Quality of images: PSNR, SSIM and GMSD between two images, fidelity of a bundle, fidelity to a prompt.

May import `measure`. Start at `image_metrics.py`.
"""
