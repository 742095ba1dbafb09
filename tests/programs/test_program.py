"""Config files and their flags, without starting a run."""

import importlib
import json
import os
import re
import subprocess
import sys

import jax
import pytest
from ml_collections import ConfigDict
from programs import ROOT, use

from tvjax import hypergrad
from tvjax.errors import UserError
from tvjax.fields import flat
from tvjax.program import cache_compilations
from tvjax.training import rundir
from tvjax.training.augment import make_augment
from tvjax.training.net import make_regularizer
from tvjax.training.plan import make_hyper_plan
from tvjax.training.setup import make_setup
from tvjax.training.state import make_schedule

CONFIGS = sorted(p.stem for p in (ROOT / "configs").glob("[a-z]*.py"))


def config(name, preset=None):
    module = importlib.import_module(f"configs.{name}")
    return module.get_config(preset) if name != "base" else module.get_config()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_has_the_fields_of_base_and_the_paper_preset(name):
    fields = dict(flat(config("base"))).keys()
    assert dict(flat(config(name))).keys() == fields
    if name != "base":
        assert dict(flat(config(name, "paper"))).keys() == fields
        paper = config(name, "paper")
        width = 32 if name == "segformer" else 64  # that of B0
        assert (paper.model.width, paper.data.size, paper.train.batch_size) == (width, 100, 16)
        assert not any(paper.augmentation.values())
        assert paper.optimizer.learning_rate == 5e-5
        assert paper.name == f"{name}_paper"
        with pytest.raises(ValueError, match="papre"):
            config(name, "papre")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_mistyped_field_of_a_config_is_refused(name):
    with pytest.raises(AttributeError, match="steps"):
        config(name).train.stesp = 3
    with pytest.raises(TypeError):
        config(name).train.steps = "many"


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: make_regularizer(1, **regularizer(weight=0.0)), "must be positive"),
        (lambda: make_regularizer(1, **regularizer(per_class=True)), "model.head='softmax'"),
        (lambda: plan(method="forward_online", every=2), "every=2"),
        (lambda: plan(warmup=0), "hypergrad.warmup=0 must be at least 1"),
        (lambda: plan("sgd", method="preconditioned"), "optimizer.name='sgd'"),
        (lambda: plan("adam", method="exact", decay=0.9), "hypergrad.decay=0.9"),
        (
            lambda: make_regularizer(1, **regularizer(blocks=2, place="head")),
            "regularizer.blocks=2",
        ),
        (lambda: make_schedule(0.1, **schedule(warmup=10)), "schedule.warmup=10"),
        (lambda: make_augment(**augmentation(turns=True)), "augmentation.turns=True.*4x5"),
    ],
)
def test_values_that_contradict_each_other_are_named(call, words):
    with pytest.raises(UserError, match=words):
        call()


MISTAKES = {
    "--config=configs/lunet_bilevl.py": "lunet_bilevl.py does not exist; did you mean configs/lun",
    "--config configs/lunet_bilevl.py": "lunet_bilevl.py does not exist; did you mean configs/lun",
    "--config=unet --config.seed=3": "unet does not exist; did you mean configs/unet.py",
    "--config=/nowhere/x.py": "/nowhere/x.py does not exist; There are configs/base.py, configs/l",
    "--confg=configs/unet.py": "--confg: there is no such flag; did you mean --config?",
    "--config=configs/unet.py --config.train.stpes=3": "did you mean --config.train.steps?",
    "--config=configs/unet.py --config.train.steps=x": "--config.train.steps=x",
    "--config=configs/lunet_bilevel.py:papr": "configs/lunet_bilevel.py:papr: there is no preset",
    "--config=configs/unet.py --config.train.log_every=0": "train.log_every=0 must be an integer",
    "--config=BROKEN": "SyntaxError",
    "--config=/dev/zero": "--config: /dev/zero is no file",
    "--config=configs": "--config: configs is no file",
    "--config=configs/unet.py fast": "unexpected argument 'fast'",
    "--config.train.steps=3": "--config is missing",
    "": "--config is missing",
}


