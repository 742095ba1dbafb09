"""Bilevel steps of PyTorch's libraries beside ours: the same net, weights, batches and optimiser.

    pip install torch torchopt higher    # without one of the last two, that peer is left out
    python -m experiments.benchmarks.peers --width=16 --json=FILE

The U-Net at 16 x 100 x 100 (`--batch`, `--size`), cross-entropy + lambda TV, Adam, lambda's
hypergradient through one step, each by its library's own means: TorchOpt's MetaAdam, higher's inner
loop, and the paper's printed formula written out in PyTorch. All start from the weights that we
drew, and are timed in turn, round after round. `hypergradient` holds what each computes at the
second step of Adam: where one differs, its derivative is not that of the step.
"""

# PyTorch and its peers are no dependency.
# pyright: reportMissingImports=false

import sys
import warnings
from importlib import metadata

import jax
import numpy as np
import torch
from absl import flags
from torch.nn import functional as F
from tqdm import tqdm

from experiments import kept
from experiments.benchmarks import workload
from experiments.benchmarks.torch_unet import TorchUNet, copy_weights
from tvjax import hypergrad, program, provenance
from tvjax.training import parallel, steps
from tvjax.types import Batch

_JSON = kept.json_flag()
_WIDTH, _SIZE, _BATCH = workload.size_flags()
_ROUNDS = flags.DEFINE_integer("rounds", 7, "How often each step is timed.")

RATE, LAMBDA = 1e-3, 1e-6


class Peers:
    """One bilevel step of each peer; `(step, hypergradient)` by name, on a net of its own."""

    def __init__(self, params, train: Batch, val: Batch):
        self.params = params
        self.train, self.val = (
            tuple(
                torch.tensor(np.asarray(x, np.float32))
                .permute(0, 3, 1, 2)
                .contiguous(memory_format=torch.channels_last)
                for x in (b.image / 255, b.mask)
            )
            for b in (train, val)
        )
        self.alpha = torch.tensor(float(np.log(LAMBDA)), requires_grad=True)

    def net(self) -> TorchUNet:
        """A new net with our first weights."""
        net = TorchUNet(_WIDTH.value)
        copy_weights(self.params, net)
        return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def inner(self, net):
        """Cross-entropy + lambda TV of the training batch."""
        logits = net(self.train[0])
        return F.binary_cross_entropy_with_logits(logits, self.train[1]) + self.tv(logits)

    def tv(self, logits):
        """Lambda TV."""
        p = torch.sigmoid(logits)
        return self.alpha.exp() * (p.diff(dim=2).abs().sum() + p.diff(dim=3).abs().sum())

    def outer(self, net):
        """Cross-entropy of the validation batch."""
        return F.binary_cross_entropy_with_logits(net(self.val[0]), self.val[1])

    def plain(self):
        """A step of torch's own Adam, no hypergradient."""
        net = self.net()
        adam = torch.optim.Adam(net.parameters(), RATE)

        def step():
            adam.zero_grad()
            self.inner(net).backward()
            adam.step()

        return step

    def torchopt(self):
        """MetaAdam, and autograd through its step."""
        import torchopt

        net = self.net()
        adam = torchopt.MetaAdam(net, lr=RATE)

        def step():
            adam.step(self.inner(net))
            (slope,) = torch.autograd.grad(self.outer(net), self.alpha)
            torchopt.stop_gradient(net)
            torchopt.stop_gradient(adam)
            return slope.item()

        return step

    def higher(self):
        """Takes higher's differentiable Adam; the state goes back to the net after each step."""
        import higher

        net = self.net()
        adam = torch.optim.Adam(net.parameters(), RATE)
        with warnings.catch_warnings(), higher.innerloop_ctx(net, adam) as (functional, inner):
            warnings.simplefilter("ignore")

        def step():
            nonlocal functional, inner
            inner.step(self.inner(functional))
            (slope,) = torch.autograd.grad(self.outer(functional), self.alpha)
            fast = [p.detach().requires_grad_() for p in functional.fast_params]
            functional.update_params(fast)
            inner.state = [
                {
                    k: {n: v.detach() if torch.is_tensor(v) else v for n, v in s.items()}
                    for k, s in group.items()
                }
                for group in inner.state
            ]
            return slope.item()

        return step

    def printed(self):
        """Algorithm 1 as printed: a step, the outer gradient, and the TV gradient, at theta'."""
        net = self.net()
        params = list(net.parameters())
        adam = torch.optim.Adam(params, RATE)

        def step():
            adam.zero_grad()
            self.inner(net).backward()
            adam.step()
            q = torch.autograd.grad(self.outer(net), params)
            g = torch.autograd.grad(self.tv(net(self.train[0])), params)
            return -RATE * sum(float((a * b).sum()) for a, b in zip(q, g, strict=True))

        return step


def ours(train: Batch, val: Batch):
    """`(plain, exact)`, each a step on a state of its own, and the first parameters."""
    layout = parallel.make_layout(map="jit")
    problem, regularizer, start = workload.unet(
        width=_WIDTH.value, size=_SIZE.value, rate=RATE, lam=LAMBDA
    )
    begin = start(None, hypergrad.adam(0.0))
    bilevel = steps.bilevel_step(problem, regularizer, hypergrad.exact(), hypergrad.adam(0.0))
    plain = steps.plain_step(problem, regularizer)
    made = {
        "plain": (layout.compile(lambda s, _, t: plain(s, t)), ([train],)),
        "exact": (layout.compile(lambda s, _, t, v: bilevel(s, t, v)), ([train], val)),
    }

    def on_its_state(step, batches):
        now = begin

        def advance():
            nonlocal now
            now, metrics = jax.block_until_ready(step(now, None, *batches))
            return float(metrics.get("hypergradient", np.nan))

        return advance

    return {k: on_its_state(*v) for k, v in made.items()}, begin.inner.params


def _or_none(x: float) -> float | None:
    """JSON has no NaN."""
    return x if np.isfinite(x) else None


def main(argv):
    del argv
    train, val = workload.random_batches(2, batch=_BATCH.value, size=_SIZE.value)
    calls, params = ours(train, val)
    peers = Peers(params, train, val)
    calls |= {"torch_plain": peers.plain(), "torch_printed": peers.printed()}
    versions = {"torch": torch.__version__}
    for name, make in (("torchopt", peers.torchopt), ("higher", peers.higher)):
        try:
            calls[name] = make()
            versions[name] = metadata.version(name)
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    slopes = {}
    for name, call in tqdm(calls.items(), "first steps"):
        call()
        slopes[name] = call()
    medians = workload.median_seconds(calls, _ROUNDS.value)
    result = {
        "benchmark": "peers",
        "config": {
            "width": _WIDTH.value, "batch": _BATCH.value, "size": _SIZE.value,
            "rounds": _ROUNDS.value, "threads": torch.get_num_threads(),
        },
        "medians_s": medians,
        "exact_over": {name: medians["exact"] / medians[name] for name in medians},
        "hypergradient": {k: _or_none(slopes[k]) for k in calls if "plain" not in k},
        "peers": versions,
        **provenance.describe(seed=0),
    }  # fmt: skip
    kept.write(_JSON.value, result)
    print(f"{'':<14}{'seconds':>9}{'exact / it':>12}   hypergradient")
    for name, value in medians.items():
        print(f"{name:<14}{value:>9.3f}{medians['exact'] / value:>12.2f}   {slopes[name]}")


if __name__ == "__main__":
    program.run(main)
