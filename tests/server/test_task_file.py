import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_server import optimizers, task_sections
from covey_server.prepare import spec_of
from covey_server.task_changes import changed_key
from covey_server.task_file import parse, read
from covey_server.task_sections import ClientSection
from covey_shared.codec import presets
from covey_shared.errors import TaskFileError
from covey_shared.messages import LocalConfig

HEAD = '[task]\nbundle = "b"\n'

WRONG = [
    ("", "[task] lacks bundle"),
    ("[tsk]\n", "unknown section 'tsk'; did you mean 'task'?"),
    ("task = 3\n", "task must be a section, written [task], got 3"),
    (HEAD + "rouns = 3\n", "[task] has the unknown key 'rouns'; did you mean 'rounds'?"),
    (HEAD + "rounds = 2.5\n", "[task] rounds must be a whole number, got 2.5"),
    (HEAD + "rounds = true\n", "[task] rounds must be a whole number, got True"),
    (HEAD + "rounds = 0\n", "[task] rounds must be 1 to"),
    (HEAD + 'name = "a b"\n', "must be 1 to 64 letters"),
    (HEAD + "[round]\ntarget = 4\nminimum = 5\n", "minimum must be 0 to target (4), got 5"),
    (HEAD + "[round]\ndeadline_s = nan\n", "[round] deadline_s must be a number, got nan"),
    (HEAD + "[round]\nover_selection = 0.5\n", "over_selection must be 1 to 100, got 0.5"),
    (HEAD + '[round]\nselection = "unifrm"\n', "did you mean 'uniform'?"),
    (HEAD + '[strategy]\nname = "fedavgg"\n', "did you mean 'fedavg'?"),
    (
        HEAD + '[strategy]\nname = "fedavg"\nmode = "paper"\n',
        "[strategy] with name = 'fedavg' has the unknown key 'mode'",
    ),
    (HEAD + '[strategy]\nname = "median"\nattackers = 0.5\n', "[strategy] attackers must be"),
    (HEAD + '[strategy]\nname = "krum"\n[upload]\ncodec = "flasc"\n', "strategy 'krum' compares updates"),
    (HEAD + '[strategy]\nname = "krum"\n[upload]\ncodec = [{name = "topk", density = 0.1}]\n', "'topk'"),
    (HEAD + '[defence]\nclip = "adaptiv"\n', "did you mean 'adaptive'?"),
    (HEAD + "[defence]\ndevice_share = 0\n", "[defence] device_share must be"),
    (HEAD + '[strategy]\nname = "flasc"\nmode = "papr"\n', "did you mean 'paper'?"),
    (
        HEAD + '[strategy]\nname = "flasc"\nmode = "paper"\n[download]\nsince = "start"\n',
        "since means nothing with FLASC",
    ),
    (HEAD + '[download]\nsince = "begin"\n', "[download] since is 'begin', which is unknown"),
    (HEAD + '[download]\nsince = "start"\ncodec = "segments"\n', "sends each version whole"),
    (HEAD + '[strategy]\nname = "flasc"\ndensity_up = 0\n', "density_up must be above 0"),
    (HEAD + '[strategy]\nname = "flasc"\n[upload]\ncodec = "sign"\n', "[upload] cannot stand beside strategy 'flasc'"),
    (HEAD + '[strategy]\nname = "flasc"\nmode = "paper"\n[client]\nerror_feedback = true\n', "error_feedback must be"),
    (HEAD + '[server]\noptimizer = "adamw"\nbeta3 = 1\n', "did you mean 'beta2'?"),
    (
        HEAD + '[server]\noptimizer = "sgd"\nbeta1 = 0.9\n',
        "[server] with optimizer = 'sgd' has the unknown key 'beta1'",
    ),
    (HEAD + '[server]\noptimizer = "adam"\nbeta1 = 1.0\n', "[server] beta1 must be 0 to 1"),
    (HEAD + "[server]\nlearning_rate = 0\n", "[server] learning_rate must be above 0"),
    (HEAD + '[client]\noptimizer = "adam"\n', "[client] optimizer must be 'sgd' or 'adamw', got 'adam'"),
    (HEAD + "[client]\nlearning_rat = 1\n", "did you mean 'learning_rate'?"),
    (HEAD + '[upload]\ncodec = "levls"\n', "did you mean 'levels'?"),
    (HEAD + '[upload]\ncodec = "sign"\nerror = 0.1\n', "has the unknown key 'error'"),
    (HEAD + '[upload]\npreset = "sign"\n', "has the unknown key 'preset'"),
    (HEAD + '[upload]\ncodec = ["pack"]\n', "[upload] codec, stage 1 must be a table with a name"),
    (HEAD + '[upload]\ncodec = [{name = "topk", density = [1]}]\n', "density must be a number, a text or true/false"),
    ("[task\n", "not valid TOML"),
]


