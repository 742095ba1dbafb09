"""Parameters of nets, for tests."""

import jax
import jax.numpy as jnp
import numpy as np

from tvjax.training.setup import make_functions


def initial(net, dtype):
    """Parameters as `net.init` draws them, which takes longer to compile than all the rest."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            return jnp.asarray(rng.normal(size=leaf.shape) / np.prod(leaf.shape[:-1]) ** 0.5, dtype)
        return jnp.full(leaf.shape, path[-1].key in ("scale", "var"), dtype)

    x = jnp.zeros((1, 16, 16, 3))
    variables = jax.eval_shape(lambda: net.init(jax.random.key(0), x, train=False))
    return jax.tree.map_with_path(draw, variables)


def state_shapes(config):
    """The shapes and types of a run's state on tiles of 16 pixels; nothing is compiled."""
    made = make_functions(config, (16, 16))
    return jax.eval_shape(made.create, config.seed, made.net.hyper)
