"""The commands that would reproduce the published figures of CIFAR-10 on a GPU, as text for the page."""

from __future__ import annotations

# The preset is the deeper network: the authors' README states FID 2.48 for the other one, `--config cifar10`.
COMMANDS = """python training/convert_checkpoint.py --checkpoint checkpoint.pth --config cifar10_deep \\
  --output_dir pfgm-cifar10
python -m accelerate.commands.launch training/evaluate_pfgm.py --model pfgm-cifar10 --reference cifar10-train.parquet \\
  --features inception --num_images 50000 --batch_size 500 --tolerance 1e-4 --output_dir pfgm-cifar10-evaluation
"""

SECTION = f"""
## CIFAR-10 on a GPU

These commands would reproduce the FID of 2.35 and the inception score of 9.68 of PFGM. They have **not been run**: the
authors' weights and a GPU were not available. `checkpoint.pth` is the authors' checkpoint of `cifar10_ddpmpp_deep`, and
`cifar10-train.parquet` has the 50,000 training images. A test runs the same commands with a tiny checkpoint in the
authors' format and another feature network.

```bash
{COMMANDS}```

| figure of CIFAR-10 | `cifar10_ddpmpp_deep` | `cifar10_ddpmpp` | source |
|---|---|---|---|
| FID | 2.35 | 2.48 | published, not run here |
| inception score | 9.68 | 9.65 | published, not run here |
| network calls of RK45 | about 110 | about 104 | published, not run here |

For the second column replace `cifar10_deep` by `cifar10`. The presets have the published options of sampling: σ = z
from 40 to 1e-3, norms of the prior up to 3,000, and γ = 5. `--tolerance 1e-4` is the authors' tolerance of RK45. Our
adaptive solver measures its error in other units, so its number of calls, `nfe` in `metrics.json`, may differ from the
published one.
"""
