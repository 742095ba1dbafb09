"""Waiting until the sign of a noisy gradient is known."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from scipy.special import log_ndtr

from tvjax.hypergrad.checks import check_floats, check_least, check_positive
from tvjax.hypergrad.degenerate import is_optimizer
from tvjax.types import PyTree

PRIOR = 20
"""c of `log_evidence`, in gradients. Waits of some 10 c are as short as they can be; a smaller c
would let a few gradients move, of which it still matters how they are distributed."""


class SignificanceState(NamedTuple):
    """The state of `until_significant`: running moments, one of each per element."""

    count: jax.Array
    mean: jax.Array
    rms: jax.Array
    """The root of the mean square, which float32 holds whatever the gradients' size; the square
    itself it does not, of 1e-20 or 1e20."""
    inner: PyTree


def until_significant(
    optimizer: optax.GradientTransformation, threshold: float, *, block: int = 1
) -> optax.GradientTransformation:
    """Collects gradients until their mean is far enough from 0 for its sign, then steps by it.

    Each element waits on its own and has an optimiser of its own: while it waits its update is 0
    and its optimiser stands still; when its mean is significant, its optimiser gets the mean as the
    gradient, and the element starts collecting anew. With mini-batches the sign of a hypergradient
    is often a coin toss: this asks for evidence first. A mean that is not finite is passed on at
    once (at the end of its block), to be seen.

    The evidence holds over all looks together (`log_evidence`). Of normal gradients about 0, the
    probability that any element ever moves, however long the run, is at most

        level = P(|N| > threshold),   N normal: 0.046 for 2, 0.0027 for 3

    Elements share it evenly, n of them at level / n each. The wait after a move begins at the full
    level again, so that noise moves at least k times with level^k at most. Where there is a signal,
    each move has the wrong sign with probability level / 2 at most, however weak the signal is.

    Of 4,000 runs of 10,000 gradients with mean 0, as many moved at least once:

        gradients                                  threshold 2   threshold 3
        normal                                        4.1 %         0.3 %
        heavy-tailed (Student's t3)                   3.0 %         0.2 %
        skewed (exponential)                          7.2 %         1.1 %
          in blocks of 10                             3.5 %         0.3 %
        normal, spread in proportion to their number  9.1 %         0.5 %
        normal, autocorrelation 0.5                    60 %          26 %
          in blocks of 10                             5.0 %         0.5 %
        normal, autocorrelation 0.9                   100 %         100 %
          in blocks of 50                             3.7 %         0.4 %

    What it assumes: that each gradient has mean 0 given those before it, where there is nothing to
    learn. Mini-batches drawn anew make it so, although successive steps share their parameters: a
    gradient that is far from 0 because of where the parameters are is a signal, for as long as they
    stay there. Where the noise itself is remembered (`forward_online`, overlapping validation
    batches), and where it is skewed, take blocks: for an autocorrelation of a, of some four times
    (1 + a) / (1 - a) gradients.

    Cost: none to speak of. Memory: three numbers an element (four with blocks), and its optimiser's
    state. The price is waiting: for weak signals 1.5 to 2.2 times as many gradients as a test needs
    that looks once, for any at least 14 at threshold 2 and 19 at 3 (`docs/results.md`).

    What it cannot do: tell noise from a signal of rare, large gradients before one has come; and
    help against a bias, such as that of a short horizon.

    Source: Lai, Ann. Stat. 4 (1976), and Wang and Ramdas (2023), arXiv:2310.03722, for normal
    gradients; of others it holds as their number grows (Waudby-Smith et al. 2021,
    arXiv:2103.06476).

    Args:
      optimizer: any optax optimiser; what it does to several elements together, such as clipping by
        their norm, it does to each alone.
      threshold: z > 0, in standard deviations of a normal number, which sets the level above.
      block: how many successive gradients are averaged to one that is collected.

    Raises:
      ValueError: for an optimiser that is none, a threshold that is not positive, a block below 1,
        and parameters or gradients that are not real floats, or none at all.
    """
    if not is_optimizer(optimizer):
        raise ValueError(f"optimizer must be an optax optimiser; got a {type(optimizer).__name__}")
    check_positive(threshold=threshold)
    check_least(1, block=block)
    least = -math.log(2) - float(log_ndtr(-threshold))  # -log(level), of any threshold

    def init(params):
        check_floats(params=params)
        flat = ravel_pytree(params)[0]
        # Half precision cannot count beyond 256.
        zeros = jnp.zeros(flat.shape, jnp.promote_types(flat.dtype, jnp.float32))
        return SignificanceState(zeros, zeros, zeros, jax.vmap(optimizer.init)(flat))

    def one(least, g, state, param) -> tuple[Any, Any]:
        """The update and the state of one element."""
        count = state.count + 1
        mean = state.mean + (g - state.mean) / count
        rms = jnp.hypot(state.rms * jnp.sqrt(state.count / count), g / jnp.sqrt(count))
        ready = (log_evidence(count, mean, rms) >= least) | ~jnp.isfinite(mean)
        zero = jnp.zeros_like(mean)
        step, inner = optimizer.update(mean.astype(g.dtype), state.inner, param)
        moved = step, SignificanceState(zero, zero, zero, inner)
        waits = jnp.zeros_like(g), SignificanceState(count, mean, rms, state.inner)
        return jax.tree.map(partial(jnp.where, ready), moved, waits)

    def update(updates, state, params=None):
        check_floats(updates=updates)
        flat, unravel = ravel_pytree(updates)
        params = None if params is None else ravel_pytree(params)[0]
        steps, state = jax.vmap(partial(one, least + math.log(flat.size)))(flat, state, params)
        return unravel(steps), state

    gate = optax.GradientTransformation(init, update)
    if block == 1:
        return gate
    blocks = optax.MultiSteps(gate, block, accumulator_dtype=float)  # as precise as JAX is set to
    return blocks.gradient_transformation()


def log_evidence(count: Any, mean: Any, rms: Any) -> Any:
    """The logarithm of the evidence that n normal numbers of unknown spread are not about 0.

        log M = -log(1 + n / c) / 2 - n / 2 log(1 - n mean^2 / ((n + c) rms^2)),   c = `PRIOR`

    It is the likelihood ratio of the mean's being s N(0, 1 / c), s the numbers' standard deviation,
    to its being 0, with s unknown under both. Without a signal M is a martingale of mean 1, so that
    P(M >= 1 / level at any n) <= level (Ville). For many numbers that is Robbins' normal mixture:
    it crosses where |n mean| = s sqrt(2 (n + c) log(sqrt(1 + n / c) / level)).

    Args:
      count: n >= 1 numbers; of one alone there is no evidence, and log M = 0.
      mean: mean of the numbers.
      rms: the root of the mean of their squares; where it is 0, log M <= 0.
    """
    ratio = mean / jnp.where(rms > 0, rms, 1)
    share = count / (count + PRIOR) * jnp.minimum(ratio**2, 1)
    return -(jnp.log1p(count / PRIOR) + count * jnp.log1p(-share)) / 2
