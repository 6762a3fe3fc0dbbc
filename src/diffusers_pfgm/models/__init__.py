"""Networks: diffusers' U-Net by default, and DDPM++, NCSN++ and ADM, the published networks, with their parts."""