def test_every_mistake_on_a_command_line_is_one_line_and_status_2(tmp_path):
    (tmp_path / "broken.py").write_text("def get_config(:")
    script = (
        "import os, sys\n"
        "from tvjax import program\n"
        "program.define_config_flag()\n"
        "for line in sys.argv[1:]:\n"
        "    print('>', end=' ', file=sys.stderr, flush=True)\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        sys.argv = ['main', *line.split()]\n"
        "        program.run(print)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    lines = [line.replace("BROKEN", str(tmp_path / "broken.py")) for line in MISTAKES]
    command = [sys.executable, "-W", "ignore", "-c", script, *lines]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2"] * len(MISTAKES), done.stderr
    told = done.stderr.splitlines()
    assert len(told) == len(MISTAKES), done.stderr
    for line, words in zip(told, MISTAKES.values(), strict=True):
        assert line.startswith("> error: ") and words in line


def regularizer(**changes):
    return config("lunet").regularizer.to_dict() | changes


def plan(name="adam", **changes):
    hyper = config("lunet_bilevel").hypergrad.to_dict() | changes
    return make_hyper_plan(optimizer(name=name), **hyper)


def optimizer(**changes):
    return config("unet").optimizer.to_dict() | changes


def schedule(**changes):
    return config("unet").schedule.to_dict() | {"steps": 10} | changes


def augmentation(**changes):
    fixed = {"seed": 0, "image_shape": (4, 5)}
    return config("unet").augmentation.to_dict() | fixed | changes


@pytest.mark.parametrize("warmup, every", [(0, 1), (3, 1), (3, 4), (10, 3)])
def test_updates_are_counted_as_they_fall_due(warmup, every):
    made = plan("sgd", warmup=warmup, every=every)
    due = [step for step in range(20) if made.is_due(step)]
    assert due == list(range(warmup, 20, every))
    assert [made.updates(step) for step in range(21)] == [
        sum(d < step for d in due) for step in range(21)
    ]
    none = plan(method="none")
    assert not any(none.is_due(step) for step in range(20))


def test_where_the_first_step_of_adam_does_no_harm_no_warmup_is_asked_for():
    for name, changes in (("sgd", {}), ("adam", {"method": "training_loss"}),
                          ("adamw", {"method": "reverse", "steps": 2})):  # fmt: skip
        assert plan(name, warmup=0, **changes).is_due(0)


def test_the_preconditioner_is_that_of_the_config_s_adam(monkeypatch):
    asked = {}
    monkeypatch.setattr(hypergrad, "adam_scaling", lambda **options: asked.update(options))
    make_hyper_plan(
        optimizer(b2=0.9, eps=1e-3),
        **config("lunet_bilevel").hypergrad.to_dict() | {"method": "preconditioned"},
    )
    assert asked == {"b2": 0.9, "eps": 1e-3}


def test_the_online_memory_fades_as_the_config_says(monkeypatch):
    asked = []
    monkeypatch.setattr(hypergrad, "forward_online", lambda *, decay: asked.append(decay))
    plan(method="forward_online", every=1, decay=0.9)
    assert asked == [0.9] and config("lunet_online").hypergrad.decay == 1


def test_the_backend_chooses_the_loop_of_steps(monkeypatch):
    # By `loop=None`; tests/hypergrad/test_solvers.py holds what comes of it on either backend.
    asked = []
    for name in ("reverse", "forward"):
        monkeypatch.setattr(hypergrad, name, lambda steps, loop=None: asked.append(loop))
        plan(method=name)
    assert asked == [None, None]


def test_a_workdir_that_is_a_file_or_holds_another_run_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--workdir"), rundir.lock(tmp_path / "file" / "run"):
        pass
    run = tmp_path / "run"
    with rundir.lock(run) as free:
        assert free
    rundir.write_config(run, config("unet"))
    rundir.check(run, config("lunet"))  # nothing was trained there yet
    (run / "checkpoints" / "5.orbax-checkpoint-tmp-1").mkdir(parents=True)
    rundir.check(run, config("lunet"))
    (run / "checkpoints" / "5").mkdir()
    longer = config("unet")
    longer.train.steps = 700  # a run may be prolonged
    rundir.check(run, longer)
    with pytest.raises(UserError, match=r"regularizer.place='none'.*'loss'"):
        rundir.check(run, config("lunet"))
    older = config("unet").to_dict()
    del older["model"]["precision"]  # such runs multiplied as the hardware does by default
    (run / "config.json").write_text(json.dumps(older))
    with pytest.raises(UserError, match=r"model.precision='default'.*'highest'"):
        rundir.check(run, config("unet"))
    same = config("unet")
    same.model.precision = "default"
    rundir.check(run, same)
    assert make_setup(ConfigDict(rundir.as_now(older)), (16, 16)).resident
    (run / "config.json").write_text("{")
    with pytest.raises(UserError, match="move it away"):
        rundir.check(run, config("unet"))


def test_lambda_weighs_a_pixel_as_the_notes_say():
    made, _ = make_regularizer(1, **regularizer())
    assert made.pixel_weight(1e-6, (16, 100, 100)) == pytest.approx(0.16)
    assert isinstance(config("unet"), ConfigDict)


def test_compiled_programs_are_kept_where_jax_keeps_them_or_else_where_asked():
    name = "jax_compilation_cache_dir"
    before = getattr(jax.config, name)
    try:
        for own in ("/own", None):
            jax.config.update(name, own)
            cache_compilations("/asked")
            assert getattr(jax.config, name) == (own or "/asked")
    finally:
        jax.config.update(name, before)


PROGRAMS = ("main", "predict", "evaluate", "export", "sweep", "label_faults", "data.prepare")


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_is_a_screen_or_two_that_names_every_flag(name):
    result = use(name, "--help")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) <= 90 and max(map(len, lines)) <= 100
    about, _, listed = result.stdout.partition("\nFlags:\n")
    assert f"python -m tvjax.{name} --" in about
    source = (ROOT / "tvjax" / f"{name.replace('.', '/')}.py").read_text()
    own = re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source)
    shared = ["config"] * (name in ("main", "sweep", "label_faults"))
    shared += ["coordinator", "num_processes", "process_id", "multihost"] * (name == "main")
    shared += ["checkpoint"] * (name in ("predict", "evaluate", "export"))
    shared += ["augment"] * (name in ("predict", "evaluate"))
    named = re.findall(r"^  --(?:\[no\])?(\w+)", listed.partition("\nConfigs")[0], re.M)
    assert sorted(named) == sorted(own + shared)
    for words in re.split(r"\n  --", listed.partition("\n\n")[0]):
        kind = re.search(r"=(TEXT|NUMBER|INTEGER|A,B)", words)
        assert not kind or "e.g." in words or "efault: " in words or "which of" in words.lower()
        assert not re.search(r"(  |: )(Of|That|As|Its|For|With) ", words), words
    if "config" in shared:
        for words in ("unet_tv", ":paper", "--config.train.steps=1000", "configs/base.py"):
            assert words in listed
        section = ""
        for path, _ in flat(config("base")):
            section, _, field = path.rpartition(".")
            block = listed.partition(f"\n  {section}: ")[2] if section else listed
            assert re.search(rf"\b{field}\b", block), path


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--annotations=A", "--images=B", "--data=C"], "--data=C is of prepared tiles"),
        (["--scale=2"], "--scale=2.0 is of a COCO file's images"),
        (["--category=2"], "--category=2 is of a COCO file"),
    ],
)
def test_flags_of_evaluate_that_would_not_matter_are_refused(flags, words):
    result = use("evaluate", "--workdir=x", *flags)
    assert result.returncode == 2 and result.stderr.startswith(f"error: {words}"), result.stderr
    assert result.stderr.count("\n") == 1


