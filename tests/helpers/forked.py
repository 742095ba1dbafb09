"""Programs one after another, each in a fork of a process that has loaded what they need.

    python tests/helpers/forked.py

reads a JSON list of commands from stdin, and prints a line of JSON for each: its status, stdout and
stderr. A command has `argv` (the program and its flags; `train TILES FOLDER` makes a tiny run in
FOLDER/run) and may have `kilobytes`, the most that a file may hold, and `strike`, a function
`module:name` in which SIGTERM comes.
"""

import gc
import importlib
import json
import os
import resource
import runpy
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import devices  # noqa: F401  its net, which compiles in a moment
import lives

import tvjax.data.builder
import tvjax.inference.writing
import tvjax.scoring.sides  # noqa: F401
from tvjax.training import loop


def strike(place):
    """Lets SIGTERM come as a function is called."""
    module, name = place.split(":")
    owner = importlib.import_module(module)
    function = getattr(owner, name)

    def struck(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments, **options)

    setattr(owner, name, struck)


def limit(kilobytes):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * kilobytes, resource.RLIM_INFINITY))


def call(argv):
    if argv[0] == "train":
        tiles, folder = argv[1:]
        loop.run(lives.config_of(tiles, Path(folder), 1), Path(folder) / "run")
        return
    sys.argv = argv
    runpy.run_module(f"tvjax.{argv[0]}", run_name="__main__")


def child(command, out, err):
    for number, file in ((1, out), (2, err)):
        os.dup2(file.fileno(), number)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    status = 1
    try:
        if "strike" in command:
            strike(command["strike"])
        if "kilobytes" in command:
            limit(command["kilobytes"])
        call(command["argv"])
        status = 0
    except SystemExit as error:
        status = error.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    os._exit(status)


def main():
    gc.collect()
    gc.freeze()  # what a collector touches is copied
    for command in json.load(sys.stdin):
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            process = os.fork()
            if not process:
                child(command, out, err)
            status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read())
        print(json.dumps([status, *texts]), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
