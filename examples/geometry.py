"""Is the CV of a latent's 4-simplices learned? The same metric of points that nobody trained.

python examples/geometry.py
"""

import torch

from eigenscope.geometry import expected_cv, random_unit_points, volume_cv
from eigenscope.nn import PatchSVAE
from eigenscope.noise import NOISE_TYPES, draw_noise


def main() -> None:
    """Prints the closed form, random points and an untrained network beside each other."""
    torch.manual_seed(0)
    points, dim = 48, 4
    images = draw_noise(torch.arange(len(NOISE_TYPES)), seed=0, epoch=0, samples=torch.arange(16), image_size=32)
    with torch.no_grad():
        untrained = PatchSVAE(num_points=points, dim=dim, patch_size=4, hidden=64).encode(images).point_sets["M"]
    random = random_unit_points(64, points, dim)
    print(f"closed form, random points on the sphere of R^{dim}: CV {expected_cv(dim):.3f}")
    for name, matrices in (("drawn points", random), ("an untrained network", untrained.flatten(0, -3)[:64])):
        cv = volume_cv(matrices.double(), 500, torch.Generator().manual_seed(0)).cv
        print(f"{name}: CV {cv.mean():.3f}, deviation {cv.std():.3f} over {len(cv)} matrices")


if __name__ == "__main__":
    main()