@pytest.mark.parametrize(("text", "sentence"), WRONG)
def test_what_is_wrong_is_said_in_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(TaskFileError) as caught:
        parse(text)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_defaults_make_a_whole_task() -> None:
    task = parse(HEAD)
    assert (task.strategy.name, task.server.name, task.server.args) == ("fedavg", "sgd", {"learning_rate": 1.0})
    assert spec_of(task.upload) == presets.sign()
    assert spec_of(task.download) == presets.levels(0.1)
    assert task.client.config().optimizer == "adamw"


def test_every_section_arrives() -> None:
    task = parse(
        '[task]\nbundle = "b"\nname = "n"\nrounds = 5\nseed = 9\npublish_every = 2\nkeep_updates = true\n'
        '[round]\ntarget = 10\nover_selection = 1.3\ndeadline_s = 60\nminimum = 4\nselection = "uniform"\npool_s = 1\n'
        '[server]\noptimizer = "yogi"\nbeta2 = 0.9\n'
        '[upload]\ncodec = [{name = "topk", density = 0.1}, {name = "pack", values = "f16"}]\n'
        '[download]\ncodec = "levels"\nerror = 0.3\n'
        '[client]\noptimizer = "sgd"\nlearning_rate = 1\nsteps = 3\n'
    )
    assert (task.round.cohort, task.round.needed) == (13, 4)
    assert task.server.args == {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.9, "eps": 1e-3}
    assert [stage.name for stage in spec_of(task.upload)] == ["topk", "pack"]
    assert spec_of(task.download)[0].args["error"] == 0.3
    assert task.client.config().learning_rate == 1.0


@pytest.mark.parametrize(("target", "factor", "cohort"), [(10, 1.0, 10), (10, 1.3, 13), (3, 1.1, 4), (10, 1.1, 11)])
def test_over_selection_rounds_up_and_not_by_float_dust(target: int, factor: float, cohort: int) -> None:
    text = f"{HEAD}[round]\ntarget = {target}\nover_selection = {factor}\n"
    assert parse(text).round.cohort == cohort


def test_flasc_paper_is_the_paper() -> None:
    task = parse(HEAD + '[strategy]\nname = "flasc"\nmode = "paper"\ndensity_up = 0.1\ndensity_down = 1.0\n')
    assert spec_of(task.upload) == presets.flasc(0.1)
    assert spec_of(task.download) == presets.dense()  # density 1 sends everything, without a selection
    assert task.server.name == "adamw"
    assert task.server.args == {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01}
    local = task.client.config()
    assert (local.optimizer, local.learning_rate, local.momentum, local.weight_decay) == ("sgd", 1e-3, 0.9, 0.0)
    assert (local.clip_norm, local.error_feedback) == (0.0, False)


def test_tables_of_names_agree_with_the_code() -> None:
    assert task_sections.OPTIMIZERS.keys() == optimizers.OPTIMIZERS.keys()
    for name, args in task_sections.OPTIMIZERS.items():
        optimizers.make_optimizer(name, args)
    assert {f.name for f in dataclasses.fields(ClientSection)} == {f.name for f in dataclasses.fields(LocalConfig)}


