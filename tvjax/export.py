r"""A trained net as StableHLO: `python -m tvjax.export --workdir=DIR --out=FILE [--size=512]`.

The file needs JAX and no tvjax, and runs on a CPU, a CUDA GPU and a TPU:

    net = jax.export.deserialize(pathlib.Path(FILE).read_bytes())
    probabilities = net.call(images)  # float32 [B, H, W, 3] in [0, 1] -> [B, H, W, 1]

`--size=symbolic`, the default, leaves height and width open (multiples of 32), and `--batch` the
number of images; fixed ones compile to a faster program. `--checkpoint` chooses the net's as in
`tvjax.evaluate`; `--mlir` writes the program as text.
"""

import json
import os
import re
from pathlib import Path

from absl import flags

from tvjax import files, interruption, program
from tvjax.errors import UserError
from tvjax.inference.predictor import KNOWN, PLATFORMS, Predictor, check_export

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, e.g. runs/roofs.")
_OUT = flags.DEFINE_string("out", None, "File to write, e.g. net.stablehlo.")
_CHECKPOINT = program.define_checkpoint_flag()
_SIZE = flags.DEFINE_string(
    "size", "symbolic", "Side of the images in pixels, e.g. 512; symbolic: any multiple of 32."
)
_BATCH = flags.DEFINE_integer("batch", None, "Number of the images, e.g. 1; default: any.")
_PLATFORMS = flags.DEFINE_list(
    "platforms", list(PLATFORMS), f"What it is to run on, of {', '.join(KNOWN)}."
)
_DENOISE = flags.DEFINE_float(
    "denoise",
    None,
    "Weight of a TV denoising of the probabilities, e.g. 0.1; default: the run's own; 0: none.",
)
_MLIR = flags.DEFINE_bool("mlir", False, "Whether to write the program as text instead.")


def main(argv: list[str]) -> None:
    """Writes the file and prints what it takes."""
    del argv
    workdir, out = _WORKDIR.value, _OUT.value
    if not (workdir and out):
        raise UserError("--workdir and --out are needed, see --help")
    asked = {"size": _size(), "batch": _BATCH.value, "platforms": _PLATFORMS.value}
    try:
        check_export(**asked)
    except UserError as error:
        raise UserError(f"--{error}") from error
    path = Path(os.path.realpath(out))  # of a link, what it points to
    files.check_file("out", path)
    net = Predictor.load(workdir, denoise=_DENOISE.value, checkpoint=_CHECKPOINT.value)
    try:
        exported = net.export(**asked)
    except UserError as error:
        raise UserError(f"--{error}") from error
    except Exception as error:  # what a net does with an open size may fail as anything
        first = str(error).strip().partition("\n")[0]
        raise UserError(
            f"--size={_SIZE.value}: this net cannot be exported so ({first}); give --size and "
            f"--batch, e.g. --size=512 --batch=1"
        ) from error
    interruption.check()
    content = exported.mlir_module().encode() if _MLIR.value else bytes(exported.serialize())
    with files.writing("out", Path(out)):
        with files.making(path.parent), files.replacing(path) as temporary:
            temporary.write_bytes(content)
    shapes = [f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in exported.in_avals]
    taken = {"step": int(net.state.step), "images": shapes[0], "platforms": exported.platforms}
    print(json.dumps({"out": out, "bytes": len(content), **taken}))


def _size() -> int | None:
    """The side of the images; None where it stays open."""
    if _SIZE.value == "symbolic":
        return None
    if not re.fullmatch("[0-9]{1,9}", _SIZE.value):
        raise UserError(
            f"--size={_SIZE.value}: give the side of the images in pixels, e.g. 512, or symbolic"
        )
    return int(_SIZE.value)


if __name__ == "__main__":
    program.run(main)
