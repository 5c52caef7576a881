#!/bin/sh
# scipy.special.betaincinv, of which Clopper-Pearson's interval of a proportion is made, at one particular count.
#
# SciPy 1.17.1, NumPy 2.4.0.
#
# With a large b, a = 1000 to the bit gives nine digits where its neighbours 999, 1001 and the very next number after 1000
# give fifteen: the inverse, put back into betainc, should be the 0.025 that was asked for. So the interval of 1000
# events in 100 million is less exact than that of 999 or 1001. Whoever wants all digits asks for nextafter(1000).
#
# Seen: with b = 1e8 a relative error of 1.6e-7 in the tail at a = 1000, and below 1e-13 at 999, 1001 and nextafter(1000).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install --quiet numpy==2.4.0 scipy==1.17.1
"$folder/v/bin/python" - <<'PY'
import numpy as np
from scipy.special import betainc, betaincinv

errors = {}
for a in (999.0, 1000.0, 1001.0, float(np.nextafter(1000, 2000))):
    errors[a] = float(abs(betainc(a, 1e8, betaincinv(a, 1e8, 0.025)) / 0.025 - 1))
    print(f"a = {a!r}: tail off by {errors[a]:.1e}")
assert errors.pop(1000.0) > 1e-8 and max(errors.values()) < 1e-12
PY
