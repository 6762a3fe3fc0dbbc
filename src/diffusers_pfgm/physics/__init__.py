"""The physics of Poisson flow models, on tensors (B, *). It depends on torch alone, not on diffusers.

Symbols of the package. Data units are the units of the samples, such as pixel values in [-1, 1].

symbol   meaning                                                 unit                name in the code
-------  ------------------------------------------------------  ------------------  ----------------------------------
N        data dimension: number of elements of a sample          1                   `data_dim`, `dim`
D        augmented dimension; infinite for diffusion models      1                   `aug_dim` (None for ∞)
y        clean sample, or point charge                           data units          `clean`, `charges`
x        noisy sample                                            data units          `x`, `sample`
x̂        posterior mean E[y | x, σ] (denoised sample)            data units          `denoised`, `pred_original_sample`
σ        noise level, r/√D                                       data units          `sigma`, `sigma_min`, `sigma_max`
r        augmented radius, σ√D                                   data units          `r`
z        augmented coordinate of PFGM, equal to σ at D = 1       data units          `z`
λ        −log σ, the time variable of the solvers                1                   `lambdas`
t        timestep passed to a network, c_noise(σ)                1                   `timestep`, `c_noise`
F        output of a network                                     1, x̂: data units   `output`, `model_output`
ε        noise direction (x − x̂)/σ = dx/dσ                       1                   "epsilon"
s        noise level that a sample carries, σ √(D / χ²_D)         data units          `s`
ŝ        estimate of s from x and σ                              data units          `noise_level`, `estimate`
γ        softening length of the normalized field                data units          `gamma`
σ_d      standard deviation of the data                          data units          `sigma_data`
μ        mean of all numbers of the data                         data units          `data_mean`
√V       standard deviation of ‖y − μ‖²/N over the data          data units squared  `mean_square_std`
p, q, w  ‖F_x‖/√N, −F_z/√N, 1/(‖(x − x̂, z)‖ + γ) of a field      1, 1, 1/data units  `p_squared`, `q`, `w`
m, M     exponent of PFGM's perturbation, and its maximum        1                   `m`, `M`
τ        relative growth of that perturbation per unit of m      1                   `tau`
ρ        mean norm of the data                                   data units          `data_norm`
u, θ     direction x/‖x‖ of a latent, and its angle atan(‖x‖/r)  1, radians          `direction`, `angle`
NFE      number of network calls (function evaluations)          1                   `nfe`
"""

from .charges import Charges
from .class_charges import ClassCharges
from .field import ChargeField, normalized_field, posterior_mean
from .hemisphere import HemisphereLatents, hemisphere_points, interpolate, with_temperature
from .kernel import PoissonKernel
from .parameterization import Parameterization
from .perturbation import PFGMHyperparameters, perturb, recommend_hyperparameters

__all__ = [
    "ChargeField",
    "Charges",
    "ClassCharges",
    "HemisphereLatents",
    "PFGMHyperparameters",
    "Parameterization",
    "PoissonKernel",
    "hemisphere_points",
    "interpolate",
    "normalized_field",
    "perturb",
    "posterior_mean",
    "recommend_hyperparameters",
    "with_temperature",
]