NOBODY_LISTENS = """
import os, pathlib, sys
from tvjax import program

def main(argv):
    pathlib.Path(f"{name}.done").write_text("done")
    print("x" * 10**6)
    print("", end="", file=sys.stderr)
    sys.exit(3)

def is_closed(number):
    os.close(number)
    setattr(sys, ("", "stdout", "stderr")[number], None)

def is_pipe(number):
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, number)

WAYS = {
    "no stdout": lambda: is_closed(1), "no stderr": lambda: is_closed(2),
    "neither": lambda: (is_closed(1), is_closed(2)), "no reader": lambda: is_pipe(1),
    "full": lambda: os.dup2(os.open("/dev/full", os.O_WRONLY), 1),
}
statuses = {}
for name, way in WAYS.items():
    child = os.fork()
    if not child:
        os.dup2(os.open(f"{name}.log", os.O_CREAT | os.O_WRONLY), 2)
        way()
        program.run(main)
    statuses[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(statuses)
"""


def test_where_nobody_listens_a_program_does_its_work(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", NOBODY_LISTENS]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, text=True, capture_output=True, env=environment, check=True
    )
    ends = {"no stdout": 3, "no stderr": 3, "neither": 3, "no reader": 1, "full": 74}
    assert done.stdout.splitlines()[-1] == str(ends)
    for name in ends:
        assert (tmp_path / f"{name}.done").read_text() == "done"
        told = (tmp_path / f"{name}.log").read_text()
        assert told == ("error: No space left on device\n" if name == "full" else ""), name


@pytest.mark.parametrize("program", ["tvjax.main", "experiments.run"])
def test_help_needs_no_docstrings(program):
    plain, bare = (
        subprocess.run(
            [sys.executable, *flags, "-m", program, "--help"], capture_output=True, text=True,
            cwd=ROOT, check=True,
        ).stdout
        for flags in ([], ["-OO"])
    )  # fmt: skip
    assert bare == plain and f"python -m {program} --" in plain


def test_help_may_be_cut_off():
    read, write = os.pipe()
    os.close(read)  # as `| head -1` does, early
    found = subprocess.run(
        [sys.executable, "-m", "tvjax.data.prepare", "--help"], stdout=write,
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    os.close(write)
    assert (found.returncode, found.stderr) == (0, "")
    with open("/dev/full", "w") as full:
        found = subprocess.run(
            [sys.executable, "-m", "tvjax.data.prepare", "--help"], stdout=full,
            stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
    assert (found.returncode, found.stderr) == (74, "error: No space left on device\n")
