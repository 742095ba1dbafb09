r"""A trained net as StableHLO: `python -m tvjax.export --workdir=DIR --out=FILE [--size=512]`.

`--onnx=FILE` writes an ONNX model instead (extra `onnx`), which the QGIS plugin Deepness opens:
float32 `[B, 3, H, W]` in [0, 1] -> `[B, 1, H, W]`, of images whose side `--size` fixes (512).

The other file needs JAX and no tvjax, and runs on a CPU, a CUDA GPU and a TPU:

    net = jax.export.deserialize(pathlib.Path(FILE).read_bytes())
    probabilities = net.call(images)  # float32 [B, H, W, 3] in [0, 1] -> [B, H, W, 1]

`--size=symbolic`, the default, leaves height and width open (multiples of 32), and `--batch` the
number of images; fixed ones compile to a faster program. `--checkpoint` chooses the net's as in
`tvjax.evaluate`; `--mlir` writes the program as text.
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from absl import flags

from tvjax import files, interruption, program
from tvjax.errors import UserError
from tvjax.inference import onnx_file
from tvjax.inference.predictor import KNOWN, PLATFORMS, Predictor, check_export
from tvjax.training import rundir

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, e.g. runs/roofs.")
_OUT = flags.DEFINE_string("out", None, "File to write, e.g. net.stablehlo.")
_ONNX = flags.DEFINE_string("onnx", None, "ONNX file to write instead, e.g. net.onnx.")
_CHECKPOINT = program.define_checkpoint_flag()
_SIZE = flags.DEFINE_string(
    "size",
    "symbolic",
    "Side of the images in pixels, e.g. 512; symbolic: any multiple of 32 (of ONNX: 512).",
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


ENDINGS = ".stablehlo", ".mlir", ".onnx"
"""Endings of files that may be replaced: others may be of something else."""


def main(argv: list[str]) -> None:
    """Writes the file and prints what it takes."""
    del argv
    workdir, out = _WORKDIR.value, _ONNX.value or _OUT.value
    if not (workdir and out):
        raise UserError("--workdir and --out (or --onnx) are needed, see --help")
    if _ONNX.value and (_OUT.value or _MLIR.value or flags.FLAGS["platforms"].present):
        raise UserError(
            "--onnx writes a file of its own, for any platform: give it without --out, --mlir and "
            "--platforms"
        )
    asked = {"size": _size(), "batch": _BATCH.value, "platforms": _PLATFORMS.value}
    try:
        check_export(**asked)
    except UserError as error:
        raise UserError(f"--{error}") from error
    path = Path(os.path.realpath(out))  # of a link, what it points to
    flag = "onnx" if _ONNX.value else "out"
    files.check_file(flag, path)
    if path.exists() and path.suffix.lower() not in ENDINGS:
        raise UserError(
            f"--{flag}={out} is there already, and may be of something else; remove it, or name "
            f"another file (what ends in {', '.join(ENDINGS)} is replaced)"
        )
    net = Predictor.load(workdir, denoise=_DENOISE.value, checkpoint=_CHECKPOINT.value)
    make = _onnx if _ONNX.value else _stablehlo
    try:
        content, told = make(net, **asked)
    except UserError as error:
        raise UserError(f"--{error}") from error
    interruption.check()
    reading = rundir.read_images_of(Path(workdir))[0].as_json()
    if reading is not None:
        told["reading"] = reading
        print(
            f"note: the run's images were read with {json.dumps(reading)}: the file takes "
            "images of these bands, where black is 0 and white 1",
            file=sys.stderr,
        )
    with files.writing(flag, Path(out)):
        with files.making(path.parent), files.replacing(path) as temporary:
            temporary.write_bytes(content)
    step = {"step": int(net.state.step)}
    print(json.dumps({"out": out, "bytes": len(content), **step, **told}))


def _stablehlo(net: Predictor, **asked: Any) -> tuple[bytes, dict[str, Any]]:
    """The file's content, and what is told of it."""
    try:
        exported = net.export(**asked)
    except UserError:
        raise
    except Exception as error:  # what a net does with an open size may fail as anything
        first = str(error).strip().partition("\n")[0]
        raise UserError(
            f"size={_SIZE.value}: this net cannot be exported so ({first}); give --size and "
            f"--batch, e.g. --size=512 --batch=1"
        ) from error
    content = exported.mlir_module().encode() if _MLIR.value else bytes(exported.serialize())
    shapes = [f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in exported.in_avals]
    return content, {"images": shapes[0], "platforms": exported.platforms}


def _onnx(
    net: Predictor, *, size: int | None, batch: int | None, platforms: Any
) -> tuple[bytes, dict[str, Any]]:
    """The same of an ONNX model, which any platform takes."""
    del platforms
    _, resolution = rundir.read_images_of(Path(str(_WORKDIR.value)))
    side = size or onnx_file.SIZE
    model = onnx_file.make(net, size=side, batch=batch, resolution=resolution)
    return model.SerializeToString(), {"images": f"float32[{batch or 'batch'},3,{side},{side}]"}


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