def test_read_resolves_the_bundle_and_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text('[task]\nbundle = "x/y"\n')
    assert read(path).task.bundle == str(tmp_path / "x" / "y")
    path.write_text("[task]\n")
    with pytest.raises(TaskFileError, match=str(path)):
        read(path)
    with pytest.raises(TaskFileError, match="there is no task file"):
        read(tmp_path / "none.toml")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(TaskFileError, match="cannot be read"):
        read(path)


CHANGES = [
    ("rounds = 3", "rounds = 9", 3, None),
    ("rounds = 9", "rounds = 5", 5, None),  # shrinks to what is done
    ("rounds = 9", "rounds = 4", 5, "task.rounds"),
    ("seed = 1", "seed = 2", 0, "task.seed"),
    ('name = "a"', 'name = "b"', 0, "task.name"),
    ('bundle = "c"', 'bundle = "d"', 0, None),  # compared by digest elsewhere
    ("[round]\ntarget = 3", "[round]\ntarget = 4", 0, None),
    ('[server]\noptimizer = "sgd"', '[server]\noptimizer = "adamw"', 0, "server.args.beta1"),
    ("[server]\nlearning_rate = 1", "[server]\nlearning_rate = 2", 0, "server.args.learning_rate"),
    ("[client]\nsteps = 3", "[client]\nsteps = 4", 0, "client.steps"),
    ('[upload]\ncodec = "sign"', '[upload]\ncodec = "dense"', 0, "upload.args.rows"),
]


@pytest.mark.parametrize(("old", "new", "version", "key"), CHANGES)
def test_a_changed_task_is_told_apart_from_a_longer_one(old: str, new: str, version: int, key: str | None) -> None:
    def task(text: str) -> task_sections.TaskFile:
        return parse(f"[task]\n{'' if 'bundle' in text else 'bundle = ' + repr('b')}\n{text}\n")

    assert changed_key(task(old).to_json(), task(new), version) == key


def test_an_older_stored_task_may_lack_an_argument_of_its_codec() -> None:
    tier = '[[tier]]\nname = "metered"\ncodec = "sign"\n'
    text = f'[task]\nbundle = "b"\n[upload]\ncodec = "sign"\n[download]\ncodec = "sign"\n{tier}'
    stored = parse(text).to_json()
    older = stored.replace('"rows": 0', "").replace('"rows":0', "")
    assert older != stored
    assert changed_key(older, parse(text), 0) is None
    assert changed_key(older, parse(text.replace('"sign"', '"sign"\nrows = 64', 1)), 0) == "upload.args.rows"


def test_an_older_stored_task_may_lack_a_key() -> None:
    task = parse(HEAD)
    stored = json.loads(task.to_json())
    del stored["client"]["clip_norm"]
    assert changed_key(json.dumps(stored), task, 0) is None
    assert changed_key(json.dumps(stored), parse(HEAD + "[client]\nclip_norm = 3\n"), 0) == "client.clip_norm"


def sentence_or_none(text: str) -> str | None:
    try:
        parse(text)
    except TaskFileError as error:
        return str(error)
    return None


@given(st.text(max_size=200))
def test_any_text_is_a_task_or_a_sentence(text: str) -> None:
    assert "\n" not in (sentence_or_none(text) or "")


@given(st.sampled_from(["task", "round", "strategy", "server", "upload", "download", "client"]), st.data())
def test_any_value_is_a_task_or_a_sentence(section: str, data: st.DataObject) -> None:
    keys = ["name", "bundle", "rounds", "seed", "target", "mode", "optimizer", "codec", "steps", "learning_rate", "eps"]
    values = st.sampled_from(["1", "-1", "0.5", "inf", "nan", '""', '"flasc"', '"paper"', "[]", "[{}]", "{}", "true"])
    table = data.draw(st.dictionaries(st.sampled_from(keys), values))
    lines = "\n".join(f"{key} = {value}" for key, value in table.items())
    head = "" if section == "task" else HEAD
    assert "\n" not in (sentence_or_none(f"{head}[{section}]\n{lines}\n") or "")
