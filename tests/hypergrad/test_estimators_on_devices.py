"""One device = four devices, through `pmap`, for every estimator. Its own process: device count."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import jax, numpy as np
import test_estimators as t

jax.config.update("jax_enable_x64", True)
assert jax.device_count() == 4
for name, estimator in t.ESTIMATORS.items():
    s = t.setting(t.OPTIMIZER_OF.get(name, "heavy_ball"))
    batches = s.batches[: estimator.batches], s.outer_batch
    problem = t.problem_of(name)
    carry = estimator.init(problem, s.state, s.hyper)
    one = jax.jit(lambda b: estimator(problem, s.state, s.hyper, *b, carry))(batches)
    shards = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), batches)
    local = problem._replace(axis_name="d")
    four = jax.pmap(
        lambda state, hyper, b: estimator(local, state, hyper, *b, carry),
        axis_name="d", in_axes=(None, None, 0), out_axes=None,
    )(s.state, s.hyper, shards)
    rtol = 1e-6 if name == "finite_difference" else 1e-9
    for a, b in zip(jax.tree.leaves(four), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, rtol, 1e-14, err_msg=name)
"""


@pytest.mark.slow
def test_one_device_is_four():
    flags = "--xla_force_host_platform_device_count=4"
    here = Path(__file__).parent
    paths = f"{here}{os.pathsep}{here.parent}"
    env = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
