#!/bin/sh
# The noise of a VAE in JAX that samples in half precision.
#
# JAX 0.10.2, NumPy 2.4.0, torch 2.13.0; CPU.
#
# jax.random.normal(key, mean.shape, mean.dtype), as every reparameterisation in JAX has it, draws its uniform numbers in
# that dtype and takes the inverse error function of them. bfloat16 has 7 bits of fraction, so the normal numbers are 128
# different ones, the least -2.89 and the largest 2.52: |z| > 3 never comes, where 2.7 in a thousand are due. Nor are
# they symmetric: their mean is -0.0113, that is 25 standard errors of 5 million away from zero, and a shift of every
# sample by a hundredth of its σ. float16 has 1024 values from -3.49 to 3.18. It is no rounding of float32: that, and
# torch.randn in bfloat16, have over 4000 values, to ±5. So draw in float32 and cast.
#
# Seen, 5 million each: bfloat16 128 values in [-2.89, 2.52], mean -0.0113, none beyond 3; float16 1024 in [-3.49, 3.18];
# float32 rounded to bfloat16, and torch, over 4000 values, beyond 3 in 0.0027 of all.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet numpy==2.4.0 jax==0.10.2 jaxlib==0.10.2 torch==2.13.0
"$folder/v/bin/python" -W ignore - <<'PY'
import jax
import jax.numpy as jnp
import numpy as np
import torch

count, key = 5_000_000, jax.random.key(0)
drawn = {
    "jax bfloat16": jax.random.normal(key, (count,), jnp.bfloat16),
    "jax float16": jax.random.normal(key, (count,), jnp.float16),
    "jax float32, rounded to bfloat16": jax.random.normal(key, (count,)).astype(jnp.bfloat16),
    "torch bfloat16": torch.randn(count, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0)).float(),
}
seen = {}
for name, values in drawn.items():
    z = np.asarray(values).astype(np.float64)
    seen[name] = (len(np.unique(z)), z.min(), z.max(), z.mean(), (np.abs(z) > 3).mean())
    print("{}: {} values from {:.3f} to {:.3f}, mean {:.5f}, beyond 3: {:.5f}".format(name, *seen[name]))
values, least, largest, mean, beyond = seen["jax bfloat16"]
assert values == 128 and -2.9 < least < -2.88 and 2.5 < largest < 2.53 and mean < -0.01 and beyond == 0
values, least, largest, _, _ = seen["jax float16"]
assert values == 1024 and -3.5 < least < -3.48 and 3.17 < largest < 3.19
for name in ("jax float32, rounded to bfloat16", "torch bfloat16"):
    values, _, _, mean, beyond = seen[name]
    assert values > 4000 and abs(mean) < 0.002 and 0.0026 < beyond < 0.0028
PY
